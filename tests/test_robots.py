"""Robots, control modes and kinematics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llarva.kinematics import (
    R_DOWN,
    forward_kinematics,
    matrix_from_quaternion_xyzw,
    proprioception,
    quaternion_xyzw,
    rotation_matrix,
    rotation_vector,
)
from llarva.robots import (
    CONTROL_MODES,
    ROBOTS,
    ROUNDING,
    ActionError,
    RobotError,
    check_action,
    clip_velocities,
    get_control_mode,
    get_robot,
)

PANDA = get_robot("panda")
LOWER, UPPER, _ = PANDA.limits()
joints = st.tuples(*(st.floats(low, high) for low, high in zip(LOWER, UPPER, strict=True))).map(np.array)
vectors = arrays(np.float64, 3, elements=st.floats(-1.5, 1.5))


def test_registries_agree():
    assert len(ROBOTS) == 13 + 1  # and one name for data of several arms
    for mode in CONTROL_MODES.values():
        assert len(mode.action_names) == len(mode.action_units) == mode.action_size
        assert mode.action_names[-1] == "gripper" and mode.action_units[-1] == "1 = open"
    for robot in ROBOTS.values():
        assert set(robot.control_modes) <= set(CONTROL_MODES) and robot.source
        for limits in (robot.joint_names, robot.joint_lower, robot.joint_upper, robot.velocity_limits, robot.home):
            assert not limits or len(limits) == robot.joint_count
    assert len({robot.wording for robot in ROBOTS.values()}) == len(ROBOTS)


def test_registries_cannot_be_changed():
    with pytest.raises(TypeError):
        ROBOTS["mine"] = PANDA  # type: ignore[index]
    with pytest.raises(AttributeError):
        PANDA.wording = "x"  # type: ignore[misc]


@pytest.mark.parametrize("look_up, choice", [(get_robot, "panda"), (get_control_mode, "joint_velocity")])
def test_unknown_names_list_the_choices(look_up, choice):
    with pytest.raises(RobotError, match=choice):
        look_up("nonsense")


def test_unknown_limits_are_refused_not_invented():
    with pytest.raises(RobotError, match=r"ur5.*panda"):
        get_robot("ur5").limits()
    with pytest.raises(RobotError, match="panda"):
        forward_kinematics(get_robot("ur5"), np.zeros(6))


@pytest.mark.parametrize(
    "action, message",
    [
        ([0.0] * 7, r"shape \(8,\)"),
        (np.zeros((1, 8)), r"shape \(8,\)"),
        (["x"] * 8, "8 numbers"),
        (None, "shape"),
        ([0] * 7 + [np.inf], "gripper"),
        ([np.nan] + [0] * 7, "joint 1 velocity"),
        ([1e400] + [0] * 7, "joint 1 velocity"),
        ([10**400] + [0] * 7, "8 numbers"),
    ],
)
def test_bad_actions_are_refused(action, message):
    with pytest.raises(ActionError, match=message):
        check_action(action, "joint_velocity")


def test_checked_actions_keep_their_precision():
    third = 1 / 3
    assert check_action([third] * 7, "end_effector_delta").tolist() == [third] * 7


@given(arrays(np.float64, 7, elements=st.floats(-10, 10)))
@settings(max_examples=50, deadline=None)
def test_clipping_counts_what_it_changes(velocities):
    clipped, count = clip_velocities(PANDA, velocities)
    assert np.all(np.abs(clipped) <= PANDA.velocity_limits)
    assert count == np.count_nonzero(np.abs(velocities) > np.array(PANDA.velocity_limits) + ROUNDING)
    assert clip_velocities(PANDA, clipped)[1] == 0
    assert clip_velocities(PANDA, clipped.astype(np.float32))[1] == 0, "a limit in float32 is not too fast"


def test_clipping_refuses_other_arms():
    with pytest.raises(RobotError, match="7 joints"):
        clip_velocities(PANDA, np.zeros(6))


@given(vectors)
@settings(max_examples=50, deadline=None)
def test_rotations_round_trip(vector):
    matrix = rotation_matrix(vector)
    assert np.allclose(rotation_vector(matrix), vector, atol=1e-9)
    quaternion = quaternion_xyzw(matrix)
    assert quaternion[3] >= 0 and np.isclose(np.linalg.norm(quaternion), 1)
    assert np.allclose(matrix_from_quaternion_xyzw(-2 * quaternion), matrix, atol=1e-12)


# Poses of the Panda model that the simulator loads, read from its "tcp" site: an independent implementation.
MUJOCO_POSES = [
    (PANDA.home, [0.550606429, 0.0, 0.701397572], [0.173615753, 0.0, -0.984813470]),
]


@pytest.mark.parametrize("positions, place, fingers", MUJOCO_POSES)
def test_forward_kinematics_known_pose(positions, place, fingers):
    position, rotation = forward_kinematics(PANDA, positions)
    assert np.allclose(position, place, atol=1e-8) and np.allclose(rotation[:, 2], fingers, atol=1e-8)


@given(joints, st.floats(-1, 1))
@settings(max_examples=50, deadline=None)
def test_first_joint_turns_everything_about_the_vertical(positions, angle):
    before, rotation = forward_kinematics(PANDA, positions)
    after, turned = forward_kinematics(PANDA, positions + np.array([angle, 0, 0, 0, 0, 0, 0]))
    turn = rotation_matrix([0, 0, angle])
    assert np.allclose(turn @ before, after) and np.allclose(turn @ rotation, turned)
    assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.isclose(np.linalg.det(rotation), 1)


def test_forward_kinematics_batches():
    rng = np.random.default_rng(0)
    positions = rng.uniform(LOWER, UPPER, (2, 3, 7))
    places, rotations = forward_kinematics(PANDA, positions)
    assert places.shape == (2, 3, 3) and rotations.shape == (2, 3, 3, 3)
    assert np.allclose(places[1, 2], forward_kinematics(PANDA, positions[1, 2])[0])
    with pytest.raises(RobotError, match="7 joints"):
        forward_kinematics(PANDA, np.zeros(8))


def test_forward_kinematics_equals_the_simulator():
    scene = pytest.importorskip("llarva.tabletop.scene")
    mujoco = pytest.importorskip("mujoco")
    model = scene.base_scene().compile()
    data = mujoco.MjData(model)
    address = [model.joint(name).qposadr[0] for name in PANDA.joint_names]
    rng = np.random.default_rng(1)
    base = model.body("panda_link0").id
    for _ in range(20):
        positions = rng.uniform(LOWER, UPPER)
        data.qpos[address] = positions
        mujoco.mj_kinematics(model, data)
        place, rotation = forward_kinematics(PANDA, positions)
        frame = data.xmat[base].reshape(3, 3)
        assert np.allclose(frame.T @ (data.site("tcp").xpos - data.xpos[base]), place, atol=1e-6)
        assert np.allclose(frame.T @ data.site("tcp").xmat.reshape(3, 3), rotation, atol=1e-6)


@given(joints, st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_proprioception_holds_the_pose(positions, opening):
    state = proprioception(PANDA, "end_effector_delta", positions, opening)
    place, rotation = forward_kinematics(PANDA, positions)
    assert state.dtype == np.float32 and state.shape == (get_control_mode("end_effector_delta").state_size,)
    assert np.allclose(state[:3], place, atol=1e-6) and np.isclose(state[6], opening, atol=1e-6)
    assert np.allclose(rotation_matrix(state[3:6]) @ R_DOWN, rotation, atol=1e-5)
    assert np.allclose(proprioception(PANDA, "joint_velocity", positions, opening)[:7], positions, atol=1e-6)


def test_proprioception_refuses():
    with pytest.raises(RobotError, match="7 joints"):
        proprioception(PANDA, "joint_velocity", np.zeros(6), 1)
    with pytest.raises(RobotError, match="joint_velocity"):
        proprioception(PANDA, "joint_speed", np.zeros(7), 1)
