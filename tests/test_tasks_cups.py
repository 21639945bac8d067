"""Cups in cups and over spokes: what counts as a stack, what as failure, and recoveries."""

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
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.place_cups import AROUND, BOARD_TOP, SPOKES, PlaceCups
from llarva.tabletop.tasks.stack_cups import CUPS, HEIGHT, NESTED, RADII, StackCups, cup_shell

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS: tuple[type[Task], ...] = (StackCups, PlaceCups)
VARIATIONS = {"stack_cups": (0, 7, 13, 19), "place_cups": (0, 1, 2)}
NAMES = {
    "stack_cups": lambda variation: (f"{list(COLOURS)[variation]} cup",),
    "place_cups": lambda variation: ("cups", "cup holder"),
}


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(request.param())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def stacked() -> Iterator[Simulation]:
    simulation = Simulation(StackCups())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def placed() -> Iterator[Simulation]:
    simulation = Simulation(PlaceCups())
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
    checks.expert_succeeds(sim, VARIATIONS[sim.task.name])


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, NAMES[sim.task.name])


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(12))


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, VARIATIONS[sim.task.name][1])


@pytest.mark.parametrize("cup", CUPS)
def test_a_tipped_cup_and_the_floor(sim: Simulation, cup: str) -> None:
    sim.reset(3)
    joint = sim.data.joint(cup)
    joint.qpos[3:] = [np.sqrt(0.5), np.sqrt(0.5), 0, 0]
    joint.qpos[2] += 0.03
    mujoco.mj_forward(sim.model, sim.data)
    assert sim.task.failure(sim) == "tipped"
    hold(sim, cup)
    assert sim.task.failure(sim) is None, "the hand may turn it"
    sim.reset(3)
    move(sim, cup, [0.5, 0.9, 0.3])
    assert sim.task.failure(sim) == "dropped"


def test_a_dropped_cup_is_picked_up_again(sim: Simulation) -> None:
    sim.reset(1)
    act_until(sim, lambda: any(sim.holding(name) for name in CUPS))
    wait(sim, 8)
    assert not any(sim.holding(name) for name in CUPS) and sim.failure is None
    assert run_expert(sim)


# Cups in cups

@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_a_stack_counts_in_either_order(stacked: Simulation, order: tuple[int, ...]) -> None:
    names = tuple(CUPS[k] for k in order)
    stacked.reset(2)
    nest(stacked, names[:2])
    assert not stacked.task.success(stacked) and stacked.task.failure(stacked) is None, "one is missing"
    nest(stacked, names)
    wait(stacked, 20)
    assert stacked.success and stacked.failure is None, "it stands"
    foot = [stacked.position(name)[2] for name in names]
    assert np.allclose(np.diff(foot), NESTED, atol=0.002), "a cup stands on the bottom of the one below"


def test_what_is_no_stack(stacked: Simulation) -> None:
    for wrong in ({"aside": 0.012}, {"above": 0.02}):
        stacked.reset(2)
        nest(stacked, CUPS, **wrong)
        assert not stacked.task.success(stacked), wrong
    stacked.reset(2)
    nest(stacked, CUPS)
    stacked.data.joint(CUPS[2]).qvel[2] = -0.05
    mujoco.mj_forward(stacked.model, stacked.data)
    assert not stacked.task.success(stacked), "falling"
    nest(stacked, CUPS)
    hold(stacked, CUPS[2])
    assert not stacked.task.success(stacked), "the hand holds the top"


def test_closed_fingers_have_not_let_go(stacked: Simulation) -> None:
    stacked.reset(2)
    nest(stacked, CUPS)
    wait(stacked, 15, gripper=0.0)
    assert not stacked.success and len(stacked.task.stack(stacked)) == len(CUPS)  # type: ignore[attr-defined]
    wait(stacked, 15)
    assert stacked.success


@pytest.mark.parametrize("order", [(1, 2), (1, 0), (2, 0), (1, 2, 0)])
def test_a_cup_in_a_wrong_one(stacked: Simulation, order: tuple[int, ...]) -> None:
    stacked.reset(3)
    nest(stacked, tuple(CUPS[k] for k in order))
    assert not stacked.task.success(stacked) and stacked.task.failure(stacked) == "wrong_cup"


def test_a_cup_in_the_hand_is_in_no_cup_yet(stacked: Simulation) -> None:
    stacked.reset(3)
    nest(stacked, CUPS[1:])
    hold(stacked, CUPS[2])
    assert stacked.task.failure(stacked) is None


def test_cups_stand_apart_and_the_nearer_one_is_plain(stacked: Simulation) -> None:
    for seed in range(20):
        stacked.reset(seed)
        places = np.array([stacked.position(name)[:2] for name in CUPS])
        away = np.linalg.norm(places[1:] - places[0], axis=1)
        assert away.min() > 0.14 and abs(away[0] - away[1]) > 0.03
        assert np.diff(np.sort(places[:, 1])).min() > 0.1
        assert stacked.task.next_cup(stacked, [CUPS[0]]) == CUPS[1 + int(np.argmin(away))]  # type: ignore[attr-defined]


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


def test_the_named_cup_is_put_back_down(stacked: Simulation) -> None:
    stacked.reset(4)
    position, _ = stacked.end_effector_pose()
    move(stacked, CUPS[0], position - [0.0, 0.0, HEIGHT - 0.011])
    wait(stacked, 15, gripper=0.0)
    assert stacked.holding(CUPS[0])
    act_until(stacked, lambda: not stacked.holding(CUPS[0]))
    assert stacked.position(CUPS[0])[2] < TABLE_HEIGHT + 0.01
    assert run_expert(stacked)


def test_a_whole_stack_is_left_alone(stacked: Simulation) -> None:
    stacked.reset(5)
    nest(stacked, CUPS)
    assert expert_action(stacked)[6] == 1.0
    wait(stacked, 12, gripper=0.0)
    assert run_expert(stacked)


# Cups over spokes

def put_over(sim: Simulation, cup: str, spoke: int, aside: float = 0.0, above: float = 0.0) -> None:
    place = sim.position(f"spoke{spoke}") + [aside, 0.0, 0.0005 + above]
    move(sim, cup, place.tolist())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_as_asked_for_count(placed: Simulation, count: int) -> None:
    for present in range(4):
        placed.reset(2, variation=count - 1)
        for i in range(present):
            put_over(placed, CUPS[i], SPOKES - 1 - i)
        wait(placed, 20)
        assert placed.success == (present == count)
        assert placed.task.placed(placed) == {CUPS[i]: SPOKES - 1 - i for i in range(present)}  # type: ignore[attr-defined]


def test_what_is_not_on_a_spoke(placed: Simulation) -> None:
    for wrong in ({"aside": AROUND + 0.002}, {"above": 0.02}):
        placed.reset(2, variation=0)
        put_over(placed, CUPS[1], 1, **wrong)
        assert not placed.task.success(placed), wrong
    placed.reset(2, variation=0)
    put_over(placed, CUPS[1], 1)
    assert placed.task.success(placed)
    placed.data.joint(CUPS[1]).qvel[0] = 0.05
    mujoco.mj_forward(placed.model, placed.data)
    assert not placed.task.success(placed), "moving"
    put_over(placed, CUPS[1], 1)
    hold(placed, CUPS[1])
    assert not placed.task.success(placed), "the hand holds it"


def test_a_spoke_keeps_its_cup(placed: Simulation) -> None:
    placed.reset(2, variation=0)
    put_over(placed, CUPS[0], 2)
    placed.data.joint(CUPS[0]).qvel[:2] = [0.4, 0.4]
    wait(placed, 20)
    assert placed.success and placed.task.spoke_of(placed, CUPS[0]) == 2  # type: ignore[attr-defined]


def test_the_leftmost_cup_goes_to_the_leftmost_free_spoke(placed: Simulation) -> None:
    for seed in range(4):
        placed.reset(seed, variation=1)
        across = [placed.position(cup)[1] for cup in CUPS]
        assert np.diff(np.sort(across)).min() > 0.12
        first, second, third = (CUPS[k] for k in np.argsort(across))
        put_over(placed, second, 0)
        act_until(placed, lambda: placed.success)
        assert placed.task.placed(placed) == {first: 1, second: 0}  # type: ignore[attr-defined]
        assert placed.position(third)[2] < BOARD_TOP - 0.01
