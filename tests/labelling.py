"""Traces and settings for the tests of labelling by workers, which import this module and little else."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from llarva.episodes.records import Episode
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.rows import BuildConfig, RowError
from llarva.traces.projection import Trace, project_episode

FORMAT = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 3, 2, 4, (48, 64))
CONFIG = BuildConfig(FORMAT, episodes_per_shard=2, traced_by="a test")


@dataclass(frozen=True)
class Slowly:
    """Projects; takes its time, and ends its process once per file `lot-*` of a folder, or always at one episode."""

    folder: str = ""
    seconds: float = 0.0
    poison: str = ""

    def __call__(self, made: Episode) -> Trace | None:
        time.sleep(self.seconds)
        for lot in Path(self.folder).glob("lot-*") if self.folder else ():
            lot.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if made.episode_id == self.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return project_episode(made)


class Result:
    """Something that can be counted."""


def make_result(number: int) -> Result:
    return Result()


def refuse(made: Episode) -> Trace | None:
    raise RowError(f"{made.episode_id} will not do")


@dataclass(frozen=True)
class KillBeside:
    """Piece 0 kills its worker as soon as piece 1 is being worked on, which takes a while."""

    folder: Path

    def __call__(self, number: int) -> int:
        began = self.folder / "began"
        if number:
            began.touch()
            time.sleep(4)
            return number
        while not began.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def kill_at_zero(number: int) -> int:
    """A piece of work that is always the end of its worker, and others that are done."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
