"""The end-effector detector: its pictures, its network, its training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_samples import SMALL, save_cups_and_grippers, square_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.traces import detection_training
from llarva.traces.detection import EpisodeTracer
from llarva.traces.detection_data import (
    DetectionError,
    draw_set,
    read_labelled,
    vary,
    write_labelled,
)
from llarva.traces.detection_losses import cell_centres, dense_loss, heat_of
from llarva.traces.detection_model import Detector, DetectorSize, load_detector, make_detector
from llarva.traces.detection_training import DetectorTraining, train_detector


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


def test_more_pictures_are_another_training(squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "squares")
    config = DetectorTraining({str(tmp_path / "squares"): 1.0}, str(tmp_path / "out"), size=SMALL, steps=1,
                              batch_size=2)  # fmt: skip
    train_detector(config)
    mark = EpisodeTracer.from_checkpoint(tmp_path / "out" / "checkpoint").name
    file = next((tmp_path / "squares").glob("*.parquet"))
    shutil.copy(file, file.with_name("more.parquet"))
    with pytest.raises(DetectionError, match="other parameters"):
        train_detector(config)
    shutil.rmtree(tmp_path / "out")
    train_detector(config)
    assert EpisodeTracer.from_checkpoint(tmp_path / "out" / "checkpoint").name != mark, "another detector at its place"


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
    assert load_detector(tmp_path / "out" / "checkpoint").labels == load_detector(base, "gripper").labels


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
