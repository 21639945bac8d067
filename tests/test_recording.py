"""Recordings: many tasks at once, the same bytes for any number of processes, exact resumption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llarva.episodes.records import Episode
from llarva.episodes.store import EpisodeStore, verify_store
from llarva.errors import LlarvaError
from llarva.suites import RLBENCH_12
from llarva.tabletop import recording
from llarva.tabletop.demos import DemoConfig, DemoError, episodes
from llarva.tabletop.recording import (
    Block,
    DemoSummary,
    demos_of_tasks,
    missing_blocks,
    record_demos,
    record_tasks,
    recording_figures,
)

PAIR = ("push_buttons", "slide_block_to_color_target")


def config(task: str = "push_buttons", out: str | Path = "", **changes: object) -> DemoConfig:
    return dataclasses.replace(DemoConfig(task, 4, str(out), frames_per_episode=1, episodes_per_shard=2), **changes)


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "data").iterdir())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DemoSummary]:
    """Each task of the pair recorded by itself, in this process."""
    out = tmp_path_factory.mktemp("alone")
    counts = dict(zip(PAIR, (4, 3), strict=True))
    return {task: record_demos(config(task, out / task, episodes=counts[task])) for task in PAIR}


def test_tasks_together_leave_the_bytes_of_each_alone(alone: dict[str, DemoSummary], tmp_path: Path) -> None:
    configs = demos_of_tasks(PAIR, config(out=tmp_path), episodes_of={PAIR[1]: 3})
    together = record_tasks(configs, workers=2)
    for summary in together:
        lonely = alone[summary.task]
        assert summary.store == tmp_path / summary.task / "episodes" and shards(summary.store) == shards(lonely.store)
        notes = [(one.store.parent / "demos.json").read_bytes() for one in (summary, lonely)]
        assert notes[0] == notes[1] and not (summary.store.parent / "blocks").exists()
        counts = ("episodes", "steps", "frames", "failed_attempts", "recorded", "recorded_frames")
        assert [getattr(summary, name) for name in counts] == [getattr(lonely, name) for name in counts]
        assert summary.steps == EpisodeStore(summary.store).info["steps"] and summary.frames == summary.episodes
        verify_store(summary.store)


def test_what_is_there_is_found_and_continued(alone: dict[str, DemoSummary], tmp_path: Path) -> None:
    """A folder that one task alone has begun goes on in a recording of two, and a second recording does nothing."""
    record_demos(config(PAIR[1], tmp_path / PAIR[1], episodes=1))
    configs = demos_of_tasks(PAIR, config(out=tmp_path), episodes_of={PAIR[1]: 3})
    first = record_tasks(configs, workers=1)
    assert [summary.recorded for summary in first] == [4, 2]
    assert all(shards(summary.store) == shards(alone[summary.task].store) for summary in first)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    again = record_tasks(configs, workers=2)
    assert [summary.recorded for summary in again] == [0, 0]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}, "done twice"
    assert "episodes_per_second" not in recording_figures(again, 1.0)
    figures = recording_figures(first, 2.0)
    assert figures["episodes_per_second"] == 3.0 and figures["frames_per_second"] == 3.0
    assert [row["task"] for row in figures["table"]] == list(PAIR) and figures["episodes"] == 7


def test_finished_blocks_of_any_size_are_used(
    alone: dict[str, DemoSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in the middle keeps what was finished, and nothing that was finished is recorded again."""
    chosen, recorded = config(out=tmp_path), []
    monkeypatch.setattr(recording, "BLOCK", 1)

    def failing(block: Block, make: recording.MakeEpisodes) -> tuple[Block, int, float]:
        if block.start == 1 and len(recorded) < 9:
            recorded.extend([9] * 9)
            raise DemoError("an expert that is ill")
        recorded.append(block.start)
        return whole(block, make)

    whole = recording.record_block
    whole(Block(chosen, 2, 4))
    monkeypatch.setattr(recording, "record_block", failing)
    with pytest.raises(DemoError, match="ill"):
        record_demos(chosen)
    assert shards(record_demos(chosen).store) == shards(alone["push_buttons"].store)
    assert [start for start in recorded if start != 9] == [0, 1]


def dies_once(one: DemoConfig, indices: Iterable[int]) -> Iterator[tuple[Episode, int]]:
    """The experts' demonstrations; the first worker that has made one is killed."""
    marker = Path(one.out_dir).parent / "died"
    for made in episodes(one, indices):
        yield made
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_replaced(alone: dict[str, DemoSummary], tmp_path: Path) -> None:
    configs = demos_of_tasks(PAIR, config(out=tmp_path), episodes_of={PAIR[1]: 3})
    summaries = record_tasks(configs, 2, dies_once)
    assert (tmp_path / "died").exists()
    for summary in summaries:
        assert shards(summary.store) == shards(alone[summary.task].store)


def test_killed_recordings_leave_no_process_and_continue(alone: dict[str, DemoSummary], tmp_path: Path) -> None:
    configs = demos_of_tasks(PAIR, config(out=tmp_path), episodes_of={PAIR[1]: 3})
    code = "from llarva.tabletop.demos import *\nfrom llarva.tabletop.recording import *\n"
    code += f"record_tasks([DemoConfig(**c) for c in {[dataclasses.asdict(c) for c in configs]!r}], 2)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not any(tmp_path.glob("*/blocks/*-00000?")):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children
    while any(Path(f"/proc/{child}/exe").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{child}/exe").exists() for child in children)
    for summary in record_tasks(configs, workers=1):
        assert shards(summary.store) == shards(alone[summary.task].store)
        verify_store(summary.store)


RANGES = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 40)), max_size=5)


@given(st.integers(1, 150), st.integers(0, 150), st.integers(1, 60), RANGES)
def test_blocks_fill_exactly_what_is_missing(episodes: int, written: int, shard: int, ranges: list) -> None:
    chosen, done, end = config(episodes=episodes, episodes_per_shard=shard), [], 0
    for gap, length in ranges:
        done.append(Block(chosen, end + gap, end + gap + length))
        end += gap + length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "finished_blocks", lambda _: done)
        blocks = missing_blocks(chosen, written)
    filled = [index for block in blocks for index in range(block.start, block.stop)]
    held = set(range(written)).union(*(range(block.start, block.stop) for block in done))
    assert filled == [index for index in range(episodes) if index not in held]
    assert all(block.start < block.stop <= block.start + min(shard, recording.BLOCK) for block in blocks)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    record_demos(config(out=tmp_path, episodes=1))
    with pytest.raises(DemoError, match="other parameters"):
        record_demos(config(out=tmp_path, episodes=1, arm_noise=0.0))
    (tmp_path / "demos.json").write_text(json.dumps({"task": "push_buttons"})[:10])
    with pytest.raises(DemoError, match="damaged"):
        record_demos(config(out=tmp_path, episodes=1))
    with pytest.raises(DemoError, match="folder of its own"):
        record_tasks([config(out=tmp_path), config("open_drawer", out=tmp_path / "x" / "..")], 1)


def test_suites_and_exceptions_by_name() -> None:
    like = config(out="runs/many")
    configs = demos_of_tasks(["stack_cups", "rlbench-12"], like, {"stack_cups": 9}, {"stack_blocks": None})
    assert [one.task for one in configs] == ["stack_cups", *RLBENCH_12]
    for one in configs:
        assert one.out_dir == f"runs/many/{one.task}"
        assert one.episodes == (9 if one.task == "stack_cups" else 4)
        assert one.frames_per_episode == (None if one.task == "stack_blocks" else 1)
    with pytest.raises(DemoError, match="stack_cup"):
        demos_of_tasks(PAIR, like, frames_of={"stack_cups": 3})
    with pytest.raises(LlarvaError, match="push_buttons"):
        demos_of_tasks(["push_button"], like)
    with pytest.raises(DemoError, match="at least one"):
        demos_of_tasks([], like)
