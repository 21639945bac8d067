"""An observation: fields by name; what was not asked for is None. Forks of PerAct's add `ignore_collisions`."""

import inspect
import os
from typing import Any

CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
FIELDS = (
    *(f"{camera}_{kind}" for camera in CAMERAS for kind in ("rgb", "depth", "mask", "point_cloud")),
    "joint_velocities", "joint_positions", "joint_forces", "gripper_open", "gripper_pose", "gripper_matrix",
    "gripper_joint_positions", "gripper_touch_forces", "task_low_dim_state",
    *(() if os.environ.get("STANDIN_FORK", "stock") == "stock" else ("ignore_collisions",)), "misc",
)  # fmt: skip


class Observation:
    def __init__(self, **fields: Any) -> None:
        for name in FIELDS:
            setattr(self, name, fields.pop(name, None))
        if fields:
            raise TypeError(f"unexpected {', '.join(fields)}")

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *FIELDS)
    )
