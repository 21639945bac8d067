"""Episode records: images, rules, equality, actions in each control mode."""

from dataclasses import replace

import numpy as np
import pytest
from episode_samples import make_episode, with_step
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.episodes.records import (
    EpisodeError,
    actions_in,
    check_episode,
    decode_image,
    decode_mask,
    encode_image,
    episodes_equal,
    image_size,
)
from llarva.kinematics import rotation_matrix
from llarva.robots import ControlMode, RobotError


def test_images_round_trip():
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(image)), image)
    assert np.array_equal(decode_mask(encode_image(image[..., 0])), image[..., 0])
    assert image_size(encode_image(image)) == (5, 7)
    assert encode_image(image) == encode_image(image.copy())


@pytest.mark.parametrize("image", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)), np.zeros(3, np.uint8)])
def test_other_images_are_refused(image):
    with pytest.raises(EpisodeError, match="uint8"):
        encode_image(image)


@given(st.binary(max_size=200), st.integers(0, 42))
@settings(max_examples=60, deadline=None)
def test_damaged_images_raise_one_kind_of_error(noise, cut):
    whole = encode_image(np.zeros((4, 4, 3), np.uint8))
    for data in (noise, whole[:cut], whole[:20] + noise):
        with pytest.raises(EpisodeError):
            decode_image(data)


def test_image_bombs_are_refused():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
    with pytest.raises(EpisodeError):
        decode_image(buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="TIFF")
    with pytest.raises(EpisodeError, match="PNG or JPEG"):
        decode_image(buffer.getvalue())


@pytest.mark.parametrize(
    "t, changes, message",
    [
        (1, {"state": np.zeros(6, np.float32)}, "step 1: state"),
        (0, {"state": np.zeros((1, 7), np.float32)}, "step 0: state"),
        (1, {"state": np.zeros(7, np.int64)}, "float32"),
        (2, {"state": np.full(7, np.nan, np.float32)}, "not finite"),
        (1, {"gripper_open": 1.5}, r"gripper_open must be in \[0, 1\]"),
        (1, {"gripper_open": float("nan")}, "gripper_open"),
        (2, {"action": None}, "step 2: all steps but the last"),
        (4, {"action": np.zeros(8, np.float32)}, "the last step has no action"),
        (1, {"action": np.zeros(7, np.float32)}, "action must have shape"),
        (1, {"action": np.full(8, np.inf, np.float32)}, "not finite"),
        (3, {"end_effector_quaternion_xyzw": np.zeros(4, np.float32)}, "length 1"),
        (3, {"camera_pose": np.eye(3)}, r"camera_pose must have shape \(4, 4\)"),
        (3, {"joint_velocity_command": np.zeros((7, 1))}, "joint_velocity_command"),
    ],
)
def test_rules_of_the_record(t, changes, message):
    with pytest.raises(EpisodeError, match=message):
        check_episode(with_step(make_episode(), t, **changes))


@pytest.mark.parametrize("changes", [{"steps": ()}, {"episode_id": ""}, {"instructions": ()}])
def test_empty_episodes_are_refused(changes):
    with pytest.raises(EpisodeError, match="at least one"):
        check_episode(replace(make_episode(), **changes))


def test_equality_sees_every_field():
    episode = make_episode()
    assert episodes_equal(episode, make_episode())
    assert not episodes_equal(episode, replace(episode, success=True))
    assert not episodes_equal(episode, replace(episode, steps=episode.steps[:-1]))
    assert not episodes_equal(episode, with_step(episode, 2, object_points={}))
    assert not episodes_equal(episode, with_step(episode, 2, state=episode.steps[2].state.astype(np.float64)))


def test_actions_in_each_mode():
    episode = make_episode()
    own = actions_in(episode, "joint_velocity")
    assert own.dtype == np.float32 and np.array_equal(own, [step.action for step in episode.steps[:-1]])
    other = actions_in(replace(episode, control_mode="end_effector_delta"), "joint_velocity")
    assert np.array_equal(other[:, :7], [step.joint_velocity_command for step in episode.steps[:-1]])
    assert np.array_equal(other[:, 7], own[:, 7])


def test_measured_deltas_lead_from_pose_to_pose():
    from llarva.kinematics import matrix_from_quaternion_xyzw

    episode = make_episode()
    deltas = actions_in(episode, "end_effector_delta")
    for delta, now, then in zip(deltas, episode.steps, episode.steps[1:], strict=False):
        assert np.allclose(now.end_effector_position + delta[:3], then.end_effector_position, atol=1e-5)
        turned = rotation_matrix(delta[3:6]) @ matrix_from_quaternion_xyzw(now.end_effector_quaternion_xyzw)
        assert np.allclose(turned, matrix_from_quaternion_xyzw(then.end_effector_quaternion_xyzw), atol=1e-5)


def test_gripper_command_without_actions_is_what_happened_next():
    episode = make_episode(actions=False)
    grip = actions_in(replace(episode, control_mode="end_effector_delta"), "joint_velocity")[:, -1]
    assert np.array_equal(grip, [float(step.gripper_open > 0.5) for step in episode.steps[1:]])


def test_actions_that_cannot_be_had():
    bare = make_episode(actions=False, poses=False)
    for mode in ("joint_velocity", "end_effector_delta"):
        with pytest.raises(EpisodeError, match="step 0"):
            actions_in(bare, mode)
    with pytest.raises(RobotError, match="control mode"):
        actions_in(bare, "nonsense")
    odd = ControlMode("normalised", "normalised", ("a",) * 8, ("unverified",) * 8, ("s",), own_state=True)
    with pytest.raises(EpisodeError, match="in 'normalised' cannot be told. Valid modes: its own, joint_velocity"):
        actions_in(make_episode(), odd)
    assert actions_in(make_episode(length=1), "joint_velocity").shape == (0, 8)
    assert actions_in(make_episode(length=1), "end_effector_delta").shape == (0, 7)
