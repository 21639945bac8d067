"""The arm first, then the gripper; PerAct's version hands the arm a third argument, which joint velocities refuse."""

import os
from typing import Any

import numpy as np

PERACT = os.environ.get("STANDIN_FORK", "stock") == "peract"


class ActionMode:
    def __init__(self, arm_action_mode: Any, gripper_action_mode: Any) -> None:
        self.arm_action_mode, self.gripper_action_mode = arm_action_mode, gripper_action_mode


class MoveArmThenGripper(ActionMode):
    def action(self, scene: Any, action: np.ndarray) -> None:
        size = int(np.prod(self.arm_action_mode.action_shape(scene)))
        rest = (bool(action[-1]),) if PERACT else ()
        self.arm_action_mode.action(scene, np.array(action[:size]), *rest)
        self.gripper_action_mode.action(scene, np.array(action[size:]))
