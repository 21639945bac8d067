"""Rows come back as they were written, and are compared scene by scene."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.evaluation.rows import EvaluationError, compare, format_summary, read_rows, summarize
from llarva.evaluation.rows import write_part as write


def some_rows(outcomes: Sequence[bool], task: str = "t") -> list[dict[str, Any]]:
    return [{"env": "e", "task": task, "variation": 0, "seed": i, "success": ok, "steps": 5,
             "failure": None if ok else "time_limit", "decode_ms_p50": None, "decode_ms_p99": None, "clipped": 0,
             "action_sha256": "", "trace_error_px": None, "following_px": [1.5], "moved_px": [20.0],
             "instruction": "go", "nearest_object": None,
             "reached_asked": None, "asked_variation": 0, "control": "none"} for i, ok in enumerate(outcomes)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 7))
def test_rows_come_back_in_order(tmp_path_factory: pytest.TempPathFactory, outcomes: list[bool], size: int) -> None:
    folder, rows = tmp_path_factory.mktemp("rows"), some_rows(outcomes)
    for part in range(0, len(rows), size):
        write(folder, part // size, rows[part : part + size])
    assert read_rows(folder) == rows
    summary = summarize(rows)["t"]
    assert (summary.successes, sum(summary.failures.values())) == (sum(outcomes), len(outcomes) - sum(outcomes))


def test_broken_rows_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no evaluation rows"):
        read_rows(tmp_path)
    path = write(tmp_path, 0, some_rows([True]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=re.escape(str(path))):
        read_rows(tmp_path)


def test_compare_wants_the_same_scenes() -> None:
    rows = some_rows([True, False])
    with pytest.raises(EvaluationError, match="seed 1"):
        compare(rows, rows[:1])
    with pytest.raises(EvaluationError, match="each counts once"):
        compare(rows + rows, rows)
    assert compare(rows, rows).p_value == 1.0
    assert "time_limit" in format_summary(rows) and "mean over tasks" in format_summary(rows + some_rows([True], "u"))
