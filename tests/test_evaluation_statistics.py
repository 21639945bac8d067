"""Intervals and tests agree with scipy and with what they stand for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llarva.evaluation.statistics import StatisticsError, bootstrap_mean_over_tasks, clopper_pearson, mcnemar, wilson

COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.floats(0.5, 0.999))
def test_intervals_hold_their_estimate_and_agree_with_scipy(counts: tuple[int, int], confidence: float) -> None:
    for interval, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        mine = interval(*counts, confidence)
        theirs = stats.binomtest(*counts).proportion_ci(confidence, method=method)
        assert 0 <= mine.low <= mine.estimate <= mine.high <= 1
        assert np.allclose((mine.low, mine.high), theirs, atol=1e-9)


@given(COUNTS)
def test_exact_interval_is_wider_and_failure_mirrors_success(counts: tuple[int, int]) -> None:
    good, n = counts
    mirror = wilson(n - good, n)
    assert np.allclose((1 - mirror.high, 1 - mirror.low), (wilson(good, n).low, wilson(good, n).high))
    assert wilson(good, n, 0.9).high <= wilson(good, n, 0.99).high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_test_is_the_sign_test_of_the_differences(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    test, swapped = mcnemar(a, b), mcnemar(b, a)
    assert (test.only_a, test.only_b, test.p_value) == (swapped.only_b, swapped.only_a, swapped.p_value)
    differing = test.only_a + test.only_b
    expected = stats.binomtest(test.only_a, differing).pvalue if differing else 1.0
    assert test.p_value == pytest.approx(expected)


def test_bootstrap_weighs_tasks_alike_and_repeats_itself() -> None:
    outcomes = {"a": [1] * 100, "b": [0, 1]}
    mean = bootstrap_mean_over_tasks(outcomes, np.random.default_rng(3))
    assert mean.estimate == 0.75 and (mean.low, mean.high) == (0.5, 1.0)
    assert mean == bootstrap_mean_over_tasks(outcomes, np.random.default_rng(3))


@pytest.mark.parametrize("call", [
    lambda: wilson(1, 0), lambda: wilson(-1, 3), lambda: clopper_pearson(4, 3), lambda: wilson(1, 2, 1.0),
    lambda: mcnemar([], []), lambda: mcnemar([True], [True, False]),
    lambda: bootstrap_mean_over_tasks({}, np.random.default_rng(0)),
    lambda: bootstrap_mean_over_tasks({"a": []}, np.random.default_rng(0)),
    lambda: bootstrap_mean_over_tasks({"a": [0.5]}, np.random.default_rng(0)),
])
def test_senseless_counts_are_refused(call: Any) -> None:
    with pytest.raises(StatisticsError):
        call()
