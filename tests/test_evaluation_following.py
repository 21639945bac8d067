"""Distances between traces and what was executed: zero on the trace, known off it, none without a trace."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llarva.evaluation.batches import followed
from llarva.evaluation.following import follow

LINES = arrays(np.float64, st.tuples(st.integers(2, 9), st.just(2)), elements=st.floats(0, 128, width=32))


@settings(deadline=None)
@given(LINES, st.floats(0.1, 1.0))
def test_the_beginning_of_a_trace_follows_it(line: np.ndarray, share: float) -> None:
    steps = np.linspace(0, share * (len(line) - 1), 200)
    path = np.stack([np.interp(steps, range(len(line)), line[:, axis]) for axis in (0, 1)], axis=-1)
    error, moved = follow(line, path)
    # The path cuts the corners between its samples.
    assert error <= 0.02 * moved + 1e-6


@settings(deadline=None)
@given(LINES, LINES, st.floats(-50, 50))
def test_moving_both_changes_nothing(trace: np.ndarray, path: np.ndarray, by: float) -> None:
    assert follow(trace + by, path + by) == pytest.approx(follow(trace, path), abs=1e-6)


def test_known_distances() -> None:
    trace = np.array([[0.0, 0.0], [10.0, 0.0]])
    assert follow(trace, [[0, 3], [8, 3]]) == pytest.approx((3, 8))
    assert follow(trace, [[0, 0], [-4, 0]]) == pytest.approx((4, 4))  # backwards: twice the way at its end
    assert follow(trace, [[5, 0]]) == (5, 0)
    assert follow(trace, [[0, 0], [20, 0]]) == pytest.approx((np.maximum(0, np.linspace(0, 20, 16) - 10).mean(), 20))


def test_each_answer_is_compared_with_the_steps_executed_on_it() -> None:
    right, up = np.array([[0.0, 0.0], [9.0, 0.0]]), np.array([[4.0, 0.0], [4.0, -9.0]])
    path = np.array([[0, 0], [2, 0], [4, 0], [4, -3], [4, -6], [4, -9.0]])
    episode: Any = SimpleNamespace(traces=[(0, right), (2, up)], actions=[None] * 5, path=lambda: path)
    assert followed(episode) == [pytest.approx((0, 4)), pytest.approx((0, 9))]
    assert followed(SimpleNamespace(traces=[], actions=[None] * 5, path=lambda: path)) == []  # type: ignore[arg-type]
