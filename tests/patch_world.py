"""A small world for evaluations: a point goes to one of three patches; one who sees and reads, and one untrained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from llarva.decoding import untrained_checkpoint
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, Range
from llarva.models.checkpoints import Checkpoint
from llarva.models.tiny import TinySize
from llarva.robots import get_robot


class Patches(gymnasium.Env[Any, Any]):
    """The instruction names one of three letters; the first two patches are there, the third only in variation 2."""

    variation_count = 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        drawn = int(rng.integers(2))
        self.variation = int((options or {}).get("variation", drawn))
        self.names = ["patch A", "patch B"] + (["patch C"] if self.variation == 2 else [])
        angles = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3
        self.places = 0.35 * np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], axis=1)
        self.position, self.steps = np.zeros(3), 0
        return self.look(), self.info(False, None)

    def object_points(self) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.places, strict=False))

    def told_apart_by_colour(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(other for other in self.names if other != name) for name in self.names}

    def exchanged_view(self, one: str, other: str) -> Callable[[], np.ndarray]:
        paint = list(range(3))
        i, j = self.names.index(one), self.names.index(other)
        paint[i], paint[j] = j, i
        return lambda: self.picture(paint)

    def picture(self, paint: Sequence[int] = range(3)) -> np.ndarray:
        image = np.zeros((64, 64, 3), np.uint8)
        for i, place in enumerate(self.places[: len(self.names)]):
            x, y = (32 + 60 * place[:2]).astype(int)
            image[y - 3 : y + 3, x - 3 : x + 3, paint[i]] = 255
        return image

    def look(self) -> dict[str, Any]:
        return {"image": self.picture(), "state": np.array(get_robot("panda").home, np.float32),
                "gripper_open": np.ones(1, np.float32)}

    def info(self, success: bool, failure: str | None) -> dict[str, Any]:
        pose = np.eye(4)
        pose[2, 3] = -1
        instruction = f"go to patch {'ABC'[self.variation]}"
        return {"instruction": instruction, "variation": self.variation, "clipped": self.steps,
                "camera_intrinsics": np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]), "camera_pose": pose,
                "end_effector_position": self.position, "success": success, "failure": failure}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position, self.steps = self.position + action[:3], self.steps + 1
        near = np.linalg.norm(self.places - self.position, axis=1) < 0.06
        success = bool(near[self.variation])
        failure = None if success else "wrong_patch" if near.any() else "time_limit" if self.steps >= 12 else None
        return self.look(), 0.0, success, failure is not None, self.info(success, failure)


class Seer:
    """Reads the letter and finds that patch by its colour; asks the world nothing."""

    def reset(self, instructions: Sequence[str], indices: Sequence[int] | None = None) -> None:
        self.asked = dict(zip(indices or (), instructions, strict=True))

    def step(self, observations: Sequence[Mapping[str, Any]], indices: Sequence[int] | None = None) -> Any:
        actions = []
        for i, seen in zip(indices or (), observations, strict=True):
            spots = np.argwhere(seen["image"][..., "ABC".index(self.asked[i][-1])] > 200)
            goal = (spots.mean(0)[::-1] + 0.5 - 32) / 60 if len(spots) else np.zeros(2)
            actions.append(np.array([*goal * 0.25, 0, 0, 0, 0, 1], np.float32) if self.turn(i) < 4 else np.zeros(7))
        return actions, [None] * len(actions)

    def turn(self, i: int) -> int:
        self.turns = getattr(self, "turns", {})
        self.turns[i] = self.turns.get(i, -1) + 1
        return self.turns[i]


MODE = "end_effector_delta"
FORMAT = InstructionFormat(
    "llarva-workbench-v1",
    BinNumbers(64, {"trace": Range((0.0,) * 2, (64.0,) * 2), f"state:{MODE}": Range((-1.0,) * 7, (1.0,) * 7),
                    f"action:{MODE}": Range((-0.1,) * 7, (0.1,) * 7)}),
    "panda", history=1, n=4, trace_points=4, image_size=(64, 64),
)


def make_checkpoint(seed: int = 0) -> Checkpoint:
    size = TinySize(width=64, mlp_width=96, heads=4, vision_layers=1, text_layers=2, image_size=64)
    return untrained_checkpoint(FORMAT, ["go to patch A"], seed, size)
