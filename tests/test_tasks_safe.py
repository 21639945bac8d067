"""Money in the safe: the named shelf, let go and at rest."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from task_checks import act, act_until, move, wait

from llarva.cameras import project
from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.put_money_in_safe import DEPTH, NOTES, SHELVES, WIDTH, PutMoneyInSafe, shelf_place

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    simulation = Simulation(PutMoneyInSafe())
    yield simulation
    simulation.close()


def lay(sim: Simulation, shelf: int, aside: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    """Put the notes on a shelf, `aside` metres from its middle in the safe's frame, at rest."""
    place = shelf_place(shelf) + aside + [0, 0, NOTES[2]]
    move(sim, "money", sim.position("safe") + sim.rotation("safe") @ place)


@pytest.mark.parametrize("variation", range(3))
def test_the_expert_succeeds(sim: Simulation, variation: int) -> None:
    checks.expert_succeeds(sim, [variation], share=0.7)


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim, range(3), slack=1e-3)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, lambda variation: (f"{SHELVES[variation]} shelf", "money"))
    for variation, shelf in enumerate(SHELVES):
        phrasings = sim.task.instructions(variation)
        assert all("the money" in phrase and f"the {shelf} shelf" in phrase for phrase in phrasings)


@pytest.mark.parametrize("shelf", range(3))
def test_only_the_named_shelf_counts(sim: Simulation, shelf: int) -> None:
    for variation in range(3):
        sim.reset(2, variation=variation)
        lay(sim, shelf)
        assert sim.task.success(sim) is (shelf == variation)
        assert sim.task.failure(sim) == (None if shelf == variation else "wrong_shelf")


def test_the_money_counts_when_let_go_and_at_rest(sim: Simulation) -> None:
    sim.reset(2, variation=1)
    lay(sim, 1)
    assert sim.task.success(sim)
    sim.data.joint("money").qvel[0] = 0.05
    mujoco.mj_forward(sim.model, sim.data)
    assert not sim.task.success(sim), "it slides"
    lay(sim, 1)
    sim.data.eq_active[sim.model.equality("hold_money").id] = 1
    assert not sim.task.success(sim), "the hand holds it"
    sim.data.eq_active[:] = 0
    sim.data.qpos[sim.fingers] = 0.03
    assert not sim.task.success(sim), "the fingers are around it"
    sim.data.qpos[sim.fingers] = 0.04
    for aside in ((0, 0, 0.01), (DEPTH / 2 + 0.005, 0, 0), (-DEPTH / 2 - 0.005, 0, 0), (0, WIDTH + 0.005, 0)):
        lay(sim, 1, aside)
        assert not sim.task.success(sim), aside


def test_the_floor_is_a_failure(sim: Simulation) -> None:
    sim.reset(2)
    move(sim, "money", [0.5, 0.9, 0.3])
    assert sim.task.failure(sim) == "dropped"


def test_notes_rest_on_every_shelf(sim: Simulation) -> None:
    for shelf in range(3):
        sim.reset(3, variation=shelf)
        lay(sim, shelf, (0.02, -0.05, 0.02))
        wait(sim, 15)
        assert sim.success, SHELVES[shelf]


def test_dropped_on_the_way_it_is_picked_up_again(sim: Simulation) -> None:
    for seed in range(3):
        sim.reset(seed)
        act_until(sim, lambda: sim.holding("money") and bool(sim.position("money")[2] > 0.85))
        wait(sim, 8)
        assert not sim.holding("money")
        assert run_expert(sim)


def test_notes_on_their_side_are_taken_too(sim: Simulation) -> None:
    sim.reset(5, variation=2)
    x, y, _ = sim.position("money")
    sim.data.joint("money").qpos[:] = [x, y, 0.752 + NOTES[1], np.sqrt(0.5), np.sqrt(0.5), 0, 0]
    assert run_expert(sim)


def test_a_gripper_closed_on_nothing_opens_again(sim: Simulation) -> None:
    sim.reset(4)
    act(sim, 15)
    wait(sim, 10, gripper=0.0)
    assert sim.gripper_opening < 0.05
    assert run_expert(sim)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(8))
    for seed in range(8):
        sim.reset(seed)
        pixels = [project(mark.point, *sim.camera())[0] for mark in sim.task.objects(sim).values()]
        assert min(np.linalg.norm(a - b) for i, a in enumerate(pixels) for b in pixels[:i]) > 8


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim, steps=40)


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, 2, every=12, ahead=8)
