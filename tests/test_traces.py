"""Traces by projection, and their cleaning."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llarva.cameras import intrinsics_from_fov, look_at, project
from llarva.cards import TRACE_SOURCES as CARD_TRACE_SOURCES
from llarva.episodes.records import Episode, Step, encode_image
from llarva.traces.cleaning import (
    drop_outliers,
    fill_gaps,
    resample_by_arc_length,
    thin_by_arc_length,
    thin_by_time,
    thin_llarva,
)
from llarva.traces.projection import (
    TRACE_SOURCES,
    Trace,
    TraceError,
    project_episode,
    trace_for_step,
    trace_from,
)

SIZE = (64, 96)
K = intrinsics_from_fov(0.8, SIZE)


def make_episode(positions, poses=None, image=True):
    fixed = look_at((2, 0, 1), (0, 0, 0))
    steps = tuple(
        Step(
            state=np.zeros(7, np.float32),
            gripper_open=1.0,
            image=encode_image(np.zeros((*SIZE, 3), np.uint8)) if image and t == 1 else None,
            end_effector_position=np.asarray(position, np.float32),
            camera_intrinsics=K,
            camera_pose=fixed if poses is None else poses[t],
        )
        for t, position in enumerate(positions)
    )
    return Episode("e", "toy", "panda", "joint_velocity", ("go",), "go", 0, 0, None, steps)


LINE = np.linspace((0, -0.5, 0), (0, 0.5, 0), 9)


def make_trace(points, source="projection", score=None):
    points = np.asarray(points, np.float32)
    return Trace(points, np.isfinite(points).all(axis=1), source, score)


coordinates = st.floats(-50, 200, width=32)
traces = st.integers(1, 60).flatmap(lambda n: arrays(np.float32, (n, 2), elements=coordinates)).map(make_trace)
# few different places: arms wait, and points coincide
waiting = (
    st.integers(1, 60)
    .flatmap(lambda n: arrays(np.float32, (n, 2), elements=st.sampled_from([0.0, 1.0, 40.0])))
    .map(make_trace)
)


# ---------------------------------------------------------------- projection


def test_projection_of_an_episode():
    episode = make_episode(LINE)
    trace = project_episode(episode)
    expected, _ = project(LINE.astype(np.float32), K, episode.steps[0].camera_pose)
    assert trace.source == "projection" and trace.score is None and trace.points.dtype == np.float32
    assert np.allclose(trace.points, expected, atol=1e-4) and trace.visible.all() and len(trace) == 9
    assert np.all(np.diff(trace.points[:, 0]) > 0), "world y runs to the right of a camera that looks along -x"


def test_suffixes_agree():
    episode = make_episode(LINE)
    whole = project_episode(episode)
    for step in range(9):
        assert np.array_equal(trace_from(whole, step).points, trace_for_step(episode, step).points)
    for step in (-1, 9):
        with pytest.raises(TraceError, match=r"\[0, 9\)"):
            trace_from(whole, step)
        with pytest.raises(TraceError, match=r"\[0, 9\)"):
            trace_for_step(episode, step)


def test_moving_camera():
    poses = [look_at((2, 0.1 * t, 1), (0, 0, 0)) for t in range(9)]
    episode = make_episode(LINE, poses)
    with pytest.raises(TraceError, match=r"step 1 .*trace_for_step"):
        project_episode(episode)
    for step in (0, 4):
        expected, _ = project(LINE[step:].astype(np.float32), K, poses[step])
        assert np.allclose(trace_for_step(episode, step).points, expected, atol=1e-4)


def test_hidden_points():
    trace = project_episode(make_episode([(0, 0, 0), (0, 5, 0), (5, 0, 2), (0, 0, 0.1)]))
    assert trace.visible.tolist() == [True, False, False, True]
    assert np.isfinite(trace.points[1]).all(), "outside the image is still a place"
    assert np.isnan(trace.points[2]).all(), "behind the camera is none"


def test_what_is_missing_is_named():
    episode = make_episode(LINE)
    blind = replace(
        episode, steps=(*episode.steps[:2], replace(episode.steps[2], camera_pose=None), *episode.steps[3:])
    )
    with pytest.raises(TraceError, match="step 2: no camera"):
        project_episode(blind)
    lost = replace(episode, steps=(*episode.steps[:-1], replace(episode.steps[-1], end_effector_position=None)))
    for attempt in (project_episode, lambda e: trace_for_step(e, 3)):
        with pytest.raises(TraceError, match="step 8: no end-effector position"):
            attempt(lost)
    with pytest.raises(TraceError, match="keeps no image"):
        project_episode(make_episode(LINE, image=False))
    assert len(project_episode(make_episode(LINE, image=False), SIZE)) == 9


def test_records_that_do_not_fit():
    points, seen = np.zeros((3, 2), np.float32), np.ones(3, bool)
    for wrong in (
        {"points": np.zeros((3, 3), np.float32)},
        {"visible": np.ones(2, bool)},
        {"score": np.ones(2, np.float32)},
        {"source": "guess"},
    ):
        with pytest.raises(TraceError):
            Trace(**({"points": points, "visible": seen} | wrong))
    assert set(TRACE_SOURCES) < set(CARD_TRACE_SOURCES)


# ---------------------------------------------------------------- cleaning


@given(traces | waiting, st.integers(2, 12))
@settings(max_examples=150, deadline=None)
def test_thinning_keeps_ends_order_and_count(trace, k):
    rows = {id(fn): fn(trace, k) for fn in (thin_by_time, thin_by_arc_length)}.values()
    for thin in rows:
        assert len(thin) == min(k, len(trace))
        assert np.array_equal(thin.points[[0, -1]], trace.points[[0, -1]])
    numbered = Trace(trace.points, trace.visible, "detection", np.arange(len(trace), dtype=np.float32))
    for fn in (thin_by_time, thin_by_arc_length):
        assert np.all(np.diff(fn(numbered, k).score) > 0), "points stay in order and none is taken twice"


@given(traces | waiting, st.integers(2, 12))
@settings(max_examples=100, deadline=None)
def test_resampling_gives_exactly_k(trace, k):
    thin = resample_by_arc_length(trace, k)
    assert len(thin) == k and thin.points.dtype == np.float32 and np.isfinite(thin.points).all()
    assert np.allclose(thin.points[[0, -1]], trace.points[[0, -1]], atol=1e-3)
    length = np.linalg.norm(np.diff(trace.points.astype(float), axis=0), axis=1).sum()
    assert np.linalg.norm(np.diff(thin.points.astype(float), axis=0), axis=1).sum() <= length + 1e-2


def test_resampling_a_straight_line_is_even():
    trace = make_trace([(0, 0), (0, 0), (1, 0), (9, 0), (10, 0), (10, 0)])
    assert np.allclose(resample_by_arc_length(trace, 5).points, [(0, 0), (2.5, 0), (5, 0), (7.5, 0), (10, 0)])


def test_resampling_carries_visibility_and_score():
    trace = Trace(
        np.array([(0, 0), (10, 0), (20, 0)], np.float32),
        np.array([True, True, False]),
        "detection",
        np.array([1, 0.5, 0], np.float32),
    )
    thin = resample_by_arc_length(trace, 5)
    assert thin.visible.tolist() == [True, True, True, False, False] and thin.source == "detection"
    assert np.allclose(thin.score, [1, 0.75, 0.5, 0.25, 0])


def test_thinning_by_length_ignores_waiting():
    trace = make_trace([(0, 0)] * 50 + [(x, 0) for x in range(1, 11)] + [(10, 0)] * 50)
    assert np.allclose(thin_by_arc_length(trace, 6).points[:, 0], [0, 2, 4, 6, 8, 10])


@pytest.mark.parametrize(
    "length, kept", [(1, 1), (29, 29), (30, 30), (59, 59), (60, 30), (61, 31), (89, 45), (90, 30), (300, 30)]
)
def test_rule_of_llarva(length, kept):
    trace = make_trace(np.arange(2 * length).reshape(-1, 2))
    thin = thin_llarva(trace)
    assert len(thin) == kept and np.array_equal(thin.points[0], trace.points[0])


@pytest.mark.parametrize("thin", [thin_by_time, thin_by_arc_length, resample_by_arc_length])
def test_thinning_refuses(thin):
    with pytest.raises(TraceError, match="empty"):
        thin(make_trace(np.zeros((0, 2))), 5)
    with pytest.raises(TraceError, match="k = 1"):
        thin(make_trace(np.zeros((3, 2))), 1)
    with pytest.raises(TraceError):
        thin(make_trace(np.zeros((3, 2))), 0)
    if thin is not thin_by_time:
        with pytest.raises(TraceError, match="fill_gaps"):
            thin(make_trace([(0, 0), (np.nan, np.nan), (1, 1)]), 2)


def test_one_point():
    one = make_trace([(3, 4)])
    assert len(thin_by_time(one, 5)) == len(thin_by_arc_length(one, 5)) == len(thin_llarva(one)) == 1
    assert np.array_equal(resample_by_arc_length(one, 3).points, [(3, 4)] * 3)
    assert len(resample_by_arc_length(one, 1)) == 1
    with pytest.raises(TraceError, match="k = 0"):
        resample_by_arc_length(one, 0)


def test_gaps_are_filled_in_time():
    hole = (np.nan, np.nan)
    score = np.ones(6, np.float32)
    trace = fill_gaps(make_trace([hole, (0, 0), hole, hole, (3, 6), hole], "detection", score))
    assert np.allclose(trace.points, [(0, 0), (0, 0), (1, 2), (2, 4), (3, 6), (3, 6)])
    assert trace.visible.tolist() == [False, True, False, False, True, False]
    assert trace.score.tolist() == [0, 1, 0, 0, 1, 0]
    for nothing in ([hole, hole], np.zeros((0, 2))):
        with pytest.raises(TraceError, match="nothing to fill"):
            fill_gaps(make_trace(nothing))


def test_outliers_become_gaps():
    points = np.stack([np.arange(20.0), np.zeros(20)], -1)
    points[7] = (90, 90)
    trace = drop_outliers(make_trace(points), jump=10)
    assert np.flatnonzero(np.isnan(trace.points).all(axis=1)).tolist() == [7] and not trace.visible[7]
    assert np.allclose(fill_gaps(trace).points[:, 0], np.arange(20))
    assert np.array_equal(points[7], (90, 90)), "the input stays as it was"


@given(traces)
@settings(max_examples=50, deadline=None)
def test_without_jumps_nothing_is_dropped(trace):
    assert np.array_equal(drop_outliers(trace, jump=1000).points, trace.points)


@pytest.mark.parametrize("jump, window", [(0, 5), (-1, 5), (5, 4), (5, 1)])
def test_outlier_settings_that_make_no_sense(jump, window):
    with pytest.raises(TraceError, match="odd window"):
        drop_outliers(make_trace(np.zeros((9, 2))), jump, window)
