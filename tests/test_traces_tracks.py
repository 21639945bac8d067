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
from llarva.traces.audit import audit_trace
from llarva.traces.detection import EpisodeTracer, compare_with_projection, detect_episodes
from llarva.traces.detection_data import DetectionError
from llarva.traces.detection_model import Detections, Detector, make_detector
from llarva.traces.detection_scores import average_precision, matches, overlaps, score_detector
from llarva.traces.detection_tracks import TrackModel, choose, smooth, track


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
    trace = track(frames, (128, 128))
    assert trace is not None and len(trace) == len(truth) and np.isfinite(trace.points).all()
    error = np.linalg.norm(trace.points - truth, axis=1)
    assert np.median(error) < 1.5 and np.quantile(error, 0.95) < 6
    assert error.max() < max(10, np.nanmax(raw))
    assert ((trace.score > 0) == trace.visible).all()


def test_a_false_start_does_not_bind_the_track() -> None:
    truth = walk(3)
    frames = [boxes_at(truth[t], [0.8]) for t in range(len(truth))]
    frames[0] = boxes_at(np.array([5, 5]), [0.99])
    trace = track(frames, (128, 128))
    assert trace is not None and not trace.visible[0]
    assert np.linalg.norm(trace.points[1:] - truth[1:], axis=1).max() < 3


def test_ends_stand_still_and_nothing_gives_no_trace() -> None:
    nothing = boxes_at(np.zeros((0, 2)), [])
    frames = [nothing] * 5 + [boxes_at(np.array([30 + 3 * t, 40]), [0.8]) for t in range(6)] + [nothing] * 5
    trace = track(frames, (128, 128))
    assert trace is not None
    assert np.allclose(trace.points[:5], trace.points[5]) and np.allclose(trace.points[11:], trace.points[10])
    assert trace.visible.tolist() == [False] * 5 + [True] * 6 + [False] * 5
    assert track([nothing] * 4, (128, 128)) is None and track([], (128, 128)) is None


def test_low_scores_alone_are_no_track() -> None:
    frames = [boxes_at(np.array([30, 30]), [0.05]) for _ in range(10)]
    assert (choose(frames, 181, TrackModel(miss=1.0)) == -1).all()


def test_the_gate_keeps_an_outlier_out() -> None:
    points = np.stack([np.linspace(0.2, 0.4, 20), np.full(20, 0.3)], axis=1)
    points[10] = [0.9, 0.9]
    path, used = smooth(points, TrackModel())
    assert not used[10] and used.sum() == 19 and abs(path[10, 0] - 0.305) < 0.01
    with pytest.raises(DetectionError, match="None of the"):
        smooth(np.full((3, 2), np.nan), TrackModel())
    with pytest.raises(DetectionError):
        TrackModel(noise=0)


# ---------------------------------------------------------------- episodes


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
