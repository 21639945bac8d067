"""The simulation: kinematics, exactness, hostile actions, motion."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from task_checks import act

from llarva.kinematics import forward_kinematics, rotation_vector
from llarva.robots import ROUNDING, ActionError, get_robot
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.inverse_kinematics import turn_of, turned_by
from llarva.tabletop.scene import ROBOT_BASE
from llarva.tabletop.simulation import SET_POINT_LEASH, Simulation
from llarva.tabletop.tasks.registry import TASKS, get_task

PANDA = get_robot("panda")


@pytest.fixture(scope="module")
def buttons() -> Simulation:
    return Simulation(get_task("push_buttons"))


def digest(sim: Simulation, steps: int = 12) -> str:
    """Hash of the states and of every fourth picture of an expert's first steps."""
    total = hashlib.sha256()
    for step in range(steps):
        if step % 4 == 0:
            total.update(sim.render().tobytes())
            total.update(sim.segmentation()[0].tobytes())
        total.update(sim.data.qpos.tobytes() + sim.data.qvel.tobytes() + expert_action(sim).tobytes())
        act(sim, 1)
    return total.hexdigest()


# ---- kinematics


@settings(max_examples=100, deadline=None)
@given(share=arrays(float, 7, elements=st.floats(0.0, 1.0)))
def test_forward_kinematics_is_that_of_the_scene(share: np.ndarray, buttons: Simulation) -> None:
    lower, upper, _ = PANDA.limits()
    joints = lower + share * (upper - lower)
    position, rotation = forward_kinematics(PANDA, joints)
    there, turned = buttons.kinematics.pose(joints)
    assert np.abs(position + ROBOT_BASE - there).max() < 1e-6
    assert np.abs(rotation - turned).max() < 1e-6


@settings(max_examples=100, deadline=None)
@given(vector=arrays(float, 3, elements=st.floats(-1.8, 1.8)))
def test_rotation_vectors_agree_with_the_package(vector: np.ndarray) -> None:
    assert np.allclose(turn_of(turned_by(vector)), vector, atol=1e-9)
    assert np.allclose(rotation_vector(turned_by(vector)), vector, atol=1e-9)


def test_inverse_kinematics_is_exact_nearby_and_harmless_far_away(buttons: Simulation) -> None:
    buttons.reset(0)
    joints = buttons.joint_positions
    position, rotation = buttons.kinematics.pose(joints)
    found, left = buttons.kinematics.solve(position + [0.02, -0.01, -0.02], rotation, joints)
    assert left < 1e-4 and np.abs(found - joints).max() < 0.2
    found, left = buttons.kinematics.solve(position + [9.0, 0, 0], rotation, joints)
    assert left > 1 and np.all(np.isfinite(found))
    assert np.all((found >= PANDA.limits()[0]) & (found <= PANDA.limits()[1]))


# ---- exactness


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_bytes_whatever_happened_before(task: str) -> None:
    first, second = Simulation(get_task(task)), Simulation(get_task(task))
    first.reset(11, arm_noise=0.1)
    second.reset(4)
    run_expert(second)
    second.render()
    second.reset(11, arm_noise=0.1)
    assert digest(first) == digest(second)
    first.reset(12, arm_noise=0.1)
    second.reset(11, arm_noise=0.1)
    assert digest(first) != digest(second)


def test_same_bytes_in_another_process(buttons: Simulation) -> None:
    buttons.reset(21, variation=25)
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_tabletop import *\n"
        "sim = Simulation(get_task('push_buttons')); sim.reset(21, variation=25); print(digest(sim))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(buttons)


@pytest.mark.parametrize("task", TASKS)
def test_a_snapshot_continues_to_the_last_bit(task: str) -> None:
    sim = Simulation(get_task(task))
    sim.reset(5, arm_noise=0.1)
    length = len(sim.data.qpos)
    run_expert(sim)
    moments = [sim.steps // 3, 2 * sim.steps // 3]  # something is touched or held by then
    sim.reset(5, arm_noise=0.1)
    for moment in moments:
        act(sim, moment - sim.steps)
        picture, kept = sim.render(), pickle.loads(pickle.dumps(sim.snapshot()))
        assert run_expert(sim)
        end, steps, last = sim.data.qpos.copy(), sim.steps, sim.render()
        sim.reset(99)
        sim.restore(kept)
        assert np.array_equal(sim.render(), picture)
        assert run_expert(sim) and sim.steps == steps
        assert np.array_equal(sim.data.qpos, end) and np.array_equal(sim.render(), last) and len(end) == length
        sim.restore(kept)


def test_positions_are_fresh_after_a_step(buttons: Simulation) -> None:
    buttons.reset(3)
    act(buttons, 5)
    position, _ = forward_kinematics(PANDA, buttons.joint_positions)
    assert np.abs(position + ROBOT_BASE - buttons.end_effector_pose()[0]).max() < 1e-6


# ---- actions


HOSTILE = [
    [], [0.0] * 6, [0.0] * 9, [[0.0] * 8], [np.nan] + [0.0] * 7, [0.0] * 7 + [np.inf], "open", None,
    ["a"] * 8, [1e400] * 8, [0.0] * 7 + [None], {"a": 1}, [1j] * 8,
]  # fmt: skip


@pytest.mark.parametrize("action", HOSTILE, ids=str)
def test_hostile_actions_move_nothing(action: object, buttons: Simulation) -> None:
    buttons.reset(1)
    before, commanded = buttons.data.qpos.copy(), buttons.commanded.copy()
    with pytest.raises(ActionError):
        buttons.advance(action)  # type: ignore[arg-type]
    with pytest.raises(ActionError):
        buttons.end_effector_to_joint_velocity(action)  # type: ignore[arg-type]
    assert np.array_equal(before, buttons.data.qpos) and buttons.steps == 0
    assert np.array_equal(commanded, buttons.commanded)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=arrays(float, (4, 8), elements=st.floats(-1e6, 1e6)))
def test_any_finite_action_leaves_a_sane_robot(actions: np.ndarray, buttons: Simulation) -> None:
    buttons.reset(2)
    limit = np.array(PANDA.velocity_limits)
    for action in actions:
        buttons.advance(action)
        assert np.all(np.abs(buttons.joint_velocity_command) <= limit.astype(np.float32))
        assert np.all(np.abs(buttons.commanded - buttons.joint_positions) < SET_POINT_LEASH + 0.1)
    assert np.all(np.isfinite(buttons.data.qpos)) and np.abs(buttons.data.qvel[buttons.dofs]).max() < 6
    assert buttons.clipped == int(np.any(np.abs(actions[:, :7]) > limit + ROUNDING, axis=1).sum())


def test_joint_velocities_are_followed_and_nothing_drifts(buttons: Simulation) -> None:
    buttons.reset(0)
    wanted = np.array([0.3, -0.2, 0.25, 0.2, -0.4, 0.3, 0.5])
    for _ in range(20):
        buttons.advance([*wanted, 1])
    assert np.abs(buttons.data.qvel[buttons.dofs] - wanted).max() < 0.05
    for _ in range(20):
        buttons.advance([0.0] * 7 + [1])
    still = buttons.joint_positions
    for _ in range(100):
        buttons.advance([0.0] * 7 + [1])
    assert np.abs(buttons.joint_positions - still).max() < 1e-4


def test_an_end_effector_displacement_arrives(buttons: Simulation) -> None:
    buttons.reset(0)
    start, rotation = buttons.end_effector_pose()
    move = np.array([0.012, -0.008, -0.01, 0.02, 0.0, 0.05, 1.0])
    for _ in range(10):
        buttons.advance(buttons.end_effector_to_joint_velocity(move))
    moved, turned = buttons.end_effector_pose()
    assert np.linalg.norm(moved - start - 10 * move[:3]) < 0.02
    assert np.linalg.norm(turn_of(turned @ rotation.T) - 10 * move[3:6]) < 0.12


def test_the_gripper_opens_and_closes(buttons: Simulation) -> None:
    buttons.reset(0)
    assert buttons.gripper_opening > 0.98
    for command, reached in ((0.0, 0.02), (1.0, 0.98), (0.5, 0.02)):
        for _ in range(15):
            buttons.advance([0.0] * 7 + [command])
        assert abs(buttons.gripper_opening - reached) < 0.03, "0.5 means closed"


# ---- push_buttons


def test_pressing_needs_the_arm_and_the_stated_order(buttons: Simulation) -> None:
    buttons.reset(6, variation=40)
    for _ in range(40):
        buttons.advance([0.0] * 7 + [0.0])
    assert buttons.task.pressed == [] and not buttons.success and buttons.failure is None
    before = buttons.render()
    assert run_expert(buttons) and buttons.task.pressed == [0, 1, 2]
    lit = [tuple(buttons.model.geom(f"base{i}").rgba) for i in range(3)]
    assert len(set(lit)) == 1 and not np.array_equal(before, buttons.render())
