"""Turning a tap: the right thing, far enough, and at rest."""

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from llarva.cameras import project
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.turn_tap import HANDLES, OTHER, TURNED, TurnTap

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS: tuple[type[Task], ...] = (TurnTap,)
VARIATIONS = {"turn_tap": (0, 1)}


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(request.param())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def tap() -> Iterator[Simulation]:
    simulation = Simulation(TurnTap())
    yield simulation
    simulation.close()


def act(sim: Simulation, steps: int = 1) -> None:
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))


def act_until(sim: Simulation, reached: Callable[[], bool]) -> None:
    while not reached():
        assert sim.steps < sim.task.max_steps, "never reached"
        act(sim)


def rise(sim: Simulation, steps: int) -> None:
    """Open the fingers and lift the hand."""
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity([0, 0, 0.01, 0, 0, 0, 1]))


# Every task

def test_the_expert_succeeds(sim: Simulation) -> None:
    for variation in VARIATIONS[sim.task.name]:
        sim.reset(20 + variation, variation=variation, arm_noise=0.12)
        assert not sim.task.success(sim), "before anything has moved"
        assert run_expert(sim), variation
        assert sim.steps < 0.8 * sim.task.max_steps


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    for seed in range(2):
        sim.reset(seed)
        for _ in range(40):
            sim.advance([*np.zeros(7), float(seed)])
            assert not sim.success and sim.failure is None


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    colours_and_sides = {word for v in range(sim.task.variation_count) for word in sim.task.instructions(v)[0].split()}
    for variation in range(sim.task.variation_count):
        sim.reset(3, variation=variation)
        phrasings, marks = sim.task.instructions(variation), sim.task.objects(sim)
        assert len(set(phrasings)) == len(phrasings) >= 4
        named = [mark for mark in marks if f"the {mark}" in phrasings[0]]
        assert named and all(named[0] in phrase for phrase in phrasings)
        strangers = {m for m in marks if m.split()[0] in colours_and_sides} - set(named)
        assert not any(f"the {m}" in phrase for phrase in phrasings for m in strangers if m not in ("tap", "lamp"))


def test_marks_are_inside_the_picture(sim: Simulation) -> None:
    for seed in range(12):
        sim.reset(seed)
        for name, mark in sim.task.objects(sim).items():
            pixel, depth = project(mark.point, *sim.camera())
            assert depth > 0 and np.all((pixel > 3) & (pixel < 125)), (seed, name, pixel)


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    def fingerprint() -> int:
        sim.reset(11, arm_noise=0.12)
        act(sim, 25)
        held = [sim.data.qpos, sim.model.geom_rgba, sim.model.body_pos, sim.model.geom_size]
        return zlib.crc32(b"".join(array.tobytes() for array in held))

    first = fingerprint()
    sim.reset(12)
    act(sim, 5)
    assert fingerprint() == first


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    sim.reset(7, variation=VARIATIONS[sim.task.name][-1], arm_noise=0.12)
    snapshots, after = [], []
    while not sim.success and sim.steps < sim.task.max_steps:
        if sim.steps % 12 == 0:
            snapshots.append(sim.snapshot())
        if sim.steps % 12 == 8:
            after.append((sim.data.qpos.copy(), sim.data.eq_active.copy(), expert_action(sim)))
        act(sim)
    assert sim.success
    sim.reset(8, variation=VARIATIONS[sim.task.name][0])
    act(sim, 3)
    for snapshot, (qpos, active, action) in list(zip(snapshots, after, strict=False))[::-1]:
        sim.restore(snapshot)
        act(sim, 8)
        assert np.array_equal(sim.data.qpos, qpos) and np.array_equal(sim.data.eq_active, active)
        assert np.array_equal(expert_action(sim), action)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    for seed in range(6):
        sim.reset(seed)
        seen, names = sim.segmentation(128)
        for name, mark in sim.task.objects(sim).items():
            x, y = project(mark.point, *sim.camera())[0].astype(int)
            assert names.index(name) + 1 in seen[y - 2 : y + 3, x - 2 : x + 3], name


# The tap

@pytest.mark.parametrize("variation", [0, 1])
def test_a_handle_counts_when_it_is_turned_and_still(tap: Simulation, variation: int) -> None:
    tap.reset(1, variation=variation)
    hinge = tap.data.joint(f"{HANDLES[variation]}_handle")
    for angle, speed, turned in ((-0.02, 0.0, False), (0.02, 0.0, True), (0.02, 0.3, False), (0.02, -0.3, False)):
        hinge.qpos[0], hinge.qvel[0] = TURNED + angle, speed
        assert tap.task.success(tap) is turned


def test_the_wrong_handle(tap: Simulation) -> None:
    tap.reset(1, variation=0)
    tap.data.joint("left_handle").qpos[0] = TURNED + 0.02
    for angle, failure in ((-0.02, None), (0.02, "wrong_handle")):
        tap.data.joint("right_handle").qpos[0] = OTHER + angle
        assert tap.task.failure(tap) == failure
        assert tap.task.success(tap) is (failure is None)


def test_a_handle_stays_where_it_is_let_go(tap: Simulation) -> None:
    tap.reset(2, variation=0)
    tap.data.joint("right_handle").qpos[0] = 0.3
    for _ in range(20):
        tap.advance([*np.zeros(7), 1.0])
    angles = [tap.task.angle(tap, k) for k in range(2)]  # type: ignore[attr-defined]
    assert np.allclose(angles, [0.0, 0.3], atol=0.02)


@pytest.mark.parametrize("share", [0.35, 0.75])
def test_a_lost_handle_is_gripped_again(tap: Simulation, share: float) -> None:
    tap.reset(4)
    act_until(tap, lambda: tap.task.angle(tap, tap.variation) > share * TURNED)  # type: ignore[attr-defined]
    rise(tap, 15)
    assert not tap.success
    assert run_expert(tap)


def test_the_other_handle_stays_shut(tap: Simulation) -> None:
    for seed in range(4):
        tap.reset(seed, arm_noise=0.12)
        assert run_expert(tap)
        assert tap.task.angle(tap, 1 - tap.variation) < 0.05  # type: ignore[attr-defined]


def test_left_is_left_in_the_picture(tap: Simulation) -> None:
    for seed in range(10):
        tap.reset(seed)
        marks = tap.task.objects(tap)
        left, right = (project(marks[f"{side} handle"].point, *tap.camera())[0] for side in HANDLES)
        assert right[0] - left[0] > 20
