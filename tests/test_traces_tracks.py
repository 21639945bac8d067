"""What is made of an end-effector detector's boxes: scores, tracks of the hand, traces of episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from detector_samples import SMALL, square_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.episodes.records import Episode, Step, encode_image
from llarva.errors import LlarvaError
from llarva.instructions.rows import step_traces
from llarva.traces.audit import audit_trace, look
from llarva.traces.audit_findings import view_of
from llarva.traces.detection import ASSUMED_RATE, EpisodeTracer, compare_with_projection, detect_episodes, step_times
from llarva.traces.detection_data import DetectionError
from llarva.traces.detection_model import Detections, Detector, make_detector
from llarva.traces.detection_scores import average_precision, matches, overlaps, score_detector
from llarva.traces.detection_tracks import TrackModel, choose, smooth, track
from llarva.widgets.scenes import readable_format


def boxes_at(centres: np.ndarray, scores: list[float], half: float = 5) -> Detections:
    centres = np.asarray(centres, np.float32).reshape(-1, 2)
    return Detections(np.concatenate([centres - half, centres + half], axis=1), np.array(scores, np.float32))


# ---------------------------------------------------------------- scores


def test_overlaps_and_matches() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    assert overlaps(boxes, boxes).tolist() == [[1, 0], [0, 1]]
    assert np.isclose(overlaps(boxes[:1], np.array([[5, 0, 15, 10]], np.float32)), 1 / 3)
    seen = np.array([[21, 20, 31, 30], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32)
    found = Detections(seen, np.ones(3, np.float32))
    assert matches(found, boxes).tolist() == [1, -1, -1]
    assert matches(found, np.zeros((0, 4), np.float32)).tolist() == [-1, -1, -1]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=20), st.integers(1, 30))
def test_average_precision_is_a_share(ranked: list[tuple[float, bool]], missing: int) -> None:
    right = [hit for _, hit in ranked]
    value = average_precision([score for score, _ in ranked], right, sum(right) + missing)
    assert 0 <= value <= sum(right) / (sum(right) + missing) + 1e-12
    assert np.isclose(average_precision([1.0] * 3, [True] * 3, 3), 1) and np.isnan(average_precision([], [], 0))


class Oracle(Detector):
    """Answers with a square's own box, moved by two pixels; sees nothing where there is no white."""

    def detect(self, images, threshold=0.3, batch_size=32, most=5):  # type: ignore[no-untyped-def]
        found = []
        for image in images:
            rows, columns = np.nonzero((np.asarray(image) == 255).all(axis=2))
            centre = np.array([[columns.min() + 2, rows.min()]]) + 9 if len(rows) else np.zeros((0, 2))
            found.append(boxes_at(centre, [0.9] * len(centre), 9))
        return found


def test_scores_of_a_known_detector() -> None:
    samples = [square_picture(seed) for seed in range(8)]
    samples.append(replace(samples[0], image=encode_image(np.zeros((64, 64, 3), np.uint8))))
    score = score_detector(Oracle(*make_detector(SMALL)), samples)
    assert score.boxes == 9 and score.ap50 == pytest.approx(8 / 9) and score.misses == pytest.approx(1 / 9)
    assert score.centre_error == pytest.approx(2) and score.false_boxes == 0
    with pytest.raises(DetectionError, match="no picture"):
        score_detector(Oracle(*make_detector(SMALL)), [])


# ---------------------------------------------------------------- tracks


def ticks(count: int, rate: float = 20) -> np.ndarray:
    """Times of so many steps (s)."""
    return np.arange(count) / rate


def walk(seed: int, count: int = 60) -> np.ndarray:
    """A smooth way through a picture of 128 pixels."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, count)[:, None]
    return 64 + 40 * np.sin(2 * np.pi * (t * rng.uniform(0.3, 0.8, 2) + rng.uniform(0, 1, 2)))


@pytest.mark.parametrize("seed", range(8))
def test_tracks_survive_misses_lamps_and_noise(seed: int) -> None:
    rng, truth = np.random.default_rng([seed, 1]), walk(seed)
    lamp, frames, raw = rng.uniform(0, 128, 2), [], []
    for point in truth:
        candidates = [(point + rng.normal(0, 1.5, 2), rng.uniform(0.4, 0.9))] if rng.uniform() > 0.15 else []
        candidates += [(lamp, 0.95)] if rng.uniform() < 0.15 else []
        candidates.sort(key=lambda one: -one[1])
        frames.append(boxes_at(np.array([c for c, _ in candidates]), [s for _, s in candidates]))
        raw.append(np.linalg.norm(candidates[0][0] - point) if candidates else np.nan)
    trace = track(frames, (128, 128), ticks(len(frames)))
    assert trace is not None and len(trace) == len(truth) and np.isfinite(trace.points).all()
    error = np.linalg.norm(trace.points - truth, axis=1)
    assert np.median(error) < 1.5 and np.quantile(error, 0.95) < 6
    assert error.max() < max(10, np.nanmax(raw))
    assert ((trace.score > 0) == trace.visible).all()


def test_a_false_start_does_not_bind_the_track() -> None:
    truth = walk(3)
    frames = [boxes_at(truth[t], [0.8]) for t in range(len(truth))]
    frames[0] = boxes_at(np.array([5, 5]), [0.99])
    trace = track(frames, (128, 128), ticks(len(frames)))
    assert trace is not None and not trace.visible[0]
    assert np.linalg.norm(trace.points[1:] - truth[1:], axis=1).max() < 3


def test_ends_stand_still_and_nothing_gives_no_trace() -> None:
    nothing = boxes_at(np.zeros((0, 2)), [])
    frames = [nothing] * 5 + [boxes_at(np.array([30 + 3 * t, 40]), [0.8]) for t in range(6)] + [nothing] * 5
    trace = track(frames, (128, 128), ticks(len(frames)))
    assert trace is not None
    assert np.allclose(trace.points[:5], trace.points[5]) and np.allclose(trace.points[11:], trace.points[10])
    assert trace.visible.tolist() == [False] * 5 + [True] * 6 + [False] * 5
    assert track([nothing] * 4, (128, 128), ticks(4)) is None and track([], (128, 128), ticks(0)) is None


def test_low_scores_alone_are_no_track() -> None:
    frames = [boxes_at(np.array([30, 30]), [0.05]) for _ in range(10)]
    assert (choose(frames, ticks(10), 181, TrackModel(miss=1.0)) == -1).all()


def test_the_gate_keeps_an_outlier_out() -> None:
    points = np.stack([np.linspace(0.2, 0.4, 20), np.full(20, 0.3)], axis=1)
    points[10] = [0.9, 0.9]
    path, used = smooth(points, ticks(20), TrackModel())
    assert not used[10] and used.sum() == 19 and abs(path[10, 0] - 0.305) < 0.01
    with pytest.raises(DetectionError, match="None of the"):
        smooth(np.full((3, 2), np.nan), ticks(3), TrackModel())
    with pytest.raises(DetectionError):
        TrackModel(noise=0)


def fetching(rate: float) -> np.ndarray:
    """Twelve seconds of quick moves with rests between, each of them smooth, in a picture of 128 pixels."""

    def moved(start: float, seconds: float) -> np.ndarray:
        s = ((ticks(round(12 * rate), rate) - start) / seconds).clip(0, 1)
        return 10 * s**3 - 15 * s**4 + 6 * s**5

    x = 20 + 80 * (moved(1, 1.5) - moved(5, 1.5) + moved(9, 1.5))
    return np.stack([x, 30 + 35 * (moved(3, 1) - moved(7, 1))], axis=1)


@pytest.mark.parametrize("rate", [1, 3, 5, 10, 20])
def test_tracks_do_not_depend_on_the_rate(rate: float) -> None:
    truth = fetching(rate)
    trace = track([boxes_at(point, [0.9]) for point in truth], (128, 128), ticks(len(truth), rate))
    assert trace is not None and trace.visible.all()
    assert np.linalg.norm(trace.points - truth, axis=1).max() < 1
    rng, used, errors = np.random.default_rng(int(rate)), [], []
    for _ in range(8):
        lamp = rng.uniform(0, 128, 2)
        frames = []
        for point in truth:
            seen, lit = rng.uniform() > 0.15, rng.uniform() < 0.1
            centres = [lamp] * lit + [point + rng.normal(0, 1.5, 2)] * seen
            frames.append(boxes_at(np.array(centres), [0.95] * lit + [rng.uniform(0.4, 0.9)] * seen))
        noisy = track(frames, (128, 128), ticks(len(truth), rate))
        assert noisy is not None
        used.append(noisy.visible.mean())
        errors.append(np.nanmedian(np.linalg.norm(noisy.points - truth, axis=1)))
    assert np.mean(used) > 0.75 and np.mean(errors) < (4 if rate == 1 else 2.5)


def test_missing_pictures_lengthen_the_time_between(rate: float = 20) -> None:
    """Every sixth step has a picture: the others cost nothing, and the track is as good as at that rate."""
    truth = fetching(rate)
    frames = [boxes_at(point, [0.9]) if t % 6 == 0 else None for t, point in enumerate(truth)]
    trace = track(frames, (128, 128), ticks(len(truth), rate))
    assert trace is not None and trace.visible[::6].all() and trace.visible.sum() == len(truth[::6])
    error = np.linalg.norm(trace.points - truth, axis=1)
    assert error[::6].max() < 1 and np.median(error) < 1 and error.max() < 10


@pytest.mark.parametrize("gap", [20, 21, 25, 60])
def test_both_sides_of_a_gap_are_kept(gap: int) -> None:
    t = np.arange(200)
    truth = np.stack([20 + 0.5 * t, 60 + 30 * np.sin(t / 20)], axis=1)
    hidden = (t >= 80) & (t < 80 + gap)
    shown = [point[: 2 * (not out)] for point, out in zip(truth, hidden, strict=True)]
    frames = [boxes_at(point, [0.9] * (len(point) > 0)) for point in shown]
    trace = track(frames, (128, 128), ticks(200))
    assert trace is not None and (trace.visible == ~hidden).all()
    assert np.linalg.norm(trace.points - truth, axis=1)[~hidden].max() < 1
    unknown = np.isnan(trace.points).all(axis=1)
    assert (unknown == (hidden if gap > 20 else np.zeros(200, bool))).all()


def test_unseen_ends_are_unknown() -> None:
    nothing = boxes_at(np.zeros((0, 2)), [])
    frames = [nothing] * 30 + [boxes_at(np.array([60, 40]), [0.8])] * 20 + [nothing] * 20
    trace = track(frames, (128, 128), ticks(70))
    assert trace is not None and np.isnan(trace.points[:30]).all() and np.isfinite(trace.points[30:]).all()
    one = [boxes_at(np.array([60, 40]), [0.8]), *[None] * 60]
    trace = track(one, (128, 128), ticks(61))
    assert trace is not None and np.isnan(trace.points[1:]).all(), "one picture does not tell of three seconds"


def test_a_lost_filter_begins_anew() -> None:
    """The point leaps farther than the model allows and stays there: after three refusals the filter believes it."""
    points = np.full((60, 2), 0.2)
    points[30:] = 0.8
    path, used = smooth(points, ticks(60), TrackModel())
    assert used.all() and np.allclose(path, points, atol=0.01)
    stubborn = smooth(points, ticks(60), TrackModel(patience=100))[1]
    assert stubborn.sum() < 60, "it would not otherwise"
    with pytest.raises(DetectionError, match="patience"):
        TrackModel(patience=0)


def test_times_must_ascend() -> None:
    frames = [boxes_at(np.array([30, 30]), [0.9])] * 3
    for times in (np.zeros(3), ticks(2)):
        with pytest.raises(DetectionError, match="3 steps need as many times"):
            track(frames, (128, 128), times)


# ---------------------------------------------------------------- episodes


def test_times_of_steps() -> None:
    episode = square_episode(0, 6)

    def stamped(*times: float) -> Episode:
        return replace(episode, steps=tuple(replace(episode.steps[0], timestamp=time) for time in times))

    assert np.allclose(step_times(episode), ticks(6))
    assert np.allclose(step_times(stamped(0, 0, 0)), ticks(3, ASSUMED_RATE))
    assert np.allclose(step_times(stamped(5, 5.1, 5.1, 5.0, 5.3)), [0, 0.1, 0.3, 0.5, 0.8])
    assert np.allclose(step_times(stamped(7)), [0])


def square_episode(seed: int, count: int = 40, **changes: object) -> Episode:
    """A square that walks, seen by a camera that stands above it (one pixel per millimetre)."""
    steps = []
    for t, (x, y) in enumerate(walk(seed, count)):
        image = np.zeros((128, 128, 3), np.uint8)
        image[int(y) - 9 : int(y) + 9, int(x) - 9 : int(x) + 9] = 255
        steps.append(
            Step(
                state=np.zeros(7, np.float32), gripper_open=1.0, timestamp=t / 20,
                image=encode_image(image) if t % 2 == 0 else None,
                end_effector_position=np.array([int(x) / 1000, int(y) / 1000, 1.0], np.float32),
                camera_intrinsics=np.diag([1000.0, 1000.0, 1.0]), camera_pose=np.eye(4),
            )
        )  # fmt: skip
    said = ("move the square",)
    episode = Episode(
        f"walk-{seed}", "tabletop", "panda", "joint_velocity", said, "walk", 0, seed, None, tuple(steps)
    )  # fmt: skip
    return replace(episode, **changes)  # type: ignore[arg-type]


def test_episodes_come_out_in_order_whatever_the_batch() -> None:
    oracle = Oracle(*make_detector(SMALL))
    blind = replace(square_episode(9), steps=tuple(replace(s, image=None) for s in square_episode(9).steps))
    episodes = [square_episode(0), blind, square_episode(1, 30), square_episode(2, 51)]
    results = [list(detect_episodes(oracle, iter(episodes), batch_size=size)) for size in (1, 7, 1000)]
    for result in results:
        assert [one.episode for one in result] == episodes
        assert result[1].trace is None and result[1].frames == 0
        for one, other in zip(result, results[0], strict=True):
            assert one.trace is None or np.array_equal(one.trace.points, other.trace.points)  # type: ignore[union-attr]


def test_episodes_are_streamed() -> None:
    read = []

    def source():  # type: ignore[no-untyped-def]
        for seed in range(6):
            read.append(seed)
            yield square_episode(seed, 30)

    first = next(detect_episodes(Oracle(*make_detector(SMALL)), source(), batch_size=15))
    assert first.episode.seed == 0 and len(read) <= 2


def test_projection_and_detection_are_compared_by_the_audit() -> None:
    tracer = EpisodeTracer(Oracle(*make_detector(SMALL)))
    episode = square_episode(4)
    trace = tracer(episode)
    assert trace is not None and trace.source == "detection" and trace.score is not None
    agreement = compare_with_projection(next(detect_episodes(tracer.detector, [episode])))
    assert agreement is not None and 1 < agreement.offset < 4 and agreement.error < 2 and agreement.used == 1
    assert not [one for one in audit_trace(episode, trace) if one.check == "disagreement"]
    astray = replace(trace, points=trace.points[::-1].copy())
    assert [one for one in audit_trace(episode, astray) if one.check == "disagreement"]
    uncalibrated = replace(episode, steps=tuple(replace(step, camera_pose=None) for step in episode.steps))
    assert compare_with_projection(next(detect_episodes(tracer.detector, [uncalibrated]))) is None


def test_pictures_of_several_sizes_are_refused() -> None:
    episode = square_episode(0, 4)
    odd = replace(episode.steps[0], image=encode_image(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(LlarvaError, match="several sizes"):
        list(detect_episodes(Oracle(*make_detector(SMALL)), [replace(episode, steps=(odd, *episode.steps[1:]))]))


def test_rows_are_not_made_of_what_was_not_seen() -> None:
    """The square is out of the picture for a while: only steps after that know the whole way to the end."""
    episode = square_episode(4, 80)
    dark = encode_image(np.zeros((128, 128, 3), np.uint8))
    steps = [replace(step, image=dark) if 20 <= t < 50 and step.image else step for t, step in enumerate(episode.steps)]
    hidden = replace(episode, steps=tuple(steps))
    tracer, form = EpisodeTracer(Oracle(*make_detector(SMALL))), readable_format(episode)
    asked = range(0, 78, 2)
    assert set(step_traces(episode, asked, form, tracer)) == set(asked)
    assert set(step_traces(hidden, asked, form, tracer)) == {step for step in asked if step > 48}


def test_detections_are_judged_where_there_are_pictures() -> None:
    """Every fourth step has a picture: its points are all seen, and a tremble of theirs is found."""
    episode = square_episode(4, 160)
    steps = tuple(replace(step, image=step.image if t % 4 == 0 else None) for t, step in enumerate(episode.steps))
    sparse = replace(episode, steps=steps)
    trace = EpisodeTracer(Oracle(*make_detector(SMALL)))(sparse)
    assert trace is not None and trace.visible.mean() == 0.25
    assert audit_trace(sparse, trace) == ()
    noise = np.random.default_rng(0).normal(0, 4, trace.points.shape).astype(np.float32)
    assert "jitter" in {one.check for one in audit_trace(sparse, replace(trace, points=trace.points + noise))}
    unseen = replace(trace, visible=trace.visible & (np.arange(160) % 8 == 0))
    assert [one.message for one in audit_trace(sparse, unseen)] == ["The point is visible in 20 of 40 pictures."]


def test_a_hand_that_was_lost_for_long_is_reported() -> None:
    episode = square_episode(4, 160)
    dark = encode_image(np.zeros((128, 128, 3), np.uint8))
    steps = [replace(step, image=dark) if 60 <= t < 90 and step.image else step for t, step in enumerate(episode.steps)]
    lost = replace(episode, steps=tuple(steps))
    trace = EpisodeTracer(Oracle(*make_detector(SMALL)))(lost)
    assert trace is not None
    (found,) = audit_trace(lost, trace)
    assert (found.check, found.steps, found.measured) == ("coverage", (60, 89), pytest.approx(1.5))


def test_a_detector_that_finds_nothing_is_not_mistaken_for_a_projection() -> None:
    episode = square_episode(4)
    view = view_of(episode, lambda _: None)
    found, _ = look(view)
    assert view.trace is not None and view.trace.source == "detection" and view.reference is not None
    assert [(one.check, one.severity) for one in found if one.check == "coverage"] == [("coverage", 1.0)]
    assert view_of(episode, None).trace.source == "projection"  # type: ignore[union-attr]
