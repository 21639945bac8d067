"""Joint velocities: only their number is checked."""

import os
from typing import Any

import numpy as np

from rlbench.backend.exceptions import InvalidActionError


def check_shape(action: np.ndarray, size: int) -> None:
    if np.shape(action) != (size,):
        raise InvalidActionError(f"Expected the action shape to be: {(size,)}, but was shape: {np.shape(action)}")


class JointVelocity:
    def action(self, scene: Any, action: np.ndarray) -> None:
        check_shape(action, 7)
        scene.step(action)

    def action_shape(self, scene: Any) -> tuple[int]:
        return (7,)


if os.environ.get("STANDIN_FORK") == "llarva":
    JointVelocity.record_end = lambda self, scene, steps=60, step_scene=True: None  # type: ignore[attr-defined]
