"""Cups in cups: what counts as a stack, what as failure, and recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from task_checks import act_until, move, wait

from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.scene import COLOURS, TABLE_HEIGHT
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.stack_cups import CUPS, HEIGHT, NESTED, RADII, StackCups, cup_shell

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
VARIATIONS = (0, 7, 13, 19)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    simulation = Simulation(StackCups())
    yield simulation
    simulation.close()


def nest(sim: Simulation, order: tuple[str, ...], aside: float = 0.0, above: float = 0.0) -> None:
    """Put each cup of `order` into the one before it, the last one aside and above."""
    x, y, z = sim.position(order[0])
    for level, name in enumerate(order[1:], start=1):
        last = name == order[-1]
        move(sim, name, [x + aside * last, y, z + level * (NESTED + 0.001) + above * last])


def hold(sim: Simulation, name: str) -> None:
    sim.data.eq_active[sim.model.equality(f"hold_{name}").id] = 1


# What every task keeps

def test_the_expert_succeeds(sim: Simulation) -> None:
    checks.expert_succeeds(sim, VARIATIONS)


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, lambda variation: (f"{list(COLOURS)[variation]} cup",))


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(12))


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, VARIATIONS[1])


# Success and failure

@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_a_stack_counts_in_either_order(sim: Simulation, order: tuple[int, ...]) -> None:
    names = tuple(CUPS[k] for k in order)
    sim.reset(2)
    nest(sim, names[:2])
    assert not sim.task.success(sim) and sim.task.failure(sim) is None, "one is missing"
    nest(sim, names)
    wait(sim, 20)
    assert sim.success and sim.failure is None, "it stands"
    foot = [sim.position(name)[2] for name in names]
    assert np.allclose(np.diff(foot), NESTED, atol=0.002), "a cup stands on the bottom of the one below"


def test_what_is_no_stack(sim: Simulation) -> None:
    for wrong in ({"aside": 0.012}, {"above": 0.02}):
        sim.reset(2)
        nest(sim, CUPS, **wrong)
        assert not sim.task.success(sim), wrong
    sim.reset(2)
    nest(sim, CUPS)
    sim.data.joint(CUPS[2]).qvel[2] = -0.05
    mujoco.mj_forward(sim.model, sim.data)
    assert not sim.task.success(sim), "falling"
    nest(sim, CUPS)
    hold(sim, CUPS[2])
    assert not sim.task.success(sim), "the hand holds the top"


def test_closed_fingers_have_not_let_go(sim: Simulation) -> None:
    sim.reset(2)
    nest(sim, CUPS)
    wait(sim, 15, gripper=0.0)
    assert not sim.success and len(sim.task.stack(sim)) == len(CUPS)  # type: ignore[attr-defined]
    wait(sim, 15)
    assert sim.success


@pytest.mark.parametrize("order", [(1, 2), (1, 0), (2, 0), (1, 2, 0)])
def test_a_cup_in_a_wrong_one(sim: Simulation, order: tuple[int, ...]) -> None:
    sim.reset(3)
    nest(sim, tuple(CUPS[k] for k in order))
    assert not sim.task.success(sim) and sim.task.failure(sim) == "wrong_cup"


def test_a_cup_in_the_hand_is_in_no_cup_yet(sim: Simulation) -> None:
    sim.reset(3)
    nest(sim, CUPS[1:])
    hold(sim, CUPS[2])
    assert sim.task.failure(sim) is None


def test_a_tipped_cup_and_the_floor(sim: Simulation) -> None:
    sim.reset(3)
    cup = sim.data.joint(CUPS[1])
    cup.qpos[3:] = [np.sqrt(0.5), np.sqrt(0.5), 0, 0]
    cup.qpos[2] += RADII[1]
    mujoco.mj_forward(sim.model, sim.data)
    assert sim.task.failure(sim) == "tipped"
    sim.reset(3)
    move(sim, CUPS[2], [0.5, 0.9, 0.3])
    assert sim.task.failure(sim) == "dropped"


# Scenes

def test_cups_stand_apart_and_the_nearer_one_is_plain(sim: Simulation) -> None:
    for seed in range(20):
        sim.reset(seed)
        places = np.array([sim.position(name)[:2] for name in CUPS])
        away = np.linalg.norm(places[1:] - places[0], axis=1)
        assert away.min() > 0.14 and abs(away[0] - away[1]) > 0.03
        assert np.diff(np.sort(places[:, 1])).min() > 0.1
        assert sim.task.next_cup(sim, [CUPS[0]]) == CUPS[1 + int(np.argmin(away))]  # type: ignore[attr-defined]


def test_the_shell_is_closed_and_a_cup_fits_inside() -> None:
    vertices, faces = cup_shell()
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    places = np.round(vertices, 9)
    _, same = np.unique(places, axis=0, return_inverse=True)
    _, count = np.unique(np.sort(same.ravel()[edges], axis=1), axis=0, return_counts=True)
    assert np.all(count == 2), "every edge joins two triangles"
    radius = np.linalg.norm(vertices[:, :2], axis=1)
    inside = radius[np.isclose(vertices[:, 2], NESTED) & (radius > 0)]
    assert np.all(inside > RADII[0]), "the foot of the next cup"
    assert vertices[:, 2].max() == HEIGHT


# Recoveries

def test_a_dropped_cup_is_picked_up_again(sim: Simulation) -> None:
    sim.reset(1, variation=3)
    act_until(sim, lambda: any(sim.holding(name) for name in CUPS))
    wait(sim, 8)
    assert not any(sim.holding(name) for name in CUPS) and sim.failure is None
    assert run_expert(sim)


def test_the_named_cup_is_put_back_down(sim: Simulation) -> None:
    sim.reset(4)
    position, _ = sim.end_effector_pose()
    move(sim, CUPS[0], position - [0.0, 0.0, HEIGHT - 0.011])
    wait(sim, 15, gripper=0.0)
    assert sim.holding(CUPS[0])
    act_until(sim, lambda: not sim.holding(CUPS[0]))
    assert sim.position(CUPS[0])[2] < TABLE_HEIGHT + 0.01
    assert run_expert(sim)


def test_a_whole_stack_is_left_alone(sim: Simulation) -> None:
    sim.reset(5)
    nest(sim, CUPS)
    assert expert_action(sim)[6] == 1.0
    wait(sim, 12, gripper=0.0)
    assert run_expert(sim)
