"""Money in the safe: the named shelf, let go and at rest."""

import zlib
from collections.abc import Callable, Iterator

import mujoco
import numpy as np
import pytest

from llarva.cameras import project
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.put_money_in_safe import DEPTH, NOTES, SHELVES, WIDTH, PutMoneyInSafe, shelf_place

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    simulation = Simulation(PutMoneyInSafe())
    yield simulation
    simulation.close()


def act(sim: Simulation, steps: int = 1) -> None:
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))


def act_until(sim: Simulation, reached: Callable[[], bool]) -> None:
    while not reached():
        assert sim.steps < sim.task.max_steps, "never reached"
        act(sim)


def lay(sim: Simulation, shelf: int, aside: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    """Put the notes on a shelf, `aside` metres from its middle in the safe's frame, at rest."""
    place = shelf_place(shelf) + aside + [0, 0, NOTES[2]]
    sim.place("money", sim.position("safe") + sim.rotation("safe") @ place)
    sim.data.joint("money").qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)


@pytest.mark.parametrize("variation", range(3))
def test_the_expert_succeeds(sim: Simulation, variation: int) -> None:
    sim.reset(20 + variation, variation=variation, arm_noise=0.12)
    assert not sim.task.success(sim), "before anything has moved"
    assert run_expert(sim)
    assert sim.steps < 0.7 * sim.task.max_steps


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    for seed in range(3):
        sim.reset(seed)
        before = sim.position("money")
        for _ in range(40):
            sim.advance([*np.zeros(7), float(seed % 2)])
            assert not sim.success and sim.failure is None
        assert np.allclose(sim.position("money"), before, atol=1e-3)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    sim.reset(0)
    marks = sim.task.objects(sim)
    for variation, shelf in enumerate(SHELVES):
        phrasings = sim.task.instructions(variation)
        assert len(set(phrasings)) == len(phrasings) >= 4
        assert {"money", f"{shelf} shelf"} <= set(marks)
        for phrase in phrasings:
            assert "the money" in phrase and f"the {shelf} shelf" in phrase
            assert not any(other in phrase for other in SHELVES if other != shelf)


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
    sim.place("money", [0.5, 0.9, 0.3])
    mujoco.mj_forward(sim.model, sim.data)
    assert sim.task.failure(sim) == "dropped"


def test_notes_rest_on_every_shelf(sim: Simulation) -> None:
    for shelf in range(3):
        sim.reset(3, variation=shelf)
        lay(sim, shelf, (0.02, -0.05, 0.02))
        for _ in range(15):
            sim.advance([*np.zeros(7), 1.0])
        assert sim.success, SHELVES[shelf]


def test_dropped_on_the_way_it_is_picked_up_again(sim: Simulation) -> None:
    for seed in range(3):
        sim.reset(seed)
        act_until(sim, lambda: sim.holding("money") and bool(sim.position("money")[2] > 0.85))
        for _ in range(8):
            sim.advance([*np.zeros(7), 1.0])
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
    for _ in range(10):
        sim.advance([*np.zeros(7), 0.0])
    assert sim.gripper_opening < 0.05
    assert run_expert(sim)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    for seed in range(8):
        sim.reset(seed)
        seen, names = sim.segmentation(128)
        pixels = []
        for name, mark in sim.task.objects(sim).items():
            pixel, depth = project(mark.point, *sim.camera())
            assert depth > 0 and np.all((pixel > 3) & (pixel < 125)), (seed, name, pixel)
            x, y = pixel.astype(int)
            assert names.index(name) + 1 in seen[y - 2 : y + 3, x - 2 : x + 3], name
            pixels.append(pixel)
        assert min(np.linalg.norm(a - b) for i, a in enumerate(pixels) for b in pixels[:i]) > 8


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    def fingerprint() -> int:
        sim.reset(11, arm_noise=0.12)
        act(sim, 40)
        held = [sim.data.qpos, sim.data.qvel, sim.model.body_pos, sim.model.body_quat]
        return zlib.crc32(b"".join(array.tobytes() for array in held))

    first = fingerprint()
    sim.reset(12)
    act(sim, 5)
    assert fingerprint() == first


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    sim.reset(7, variation=2, arm_noise=0.12)
    snapshots, after = [], []
    while not sim.success and sim.steps < sim.task.max_steps:
        if sim.steps % 12 == 0:
            snapshots.append(sim.snapshot())
        if sim.steps % 12 == 8:
            after.append((sim.data.qpos.copy(), expert_action(sim)))
        act(sim)
    assert sim.success
    sim.reset(8, variation=0)
    act(sim, 3)
    for snapshot, (qpos, action) in list(zip(snapshots, after, strict=False))[::-1]:
        sim.restore(snapshot)
        act(sim, 8)
        assert np.array_equal(sim.data.qpos, qpos)
        assert np.array_equal(expert_action(sim), action)
