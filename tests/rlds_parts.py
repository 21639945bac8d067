"""What small RLDS data sets are made of: a card from what differs, features of TFDS, values in numpy alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

HEIGHT, WIDTH = 12, 16
HEAD = """---
name: {name}
title: {name}
format: rlds
robot: {robot}
control_modes: [{mode}]
actions:
  {mode}: [{layout}]
rate_hz: {rate}
camera: {{key: {camera}, image_size: [12, 16], calibrated: false{camera_more}}}
language: {language}
traces: detection
licence: unverified
size: {{episodes: 2, steps: unverified}}
homepage: none
citation: none
fields:
  builder: {name}
  frame: {frame}
  actions:
    {mode}: {action}
  state: {state}
  gripper: {gripper}
{more}---
Made for the tests.
"""
DELTA = (
    "delta x: m, delta y: m, delta z: m, delta rotation x: rad, delta rotation y: rad, delta rotation z: rad, "
    "gripper: 1 = open"
)


def numbered(count: int) -> str:
    return ", ".join(f"number {i}: unverified" for i in range(count))


def card(name: str, **given: str) -> str:
    """A card from what differs."""
    defaults = {
        "robot": "panda",
        "mode": "end_effector_motion",
        "rate": "10",
        "camera": "steps/observation/image",
        "camera_more": "",
        "language": "steps/language_instruction",
        "frame": "base",
        "state": "none",
        "gripper": "none",
        "more": "",
    }
    return HEAD.format(name=name, **(defaults | given))


@dataclass(frozen=True)
class RldsSet:
    """`features(tfds)`: observation, action and step metadata, and episode metadata; `step(rng, t, count)`: values."""

    features: Callable[[Any], tuple[Any, Any, dict[str, Any], dict[str, Any]]]
    step: Callable[[np.random.Generator, int, int], dict[str, Any]]
    card: str
    episode: Callable[[np.random.Generator, int], dict[str, Any]] = lambda rng, index: {}


def picture(rng: np.random.Generator) -> np.ndarray:
    """Smooth, so that it stays small as PNG and JPEG."""
    base = rng.integers(0, 200, 3)
    return (base + np.arange(HEIGHT)[:, None, None] * 2 + np.arange(WIDTH)[None, :, None]).astype(np.uint8)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 0.5, shape).astype(np.float32)


def image(tfds: Any, form: str = "png") -> Any:
    return tfds.features.Image(shape=(HEIGHT, WIDTH, 3), dtype=np.uint8, encoding_format=form)


def tensor(tfds: Any, dtype: Any, *shape: int | None, **more: Any) -> Any:
    return tfds.features.Tensor(shape=shape, dtype=dtype, **more)
