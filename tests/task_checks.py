"""What holds for every task of the tabletop, as functions that the tests of single tasks call."""

import zlib
from collections.abc import Callable, Sequence

import mujoco
import numpy as np

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


def move(sim: Simulation, body: str, position: Sequence[float], yaw: float = 0.0) -> None:
    sim.place(body, position, yaw)
    sim.data.joint(body).qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)


def expert_succeeds(sim: Simulation, variations: Sequence[int]) -> None:
    for variation in variations:
        sim.reset(20 + variation, variation=variation, arm_noise=0.12)
        assert not sim.task.success(sim), "before anything has moved"
        assert run_expert(sim), (variation, sim.failure)
        assert sim.steps < 0.8 * sim.task.max_steps


def still_robot_never_succeeds(sim: Simulation) -> None:
    for seed in range(2):
        sim.reset(seed)
        before = sim.data.qpos[9:].copy()
        for _ in range(40):
            sim.advance([*np.zeros(7), float(seed)])
            assert not sim.success and sim.failure is None
        assert np.allclose(sim.data.qpos[9:], before, atol=0.004), "things lie still"


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


def marks_are_seen(sim: Simulation, seeds: Sequence[int]) -> None:
    """Every mark is inside the picture, and its own pixels are where it points at."""
    for seed in seeds:
        sim.reset(seed)
        picture, names = sim.segmentation(128)
        for name, mark in sim.task.objects(sim).items():
            pixel, depth = project(mark.point, *sim.camera())
            assert depth > 0 and np.all((pixel > 3) & (pixel < 125)), (seed, name, pixel)
            x, y = pixel.astype(int)
            assert names.index(name) + 1 in picture[y - 2 : y + 3, x - 2 : x + 3], (seed, name)


def same_seed_same_bytes(sim: Simulation) -> None:
    def fingerprint() -> int:
        sim.reset(11, arm_noise=0.12)
        act(sim, 25)
        held = [sim.data.qpos, sim.model.geom_rgba, sim.model.body_pos, sim.model.geom_size]
        return zlib.crc32(b"".join(array.tobytes() for array in held))

    first = fingerprint()
    sim.reset(12)
    act(sim, 5)
    assert fingerprint() == first


def snapshots_continue_to_the_last_bit(sim: Simulation, variation: int, every: int = 24) -> None:
    sim.reset(7, variation=variation, arm_noise=0.12)
    snapshots, after = [], []
    while not sim.success and sim.steps < sim.task.max_steps:
        if sim.steps % every == 0:
            snapshots.append(sim.snapshot())
        if sim.steps % every == 6:
            after.append((sim.data.qpos.copy(), sim.data.eq_active.copy(), expert_action(sim)))
        act(sim)
    assert sim.success
    sim.reset(8, variation=(variation + 1) % sim.task.variation_count)
    act(sim, 3)
    for snapshot, (qpos, active, action) in list(zip(snapshots, after, strict=False))[::-1]:
        sim.restore(snapshot)
        act(sim, 6)
        assert np.array_equal(sim.data.qpos, qpos) and np.array_equal(sim.data.eq_active, active)
        assert np.array_equal(expert_action(sim), action)
