"""The annotator without a browser: clicks, files, and what training gets of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_samples import make_episode

from llarva.episodes.records import encode_image
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.traces.detection_data import DetectionError, read_labelled
from llarva.traces.detection_model import Detections
from llarva.widgets.annotator import (
    ANNOTATIONS,
    Annotations,
    Annotator,
    export_annotations,
    frame_images,
    least_sure_first,
    make_box,
    sample_frames,
)
from llarva.widgets.scenes import ExplorerError


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    picture = encode_image(np.full((30, 40, 3), 90, np.uint8))
    with EpisodeWriter(tmp_path / "store", "tabletop") as writer:
        for seed in range(3):
            episode = make_episode(seed, length=7)
            steps = tuple(replace(s, image=picture if s.image else None) for s in episode.steps)
            writer.write(replace(episode, episode_id=f"e{seed}", dataset="tabletop", steps=steps))
    return EpisodeStore(tmp_path / "store")


def test_frames_are_spread_and_seeded(store: EpisodeStore) -> None:
    frames = sample_frames(store, 6)
    assert len(set(frames)) == 6 and {name for name, _ in frames[:3]} == {"e0", "e1", "e2"}
    assert frames == sample_frames(store, 6) and len(sample_frames(store, 1000)) == 12
    assert all(image.startswith(b"\x89PNG") for image in frame_images(store, frames).values())
    with pytest.raises(ExplorerError, match="step 1"):
        frame_images(store, [("e0", 1)])


def test_clicks_make_boxes_that_are_saved_at_once(store: EpisodeStore, tmp_path: Path) -> None:
    frames = sample_frames(store, 4)
    found = {frames[1]: Detections(np.array([[2, 3, 12, 13]], np.float32), np.array([0.6], np.float32))}
    annotator = Annotator(store, Annotations.open(tmp_path), frames, found)
    annotator.click(30.5, 20.5)
    annotator.click(10.5, 5.5)
    assert Annotations.open(tmp_path).boxes == {frames[0]: ((10.5, 5.5, 30.5, 20.5),)}
    annotator.click(1.5, 1.5)
    annotator.click(1.5, 9.5)
    assert "corners" in annotator.problem.value and len(annotator.annotations.boxes[frames[0]]) == 1
    annotator.controls["next"].click()
    assert "0.60" in annotator.note.value and annotator.picture.layout.shapes[0].line.dash == "dot"
    annotator.controls["accept"].click()
    annotator.controls["none"].click()
    assert annotator.frame == frames[3]
    annotator.click(3, 3)
    annotator.undo()
    assert annotator.corner is None and frames[3] not in annotator.annotations.boxes
    annotator.move(-2)
    annotator.undo()
    assert set(Annotations.open(tmp_path).boxes) == {frames[0], frames[2]}


def test_training_gets_what_was_clicked(store: EpisodeStore, tmp_path: Path) -> None:
    frames, annotations = sample_frames(store, 3), Annotations.open(tmp_path)
    with pytest.raises(DetectionError, match="no annotation"):
        export_annotations(annotations, store, tmp_path / "out.parquet")
    annotations.put(frames[0], [make_box((1, 2), (9, 8)), make_box((20, 20), (10, 12))])
    annotations.put(frames[1], [])
    assert export_annotations(annotations, store, tmp_path / "mine" / "a.parquet") == 2
    read = list(read_labelled(tmp_path / "mine"))
    assert read[0].boxes.tolist() == [[1, 2, 9, 8], [10, 12, 20, 20]] and len(read[1].boxes) == 0
    assert read[0].pixels().shape == (30, 40, 3) and read[0].origin == f"{frames[0][0]}:{frames[0][1]}"


def test_damaged_annotations_name_the_line(tmp_path: Path) -> None:
    (tmp_path / ANNOTATIONS).write_text('{"episode_id": "e", "step": 0, "boxes": []}\n{"episode_id": "e"}\n')
    with pytest.raises(DetectionError, match="line 2"):
        Annotations.open(tmp_path)


def test_the_least_sure_come_first() -> None:
    def seen(*scores: float) -> Detections:
        return Detections(np.zeros((len(scores), 4), np.float32), np.array(scores, np.float32))

    found = {("a", 0): seen(0.95), ("a", 1): seen(0.45), ("a", 2): seen(), ("a", 3): seen(0.1)}
    assert least_sure_first(found) == [("a", 2), ("a", 1), ("a", 3), ("a", 0)]


def test_no_frames_no_widget(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(ExplorerError, match="no frame"):
        Annotator(store, Annotations.open(tmp_path), [])
