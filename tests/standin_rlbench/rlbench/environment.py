"""The simulator with a robot; a task is put into it."""

from typing import Any

from pyrep import PyRep

from rlbench import faults
from rlbench.backend.scene import Scene
from rlbench.backend.task import Task
from rlbench.task_environment import TaskEnvironment


class Environment:
    def __init__(
        self, action_mode: Any, dataset_root: str = "", obs_config: Any = None, headless: bool = False
    ) -> None:
        self._action_mode, self._obs_config, self._headless = action_mode, obs_config, headless
        self._pyrep: PyRep | None = None

    def launch(self) -> None:
        if self._pyrep is not None:
            raise RuntimeError("Already called launch!")
        faults.happen("launch")
        self._pyrep = PyRep()
        self._pyrep.launch(headless=self._headless)
        self._scene = Scene(self._obs_config)

    def get_task(self, task_class: type[Task]) -> TaskEnvironment:
        if self._pyrep is None:
            self.launch()
        return TaskEnvironment(self._scene, task_class(), self._action_mode)

    def shutdown(self) -> None:
        if self._pyrep is not None:
            self._pyrep.shutdown()
        self._pyrep = None
