"""One task: reset, step, demonstrations; scenes are drawn from NumPy's global generator."""

import os
from typing import Any

import numpy as np

from llarva.tabletop.experts import expert_action
from rlbench import faults
from rlbench.backend.exceptions import TaskEnvironmentError
from rlbench.backend.observation import Observation
from rlbench.backend.scene import Scene
from rlbench.backend.task import Task
from rlbench.demo import Demo

STOCK = os.environ.get("STANDIN_FORK", "stock") == "stock"


class TaskEnvironment:
    def __init__(self, scene: Scene, task: Task, action_mode: Any) -> None:
        self._scene, self._task, self._robot, self._action_mode = scene, task, scene.robot, action_mode
        scene.sim = task.sim
        self._variation_number, self._reset_called = 0, False

    def variation_count(self) -> int:
        return self._task.variation_count()

    def set_variation(self, v: int) -> None:
        if v >= self.variation_count():
            raise TaskEnvironmentError(f"Requested variation {v}, but there are only {self.variation_count()}.")
        self._variation_number = v

    def reset(self, demo: Demo | None = None) -> tuple[list[str], Observation]:
        faults.happen("reset")
        faults.COUNTS.pop("step", None)
        seed = int(np.random.randint(2**31 - 1))  # noqa: NPY002
        self._scene.sim.reset(seed, self._variation_number)
        self._scene.gripper, self._reset_called = 1.0, True
        return list(self._task.sim.task.instructions(self._variation_number)), self._scene.get_observation()

    def get_observation(self) -> Observation:
        return self._scene.get_observation()

    def step(self, action: Any) -> tuple[Observation, float, np.bool_]:
        if not self._reset_called:
            raise RuntimeError("Call 'reset' before calling 'step' on a task.")
        faults.happen("step")
        self._action_mode.action(self._scene, action)
        success = np.bool_(self._task.sim.success)
        return self._scene.get_observation(), float(success), success

    def reset_to_demo(self, demo: Demo) -> tuple[list[str], Observation]:
        demo.restore_state()
        if not STOCK:
            return self.reset()
        self.set_variation(demo[0].misc["variation_index"])
        return self.reset(demo)

    def get_demos(self, amount: int, live_demos: bool = False, max_attempts: int = 10, **_: Any) -> list[Demo]:
        if not live_demos:
            raise RuntimeError("Can't ask for a stored demo when no dataset root provided.")
        return [self._demonstrate(max_attempts) for _ in range(amount)]

    def _demonstrate(self, attempts: int) -> Demo:
        for _ in range(attempts):
            state = np.random.get_state()  # noqa: NPY002
            _, first = self.reset()
            observations, sim = [first], self._scene.sim
            while not sim.success and sim.failure is None and sim.steps < 600:
                sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))
                observations.append(self._scene.get_observation())
            if sim.success:
                return Demo(observations, state)
        raise RuntimeError("Could not collect demos. Maybe a problem with the task?")
