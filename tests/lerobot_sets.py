"""LeRobot data sets for the tests: a card for those that `lerobot` wrote, and episodes of ours to write."""

from pathlib import Path

import numpy as np

from llarva.cards import Card, load_card
from llarva.episodes.records import Episode, Step, encode_image
from llarva.traces.projection import Trace

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = (6, 9, 4)
TASKS = ("open the drawer", "push the red button", "open the drawer")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"

CARD = """---
name: tiny
title: Moving square
format: lerobot
robot: panda
control_modes: [joint_velocity, joint_motion]
actions:
  joint_velocity: [joint 1 velocity: rad/s, joint 2 velocity: rad/s, joint 3 velocity: rad/s, joint 4 velocity: rad/s,
    joint 5 velocity: rad/s, joint 6 velocity: rad/s, joint 7 velocity: rad/s, gripper: 1 = open]
  joint_motion: [first: rad/s, gripper: 1 = open]
rate_hz: 10
camera: {key: observation.images.front, image_size: [48, 64], calibrated: false}
language: task
traces: none
licence: Apache-2.0
size: {episodes: 3, steps: 19}
homepage: none
citation: none
fields:
  builder: tiny
  frame: none
  actions:
    joint_velocity:
      - {field: action, take: [0, 1, 2, 3, 4, 5, 6]}
      - {field: action, take: [7], gripper: {closed: 0, open: 1}}
    joint_motion:
      - {field: action, take: [0], scale: -2}
      - {field: action, take: [7], gripper: {closed: 1, open: 0}}
  state:
    layout: [joint 1: rad, joint 2: rad, joint 3: rad, joint 4: rad, joint 5: rad, joint 6: rad, joint 7: rad]
    parts: [{field: observation.state, take: [0, 1, 2, 3, 4, 5, 6]}]
  gripper: {field: observation.state, take: [7], gripper: {closed: 0, open: 1}}
---
A white square that moves to the lower right.
"""


def card_of(folder: Path, text: str = CARD) -> Card:
    """The card, by way of a file."""
    (folder / "tiny.md").write_text(text, encoding="utf-8")
    return load_card(folder / "tiny.md")


def golden_state(t: int, length: int) -> np.ndarray:
    """What was written as `observation.state` of frame t."""
    return np.append(np.sin(0.1 * t + np.arange(7)), float(t < length // 2)).astype(np.float32)


def golden_action(t: int, length: int) -> np.ndarray:
    """What was written as `action` of frame t."""
    return np.append(0.1 * np.cos(0.1 * t + np.arange(7)), float(t + 1 < length // 2)).astype(np.float32)


def golden_front(episode: int, t: int) -> np.ndarray:
    """The picture of the front camera before it was encoded."""
    y, x = np.mgrid[:48, :64]
    front = np.stack([3 * x + 5 * t, 4 * y + 20 * episode, np.full_like(x, 40 * episode + 10 * t)], -1).astype(np.uint8)
    front[10 + t : 18 + t, 8 + 4 * t : 16 + 4 * t] = 255
    return front


def make_episode(number: int, length: int, *, seed: int = 0, size: tuple[int, int] = (16, 24)) -> Episode:
    """An episode with a value in every column; the picture's brightness tells episode and step."""
    rng = np.random.default_rng([seed, number])
    steps = tuple(
        Step(
            state=rng.normal(size=7).astype(np.float32),
            gripper_open=float(rng.uniform()),
            image=encode_image(np.full((*size, 3), 40 * number % 200 + 4 * t, np.uint8)),
            action=None if t == length - 1 else rng.normal(size=8).astype(np.float32),
            joint_velocity_command=None if t == length - 1 else rng.normal(size=7).astype(np.float32),
            end_effector_position=rng.normal(size=3).astype(np.float32),
            end_effector_quaternion_xyzw=np.float32([0, 0, 0.6, 0.8]),
            camera_intrinsics=np.array([[30.0, 0, 12], [0, 30, 8], [0, 0, 1]]),
            camera_pose=np.eye(4),
            timestamp=t / 20,
            object_points={"cup": (float(rng.uniform()), -1.5), "tür": (0.1, 1 / 3)} if t % 2 else {},
        )
        for t in range(length)
    )
    words = (f"task {number % 2}", "say it otherwise")
    success = [True, False, None][number % 3]
    names = ("cup", "tür")
    head = (f"set/{number}", "tabletop", "panda", "joint_velocity", words, "task", number, 2**40 + number)
    return Episode(*head, success, steps, names)


def make_trace(episode: Episode, *, scored: bool = False) -> Trace:
    """A trace with a point behind the camera."""
    count = len(episode.steps)
    rng = np.random.default_rng(count)
    points = rng.uniform(-5, 30, (count, 2)).astype(np.float32)
    points[count // 2] = np.nan
    score = rng.uniform(size=count).astype(np.float32) if scored else None
    return Trace(points, rng.uniform(size=count) < 0.7, "detection" if scored else "projection", score)
