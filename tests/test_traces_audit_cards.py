"""The audit reads other people's data by their cards: layouts, frames, units, sizes, and what they leave open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from llarva.cards import Card, load_card
from llarva.episodes.records import Episode, Step, encode_image
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.robots import ROBOTS
from llarva.sources.imported import card_as_stored
from llarva.traces.audit import CHECKS, audit_episode, look
from llarva.traces.audit_findings import AuditError, AuditLimits, Finding, View, make_view
from llarva.traces.audit_motion import pairings
from llarva.traces.audit_records import stored_size
from llarva.traces.audit_table import audit_store

CARDS = Path(__file__).parent.parent / "data_cards"
COUNT = 60
TIME = np.linspace(0, 1, COUNT)
IMAGE = encode_image(np.zeros((128, 128, 3), np.uint8))


def card_of(name: str) -> Card:
    return load_card(CARDS / f"{name}.md")


def episode_of(card: Card, states: np.ndarray, actions: np.ndarray, **parts: np.ndarray) -> Episode:
    """An episode of a card; `parts` are columns of its steps, beside a gripper that stays open."""
    columns = {"gripper_open": np.ones(COUNT)} | parts
    steps = tuple(
        Step(
            state=np.asarray(states[t], np.float32),
            image=IMAGE,
            action=None if t == COUNT - 1 else np.asarray(actions[t], np.float32),
            timestamp=t / (card.rate_hz or 10),
            **{name: float(column[t]) if column.ndim == 1 else column[t].astype(np.float32)
               for name, column in columns.items()},
        )  # fmt: skip
        for t in range(COUNT)
    )
    said = ("pick it up",)
    return Episode("train-00007", card.name, card.robot, card.control_modes[0], said, card.name, 0, -1, None, steps)


def verdict(view: View, check: str) -> tuple[Finding, ...] | None:
    return CHECKS[check](view, AuditLimits())


def ours(robot: str, mode: str, names: list[str]) -> Card:
    """A card whose actions are angles of joints."""
    card = replace(card_of("toto"), robot=robot, control_modes=(mode,), rate_hz=30.0)
    return replace(card, actions={mode: tuple((name, "rad") for name in names)})


# ---------------------------------------------------------------- actions


def test_absolute_targets_are_not_motion_per_step() -> None:
    joints = np.stack([1.2 * np.sin(3 * TIME + k) - 0.5 for k in range(6)], axis=1)
    card = ours("ur5", "joint_position", [f"joint {k}" for k in range(6)])
    view = make_view(episode_of(card, joints, np.roll(joints, -1, axis=0)), card=card)
    assert verdict(view, "action_range") is None, "nobody knows this robot's limits"
    relative = ours("ur5", "joint_motion", [f"joint {k}" for k in range(6)])
    view = make_view(episode_of(relative, joints, np.roll(joints, -1, axis=0)), card=relative)
    assert verdict(view, "action_range"), "as motion per step the same numbers are far too large"


def test_absolute_joints_have_the_limits_of_the_robot() -> None:
    robot = ROBOTS["panda"]
    card = ours("panda", "joint_position", [f"joint {k}" for k in range(7)])
    joints = np.linspace(robot.joint_lower, robot.joint_upper, COUNT)
    assert verdict(make_view(episode_of(card, joints, joints), card=card), "action_range") == ()
    far = joints.copy()
    far[20, 3] = 0.5  # the elbow does not stretch so far
    (found,) = verdict(make_view(episode_of(card, joints, far), card=card), "action_range") or ()
    assert found.steps == (20, 21) and "joint 3 is 0.5" in found.message


def test_hand_poses_are_not_motion_per_step() -> None:
    card = card_of("toto")
    layout = (*((axis, "m") for axis in "xyz"), *((f"turn {axis}", "rad") for axis in "xyz"), ("gripper", "1 = open"))
    card = replace(card, control_modes=("end_effector_pose",), actions={"end_effector_pose": layout})
    poses = np.column_stack([np.full((COUNT, 3), 0.6), np.full((COUNT, 3), 3.1), np.ones(COUNT)])
    assert verdict(make_view(episode_of(card, np.zeros((COUNT, 7)), poses), card=card), "action_range") == ()
    poses[5, 6] = -1
    assert verdict(make_view(episode_of(card, np.zeros((COUNT, 7)), poses), card=card), "action_range")


def test_relative_joints_are_compared_with_the_joints() -> None:
    joints = np.stack([0.8 * np.sin(5 * TIME + k) for k in range(7)], axis=1)
    moves = np.diff(joints, axis=0, append=joints[-1:])
    card = replace(ours("panda", "joint_motion", [f"joint {k}" for k in range(7)]), fields=None)
    view = make_view(episode_of(card, joints, moves), card=card)
    assert [pair.kind for pair in pairings(view, AuditLimits())] == ["joints"]
    assert verdict(view, "consistency") == () == verdict(view, "action_sign")
    against = make_view(episode_of(card, joints, -moves), card=card)
    assert verdict(against, "consistency") and verdict(against, "action_sign")


# ---------------------------------------------------------------- what cannot be told


def test_equal_pictures_without_states_tell_nothing() -> None:
    card = card_of("roboturk")
    view = make_view(episode_of(card, np.zeros((COUNT, 0)), np.zeros((COUNT, 7))), card=card)
    assert verdict(view, "duplicates") is None


def test_errors_of_a_check_name_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(view: View, limits: AuditLimits) -> None:
        raise ZeroDivisionError("division by zero")

    card = card_of("roboturk")
    episode = episode_of(card, np.zeros((COUNT, 0)), np.zeros((COUNT, 7)))
    monkeypatch.setattr("llarva.traces.audit.CHECKS", {"timing": broken})
    with pytest.raises(AuditError, match="'train-00007': the check 'timing' cannot be made: division by zero"):
        audit_episode(episode, card=card)


@pytest.mark.parametrize("turned_round", [False, True])
def test_a_gripper_known_by_its_commands_obeys_them_anyhow(turned_round: bool) -> None:
    card = card_of("toto")
    assert card.fields is not None and card.fields.gripper == "command"
    told = (np.arange(COUNT) // 15 % 2).astype(float)
    told = 1 - told if turned_round else told
    actions = np.column_stack([np.zeros((COUNT, 6)), told])
    episode = episode_of(card, np.zeros((COUNT, 7)), actions, gripper_open=np.append(told[:1], told[:-1]))
    assert "gripper" in look(make_view(episode, card=card))[1]


def test_seven_numbers_are_joints_only_where_the_card_says_so() -> None:
    card = card_of("stanford_robocook")
    places = np.stack([0.4 + 0.2 * np.sin(4 * TIME), 0.1 * np.cos(6 * TIME), 0.2 + 0.1 * TIME], axis=1)
    angles = np.stack([np.full(COUNT, 3.0), 0.2 * np.sin(5 * TIME), 0.5 * TIME, np.full(COUNT, 0.04)], axis=1)
    states = np.column_stack([places, angles])
    view = make_view(episode_of(card, states, np.zeros((COUNT, 7)), end_effector_position=places), card=card)
    assert view.joints is None and verdict(view, "pose") is None
    card = card_of("nyu_franka_play_dataset")
    assert card.fields is not None
    joints = np.stack([0.3 * np.sin(3 * TIME + k) for k in range(7)], axis=1)
    wide = np.column_stack([joints, np.zeros((COUNT, len(card.fields.state_layout) - 7))])
    seen = make_view(episode_of(card, wide, np.zeros((COUNT, 15))), card=card).joints
    assert seen is not None and np.allclose(seen, joints, atol=1e-6), "among other numbers they are found"


def test_axes_that_nobody_has_verified_are_not_judged() -> None:
    card = card_of("maniskill_dataset")
    assert card.fields is not None and card.fields.frame is None
    hand = Rotation.from_euler("xyz", [np.pi, 0, np.pi / 2])
    moves = np.stack([0.01 * np.sin(5 * TIME), 0.01 * np.cos(4 * TIME), 0.01 * np.sin(3 * TIME + 1)], axis=1)
    places = np.cumsum(hand.apply(moves), axis=0) - hand.apply(moves)
    episode = episode_of(
        card, np.zeros((COUNT, 9)), np.column_stack([moves, np.zeros((COUNT, 4))]), end_effector_position=places,
        end_effector_quaternion_xyzw=np.tile(hand.as_quat(), (COUNT, 1)),
    )  # fmt: skip
    assert verdict(make_view(episode, card=card), "consistency") is None
    for frame, right in (("end_effector", True), ("base", False)):
        told = replace(card, fields=replace(card.fields, frame=frame))
        assert (verdict(make_view(episode, card=told), "consistency") == ()) == right


# ---------------------------------------------------------------- pictures


def test_imported_pictures_have_the_size_of_the_import(tmp_path: Path) -> None:
    card = card_of("bridge")
    assert card.camera.image_size == (480, 640)
    with EpisodeWriter(tmp_path / "episodes", card.name) as writer:
        writer.write(episode_of(card, np.zeros((COUNT, 7)), np.zeros((COUNT, 7))))
    store = EpisodeStore(tmp_path / "episodes")
    for size, number in (([128, 128], 0), ([96, 128], 1), (None, 1)):
        (tmp_path / "import.json").write_text(json.dumps({"source": "rlds", "image_size": size}))
        table = audit_store(store, tmp_path / f"audit-{size}", card=card)
        assert table.counts()["card"] == (number, 1), size
    for camera, number in ((card.camera.key, 1), ("steps/observation/wrist", 0)):
        (tmp_path / "import.json").write_text(json.dumps({"image_size": None, "camera": camera}))
        assert audit_store(store, tmp_path / f"audit-{number}", card=card).counts()["card"] == (number, 1), camera
    with pytest.raises(AuditError, match="another card"):
        audit_store(store, tmp_path / "audit-0", card=replace(card, rate_hz=99.0))
    (tmp_path / "import.json").unlink()
    assert card_as_stored(card, store.folder) is card and card_as_stored(None, store.folder) is None


def test_pictures_that_were_turned_are_upright() -> None:
    card = card_of("bridge")
    turned = replace(card, camera=replace(card.camera, turn=90))
    assert (stored_size(card), stored_size(turned)) == ((480, 640), (640, 480))
    assert stored_size(card_of("tabletop")) is None, "made in any size"
    episode = episode_of(card, np.zeros((COUNT, 7)), np.zeros((COUNT, 7)))
    large = encode_image(np.zeros((480, 640, 3), np.uint8))
    whole = replace(episode, steps=tuple(replace(step, image=large) for step in episode.steps))
    assert verdict(make_view(whole, card=card), "card") == () and verdict(make_view(whole, card=turned), "card")
    mixed = replace(whole, steps=(*whole.steps[:-1], replace(whole.steps[-1], image=IMAGE)))
    (found,) = verdict(make_view(mixed, card=card), "card") or ()
    assert "several sizes" in found.message
