"""The end-effector detector: its pictures, its network, its training, its tracks, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.episodes.records import Episode, Step, encode_image
from llarva.errors import LlarvaError
from llarva.traces import detection_training
from llarva.traces.audit import audit_trace
from llarva.traces.detection import EpisodeTracer, compare_with_projection, detect_episodes
from llarva.traces.detection_data import (
    DetectionError,
    LabelledPicture,
    draw_set,
    read_labelled,
    vary,
    write_labelled,
)
from llarva.traces.detection_losses import cell_centres, dense_loss, heat_of
from llarva.traces.detection_model import Detections, Detector, DetectorSize, load_detector, make_detector
from llarva.traces.detection_scores import average_precision, matches, overlaps, score_detector
from llarva.traces.detection_tracks import TrackModel, choose, smooth, track
from llarva.traces.detection_training import DetectorTraining, train_detector

SMALL = DetectorSize(64, (4, 8, 12, 16), (1, 1, 1, 1), 16, 2, 2, 4, 2)


def boxes_at(centres: np.ndarray, scores: list[float], half: float = 5) -> Detections:
    centres = np.asarray(centres, np.float32).reshape(-1, 2)
    return Detections(np.concatenate([centres - half, centres + half], axis=1), np.array(scores, np.float32))


def square_picture(seed: int, size: int = 64) -> LabelledPicture:
    """A white square on noise: what any detector learns first."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    x, y = rng.integers(4, size - 22, 2)
    image[y : y + 18, x : x + 18] = 255
    box = np.array([[x, y, x + 18, y + 18]], np.float32)
    return LabelledPicture(encode_image(image), box, np.array([x + 9, y + 9], np.float32), "square")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    assert write_labelled(folder / "squares.parquet", (square_picture(seed) for seed in range(24))) == 24
    return folder


# ---------------------------------------------------------------- pictures


def test_files_open_with_datasets(squares: Path) -> None:
    import datasets

    files, cache = str(squares / "*.parquet"), str(squares / "cache")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert rows[0]["image"].size == (64, 64) and len(rows[0]["boxes"][0]) == 4


def test_what_is_not_labelled_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DetectionError, match="no labelled pictures"):
        list(read_labelled(tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DetectionError, match="broken.parquet"):
        list(read_labelled(tmp_path))
    turned = replace(square_picture(0), boxes=np.array([[10, 10, 5, 20]], np.float32))
    write_labelled(tmp_path / "broken.parquet", [turned])
    with pytest.raises(DetectionError, match="empty or not finite"):
        list(read_labelled(tmp_path))
    with pytest.raises(DetectionError, match="at least one picture"):
        draw_set(tmp_path, [("panda", None)], 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_varied_boxes_stay_on_what_they_box(seed: int) -> None:
    sample = square_picture(seed % 50)
    rng = np.random.default_rng(seed)
    shown, boxes = vary(sample.pixels(), sample.boxes, rng, 96)
    assert shown.shape == (96, 96, 3) and shown.dtype == np.uint8
    again, same = vary(sample.pixels(), sample.boxes, np.random.default_rng(seed), 96)
    assert np.array_equal(shown, again) and np.array_equal(boxes, same)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96
        ring = shown.mean(axis=2)
        inside = ring[int(y0) + 2 : int(y1) - 2, int(x0) + 2 : int(x1) - 2]
        assert inside.mean() > np.median(ring)


# ---------------------------------------------------------------- network


def test_impossible_sizes_are_refused() -> None:
    for wrong in ({"image_size": 100}, {"channels": (8, 8, 16, 32)}, {"width": 30}, {"decoder_layers": 1}):
        with pytest.raises(DetectionError):
            DetectorSize(**wrong)


def test_folders_without_a_detector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DetectionError, match="config.json"):
        load_detector(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DetectionError, match="not an object-detection checkpoint"):
        load_detector(tmp_path)


def save_cups_and_grippers(folder: Path) -> Path:
    """A detector of another family with two classes."""
    from transformers import DetrImageProcessorPil, YolosConfig, YolosForObjectDetection

    config = YolosConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         image_size=[64, 64], patch_size=16, num_detection_tokens=5,
                         id2label={0: "cup", 1: "gripper"}, label2id={"cup": 0, "gripper": 1})  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        YolosForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_any_detector_of_transformers_loads_and_names_its_class(tmp_path: Path) -> None:
    save_cups_and_grippers(tmp_path)
    with pytest.raises(DetectionError, match="cup.*gripper"):
        load_detector(tmp_path)
    found = load_detector(tmp_path, label="gripper").detect([np.zeros((48, 80, 3), np.uint8)], threshold=0.0)[0]
    assert (found.boxes >= 0).all() and (found.boxes <= [80, 48, 80, 48]).all()


def test_wrong_pictures_and_thresholds_are_refused() -> None:
    detector = Detector(*make_detector(SMALL))
    with pytest.raises(DetectionError, match="float64"):
        detector.detect([np.zeros((8, 8, 3))])
    with pytest.raises(DetectionError, match="makes no sense"):
        detector.detect([], threshold=1.5)
    assert detector.detect([]) == []


# ---------------------------------------------------------------- training


def test_a_killed_training_ends_with_the_same_weights(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DetectorTraining({str(squares): 1.0}, str(tmp_path / "whole"), size=SMALL, steps=6, batch_size=4,
                              save_every=3, log_every=2)  # fmt: skip
    whole = train_detector(config)
    halted = replace(config, out_dir=str(tmp_path / "halted"))
    draw, calls = detection_training._Pool.batch, []

    def stop(pool, seed, step, *rest):  # type: ignore[no-untyped-def]
        calls.append(step)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw(pool, seed, step, *rest)

    monkeypatch.setattr(detection_training._Pool, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        train_detector(halted)
    result = train_detector(halted)
    assert calls == [0, 1, 2, 3, 4, 3, 4, 5]
    first, again = (load_detector(one.checkpoint).model.state_dict() for one in (whole, result))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [row["loss"] for row in whole.log] == pytest.approx([row["loss"] for row in result.log], abs=1e-9)
    with pytest.raises(DetectionError, match="other parameters"):
        train_detector(replace(halted, learning_rate=5e-4))


def test_one_of_several_classes_is_fine_tuned(squares: Path, tmp_path: Path) -> None:
    base = save_cups_and_grippers(tmp_path / "base")
    config = DetectorTraining({str(squares): 1.0}, str(tmp_path / "out"), base=str(base), steps=16, batch_size=8,
                              learning_rate=3e-3, warmup_steps=1)  # fmt: skip
    with pytest.raises(DetectionError, match="cup.*gripper"):
        train_detector(config)
    images = [square_picture(seed).pixels() for seed in range(4)]

    @torch.inference_mode()
    def chances(folder: Path) -> dict[str, float]:
        detector = load_detector(folder, "gripper")
        logits = detector.model(**detector.processor(images=images, return_tensors="pt")).logits
        return dict(zip(("cup", "gripper"), logits.softmax(dim=-1).mean(dim=(0, 1)).tolist(), strict=False))

    before, after = chances(base), chances(train_detector(replace(config, base_label="gripper")).checkpoint)
    gained = {label: after[label] / before[label] for label in before}
    assert gained["gripper"] > 1.01 and gained["cup"] < 1, gained


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0.05, 0.95)] * 2, *[st.floats(0.02, 0.5)] * 2), max_size=3))
def test_every_hand_is_the_middle_of_a_cell_of_every_map(boxes: list[tuple[float, ...]]) -> None:
    true = torch.tensor(boxes).reshape(-1, 4)
    middles, widths = cell_centres(96, (8, 16, 32))
    heat, owner = heat_of(true, middles, widths)
    assert ((heat >= 0) & (heat <= 1)).all() and len(heat) == 144 + 36 + 9
    for width in widths.unique():
        tops = heat[widths == width] == 1
        assert min(1, len(boxes)) <= tops.sum() <= len(boxes)
    for k in torch.unique(owner[heat == 1]).tolist() if boxes else []:
        inside = (owner == k) & (heat == 1)
        assert ((middles[inside] - true[k, :2]).abs() <= widths[inside, None] / 2 + 1e-6).all()


def test_cells_that_may_not_propose_take_no_part() -> None:
    count = len(cell_centres(64, (8, 16, 32))[0])
    scores = torch.zeros(2, count, requires_grad=True)
    boxes = torch.zeros(2, count, 4)
    boxes[:, ::2] = torch.inf
    boxes.requires_grad_()
    true = [torch.tensor([[0.4, 0.4, 0.3, 0.3]]), torch.zeros(0, 4)]
    loss = dense_loss(scores, boxes, true, 64, (8, 16, 32))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all() and torch.isfinite(boxes.grad).all()
    assert boxes.grad[0].abs().sum() > 0 and boxes.grad[1].abs().sum() == 0 and (scores.grad[1] > 0).all()


def test_pictures_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DetectionError, match="shares above 0"):
        DetectorTraining({}, str(tmp_path))
    with pytest.raises(DetectionError, match="no labelled pictures"):
        train_detector(DetectorTraining({str(tmp_path): 1.0}, str(tmp_path / "out"), size=SMALL, steps=1))


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
