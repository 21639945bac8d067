"""Open above 0.5, and the simulation runs on until the fingers have arrived."""

from typing import Any

import numpy as np

from rlbench.action_modes.arm_action_modes import check_shape


class Discrete:
    def action(self, scene: Any, action: np.ndarray) -> None:
        check_shape(action, 1)
        wanted = float(action[0] > 0.5)
        if wanted != float(scene.sim.gripper_opening > 0.9):
            for _ in range(8):
                scene.step(np.zeros(7), wanted)
        scene.gripper = wanted

    def action_shape(self, scene: Any) -> tuple[int]:
        return (1,)
