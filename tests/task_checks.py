"""What holds for every task of the tabletop, as functions that the tests of single tasks call."""

import zlib
from collections.abc import Callable, Sequence

import mujoco
import numpy as np
from numpy.typing import ArrayLike

from llarva.cameras import project
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.simulation import Simulation


def act(sim: Simulation, steps: int = 1) -> None:
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))


def act_until(sim: Simulation, reached: Callable[[], bool]) -> None:
    while not reached():
        assert sim.steps < sim.task.max_steps, "never reached"
        act(sim)


def wait(sim: Simulation, steps: int, gripper: float = 1.0) -> None:
    for _ in range(steps):
        sim.advance([*np.zeros(7), gripper])


def move(sim: Simulation, body: str, position: ArrayLike, yaw: float = 0.0) -> None:
    sim.place(body, position, yaw)
    sim.data.joint(body).qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)


def expert_succeeds(
    sim: Simulation, variations: Sequence[int], share: float = 0.8, arm_noise: float = 0.12
) -> None:
    """Each variation within a `share` of its step limit, and never faster than the arm can move."""
    for variation in variations:
        sim.reset(20 + variation, variation=variation, arm_noise=arm_noise)
        assert not sim.success and sim.failure is None
        assert not sim.task.success(sim) and sim.task.failure(sim) is None, "before anything has moved"
        assert run_expert(sim), (variation, sim.failure)
        assert sim.steps < share * sim.task.max_steps
        assert sim.clipped == 0


def still_robot_never_succeeds(sim: Simulation, seeds: Sequence[int] = (0, 1), slack: float = 0.004) -> None:
    """Nor does anything but the robot move by more than `slack`, in metres and in the units of its joints."""
    for seed in seeds:
        sim.reset(seed)
        before = sim.data.qpos[9:].copy()
        for _ in range(40):
            sim.advance([*np.zeros(7), float(seed % 2)])
            assert not sim.success and sim.failure is None
        assert np.allclose(sim.data.qpos[9:], before, rtol=0, atol=slack), "things lie still"


def phrasings_name_marked_things(sim: Simulation, names: Callable[[int], Sequence[str]]) -> None:
    """`names`: what every phrasing of a variation names; no phrasing names a marked thing of another colour."""
    seen = set()
    for variation in range(sim.task.variation_count):
        sim.reset(3, variation=variation)
        phrasings, marks, named = sim.task.instructions(variation), sim.task.objects(sim), names(variation)
        assert len(set(phrasings)) == len(phrasings) >= 4 and not seen & set(phrasings)
        seen |= set(phrasings)
        assert set(named) <= set(marks)
        assert all(name in phrase for phrase in phrasings for name in named)
        colours = {mark.split()[0] for mark in marks if mark.split()[-1] == named[0].split()[-1]}
        others = colours - {named[0].split()[0]}
        assert not any(word in others for phrase in phrasings for word in phrase.split())


def marks_are_inside_the_picture(sim: Simulation, seeds: Sequence[int], margin: int = 3) -> None:
    for seed in seeds:
        sim.reset(seed)
        for name, mark in sim.task.objects(sim).items():
            pixel, depth = project(mark.point, *sim.camera())
            assert depth > 0 and np.all((pixel > margin) & (pixel < 128 - margin)), (seed, name, pixel)


def marks_are_seen(sim: Simulation, seeds: Sequence[int], margin: int = 3) -> None:
    """Every mark is inside the picture, and its own pixels are where it points at."""
    for seed in seeds:
        marks_are_inside_the_picture(sim, [seed], margin)
        picture, names = sim.segmentation(128)
        for name, mark in sim.task.objects(sim).items():
            x, y = project(mark.point, *sim.camera())[0].astype(int)
            assert names.index(name) + 1 in picture[y - 2 : y + 3, x - 2 : x + 3], (seed, name)


def same_seed_same_bytes(sim: Simulation, steps: int = 25) -> None:
    def fingerprint(seed: int) -> int:
        sim.reset(seed, arm_noise=0.12)
        act(sim, steps)
        model, data = sim.model, sim.data
        held = [data.qpos, data.qvel, model.geom_rgba, model.geom_size, model.body_pos, model.body_quat]
        return zlib.crc32(b"".join(array.tobytes() for array in held), sim.variation)

    first = fingerprint(11)
    assert fingerprint(12) != first
    assert fingerprint(11) == first


def snapshots_continue_to_the_last_bit(sim: Simulation, variation: int, every: int = 24, ahead: int = 6) -> None:
    """From a snapshot at `every` so many steps, what comes `ahead` steps later is what came then."""

    def present() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        return sim.data.qpos.copy(), sim.data.eq_active.copy(), expert_action(sim), sorted(sim.task.objects(sim))

    sim.reset(7, variation=variation, arm_noise=0.12)
    snapshots, after = [], []
    while not sim.success and sim.steps < sim.task.max_steps:
        if sim.steps % every == 0:
            snapshots.append(sim.snapshot())
        if sim.steps % every == ahead:
            after.append(present())
        act(sim)
    assert sim.success and after
    sim.reset(8, variation=(variation + 1) % sim.task.variation_count)
    act(sim, 3)
    for snapshot, (*arrays, names) in list(zip(snapshots, after, strict=False))[::-1]:
        sim.restore(snapshot)
        act(sim, ahead)
        *again, words = present()
        assert all(np.array_equal(one, other) for one, other in zip(again, arrays, strict=True)) and words == names
