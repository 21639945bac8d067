"""Groceries in the cupboard: the named one, inside, let go and at rest; what is knocked over or lost is fetched."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from task_checks import act_until, move, wait

from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.scene import TABLE_HEIGHT
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.put_groceries_in_cupboard import (
    APART,
    CORE,
    CUPBOARD,
    GROCERIES,
    MASS,
    NAMES,
    PLACE,
    SHELF,
    SHOWN,
    PutGroceriesInCupboard,
)

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    simulation = Simulation(PutGroceriesInCupboard())
    yield simulation
    simulation.close()


def stand(sim: Simulation, name: str, forward: float = PLACE, side: float = 0.0, above: float = 0.0) -> None:
    """Stand a grocery on the shelf of the cupboard, at rest; metres from the middle of the shelf."""
    place = np.array([forward, side, SHELF + GROCERIES[name].size[2] + above])
    move(sim, name, sim.position("cupboard") + sim.rotation("cupboard") @ place)


def tip_over(sim: Simulation, name: str, about: int) -> None:
    """Lay a grocery down where it is, turned a quarter about its axis 0 or 1."""
    x, y, _ = sim.position(name)
    move(sim, name, [x, y, TABLE_HEIGHT + CORE[1 - about]])
    quaternion = np.array([np.sqrt(0.5), 0.0, 0.0, 0.0])
    quaternion[1 + about] = np.sqrt(0.5)
    sim.data.joint(name).qpos[3:] = quaternion
    mujoco.mj_forward(sim.model, sim.data)


# What every task promises

def test_the_expert_puts_every_grocery_away(sim: Simulation) -> None:
    checks.expert_succeeds(sim, range(len(NAMES)))


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_phrasings_name_the_grocery_and_the_cupboard(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, lambda variation: (NAMES[variation], "cupboard"))
    for variation, name in enumerate(NAMES):
        others = [other for other in NAMES if other != name]
        assert not any(other in phrase for phrase in sim.task.instructions(variation) for other in others)


@needs_gl
def test_marks_are_seen(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(12))


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_snapshots_continue_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, 3)
    sim.reset(3)
    snapshot, marks = sim.snapshot(), sim.task.objects(sim).keys()
    sim.reset(4)
    sim.restore(snapshot)
    assert sim.task.objects(sim).keys() == marks


# What stands where

def test_those_shown_have_their_weight_and_room_for_the_hand(sim: Simulation) -> None:
    for seed in range(20):
        sim.reset(seed)
        shown = sim.task.shown  # type: ignore[attr-defined]
        assert len(set(shown)) == SHOWN and shown[0] == NAMES[sim.variation]
        places = np.array([sim.position(name)[:2] for name in shown])
        assert (np.linalg.norm(places[:, None] - places, axis=-1) + np.eye(SHOWN)).min() > APART - 0.002
        for name in NAMES:
            weight = -sim.data.xfrc_applied[sim.model.body(name).id, 2]
            assert weight == pytest.approx(MASS * 9.81 if name in shown else 0.0)
            assert (sim.position(name)[0] > -0.1) == (name in shown), "the others are out of sight"


def test_what_is_dropped_falls_like_anything_else(sim: Simulation) -> None:
    sim.reset(1)
    name = sim.task.goal  # type: ignore[attr-defined]
    move(sim, name, [0.3, 0.0, 1.3])
    wait(sim, 4)
    assert sim.position(name)[2] == pytest.approx(1.3 - 0.5 * 9.81 * 0.2**2, abs=0.006)


@needs_gl
def test_every_grocery_is_seen_in_the_cupboard(sim: Simulation) -> None:
    for variation, name in enumerate(NAMES):
        sim.reset(variation, variation=variation)
        stand(sim, name)
        seen, names = sim.segmentation(128)
        assert np.count_nonzero(seen == names.index(name) + 1) > 30, name


# What counts

@pytest.mark.parametrize("name", ["crackers", "tuna"])
def test_the_grocery_counts_when_it_rests_in_the_cupboard(sim: Simulation, name: str) -> None:
    sim.reset(1, variation=NAMES.index(name))
    stand(sim, name)
    assert sim.task.success(sim) and sim.task.failure(sim) is None
    sim.data.joint(name).qvel[0] = 0.05
    mujoco.mj_forward(sim.model, sim.data)
    assert not sim.task.success(sim), "it slides"
    stand(sim, name)
    sim.data.eq_active[sim.model.equality(f"hold_{name}").id] = 1
    assert not sim.task.success(sim), "the hand holds it"
    sim.data.eq_active[:] = 0
    sim.data.qpos[sim.fingers] = 0.02
    assert not sim.task.success(sim), "the fingers are closed"
    sim.data.qpos[sim.fingers] = 0.04
    mujoco.mj_forward(sim.model, sim.data)
    assert sim.task.success(sim)


def test_beside_before_behind_and_above_do_not_count(sim: Simulation) -> None:
    sim.reset(2, variation=NAMES.index("soup"))
    depth, width, height = CUPBOARD
    beyond = ({"forward": depth + 0.01}, {"forward": -depth - 0.01}, {"side": width + 0.01}, {"above": height})
    for aside in beyond:
        stand(sim, "soup", **aside)
        assert not sim.task.success(sim) and sim.task.failure(sim) is None, aside


def test_another_grocery_and_the_floor(sim: Simulation) -> None:
    sim.reset(3, variation=0)
    _, other, third = sim.task.shown  # type: ignore[attr-defined]
    stand(sim, "crackers")
    stand(sim, other, forward=0.03)
    assert not sim.task.success(sim) and sim.task.failure(sim) == "wrong_grocery"
    sim.reset(3, variation=0)
    move(sim, third, [0.5, 0.95, 0.3])
    assert sim.task.failure(sim) == "dropped"


# Recoveries

@pytest.mark.parametrize(("seed", "height"), [(5, 0.05), (6, 0.2)])
def test_a_lost_grocery_is_fetched_again(sim: Simulation, seed: int, height: float) -> None:
    sim.reset(seed)
    goal = sim.task.goal  # type: ignore[attr-defined]
    act_until(sim, lambda: sim.holding(goal) and sim.position(goal)[2] > TABLE_HEIGHT + height)
    wait(sim, 10)
    assert not sim.holding(goal)
    assert run_expert(sim)


@pytest.mark.parametrize("about", [0, 1])
def test_a_knocked_over_box_is_gripped_across(sim: Simulation, about: int) -> None:
    sim.reset(4, variation=0)
    tip_over(sim, "crackers", about)
    grip, yaw = sim.task.grip(sim)  # type: ignore[attr-defined]
    assert abs(yaw) == pytest.approx(0.0 if about else np.pi / 2, abs=1e-6)
    assert TABLE_HEIGHT + 0.02 < grip[2] < TABLE_HEIGHT + 0.04
    assert run_expert(sim)


def test_a_hand_under_the_roof_leaves_to_the_back(sim: Simulation) -> None:
    sim.reset(8)
    inside = sim.position("cupboard") + sim.rotation("cupboard") @ [0.02, 0.0, 0.12]
    joints, left = sim.kinematics.solve(inside, sim.end_effector_pose()[1], sim.joint_positions, iterations=100)
    assert left < 1e-3
    sim.data.qpos[sim.joints], sim.commanded = joints, joints.copy()
    mujoco.mj_forward(sim.model, sim.data)
    target = sim.task.expert(sim)
    way = (target.position - sim.end_effector_pose()[0]) @ sim.rotation("cupboard")
    assert way[0] < -0.05 and abs(way[2]) < 1e-6
