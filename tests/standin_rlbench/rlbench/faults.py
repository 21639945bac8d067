"""Misbehaviour on demand: a file named `step-3-hang` in the folder STANDIN_FAULTS happens once."""

import os
import signal
import time
from pathlib import Path

from pyrep.errors import ConfigurationPathError, IKError

from rlbench.backend.exceptions import BoundaryError, InvalidActionError, TaskEnvironmentError

COUNTS: dict[str, int] = {}


def happen(what: str, restart: bool = False) -> None:
    count = COUNTS[what] = 0 if restart else COUNTS.get(what, -1) + 1
    folder = os.environ.get("STANDIN_FAULTS")
    for fault in Path(folder).glob(f"{what}-{count}-*") if folder else ():
        fault.unlink()
        _misbehave(fault.name.split("-")[2])


def _misbehave(how: str) -> None:
    if how == "hang":
        time.sleep(1000)
    if how == "crash":
        print("Error: signal 11: something went wrong inside", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "RuntimeError":
        raise RuntimeError("The call failed on the V-REP side. Return value: -1")
    if how == "TaskEnvironmentError":
        raise TaskEnvironmentError("Could not place the task in the scene.") from BoundaryError("too crowded")
    causes = {"IKError": IKError("singular"), "ConfigurationPathError": ConfigurationPathError("no way")}
    raise InvalidActionError("The action cannot be executed.") from causes.get(how)
