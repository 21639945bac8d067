"""Our episodes as LeRobot data sets: what comes back, and what `lerobot` makes of them."""

import importlib.util
import json
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llarva.sources.lerobot_writer as writer_module
from llarva.episodes.records import Step, decode_image, encode_image, episodes_equal
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.sources.lerobot import LerobotEpisodes
from llarva.sources.lerobot_writer import EVENTS, LerobotWriter, write_lerobot
from llarva.sources.opcodes import SourceError

sys.path.insert(0, str(Path(__file__).parent))
from lerobot_sets import make_episode, make_trace

CAMERA = "observation.images.front"


def read_back(root):
    source = LerobotEpisodes(root)
    episodes = list(source)
    return episodes, [source.trace(number) for number in range(len(episodes))]


def without(episode, *names):
    steps = tuple(replace(step, **dict.fromkeys(names)) for step in episode.steps)
    return replace(episode, steps=steps)


@given(
    lengths=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    absent=st.sets(st.sampled_from([f.name for f in fields(Step) if f.default is None and f.name != "image"])),
    traced=st.sampled_from([None, False, True]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15, deadline=None)
def test_written_episodes_come_back_the_same(lengths, absent, traced, seed):
    absent = absent - {"segmentation"}
    episodes = [without(make_episode(k, n, seed=seed), *absent) for k, n in enumerate(lengths)]
    traces = [None if traced is None else make_trace(e, scored=traced) for e in episodes]
    with tempfile.TemporaryDirectory() as folder:
        with LerobotWriter(Path(folder) / "set") as writer:
            for episode, trace in zip(episodes, traces, strict=True):
                writer.write(episode, trace)
        back, back_traces = read_back(Path(folder) / "set")
    for episode, trace, again, trace_again in zip(episodes, traces, back, back_traces, strict=True):
        assert episodes_equal(episode, again)
        assert (trace is None) == (trace_again is None)
        if trace is not None:
            np.testing.assert_array_equal(trace.points, trace_again.points)
            np.testing.assert_array_equal(trace.visible, trace_again.visible)
            assert trace.source == trace_again.source
            assert trace.score is trace_again.score is None or np.array_equal(trace.score, trace_again.score)


def test_a_store_with_projected_traces(tmp_path):
    episodes = [make_episode(k, 5) for k in range(3)]
    with EpisodeWriter(tmp_path / "store", "tabletop") as store:
        for episode in episodes:
            store.write(episode)
    root = write_lerobot(EpisodeStore(tmp_path / "store"), tmp_path / "set")
    back, traces = read_back(root)
    assert all(episodes_equal(a, b) for a, b in zip(episodes, back, strict=True)) and len(traces[0]) == 5
    names = {path.name for path in root.rglob("*") if path.is_file()}
    assert not any(name.startswith(".") for name in names)


def test_videos_hold_the_right_frames(tmp_path):
    episodes = [make_episode(k, 4 + k) for k in range(3)]
    back, _ = read_back(write_lerobot(episodes, tmp_path / "set", video=True, traces=None))
    for episode, again in zip(episodes, back, strict=True):
        assert episodes_equal(without(episode, "image"), without(again, "image"))
        for step, copy in zip(episode.steps, again.steps, strict=True):
            assert abs(decode_image(step.image).mean() - decode_image(copy.image).mean()) < 1.5  # 4 apart


def test_files_are_numbered_when_they_fill_up(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "_DATA_MB", 0.015)
    monkeypatch.setattr(writer_module, "_FILM_PIXELS", 48 * 64 * 100)
    monkeypatch.setattr("llarva.sources.lerobot_output.CHUNK", 2)
    episodes = [make_episode(k, 6, size=(48, 64)) for k in range(70)]
    root = write_lerobot(episodes, tmp_path / "set", video=True)
    data = sorted(str(path.relative_to(root)) for path in (root / "data").rglob("*.parquet"))
    assert len(data) > 4 and data[2] == "data/chunk-001/file-000.parquet"
    assert len(list((root / "videos").rglob("*.mp4"))) == 5 and len(list((root / "meta").rglob("file-*"))) == 2
    back, _ = read_back(root)
    assert [episode.episode_id for episode in back] == [episode.episode_id for episode in episodes]
    assert all(np.array_equal(a.steps[3].state, b.steps[3].state) for a, b in zip(episodes, back, strict=True))


def test_the_same_episodes_give_the_same_bytes(tmp_path):
    roots = [write_lerobot([make_episode(k, 5) for k in range(2)], tmp_path / n, trace_events=4) for n in ("a", "b")]
    files = [sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in roots]
    assert files[0] == files[1]
    assert all((roots[0] / name).read_bytes() == (roots[1] / name).read_bytes() for name in files[0])


def hole(episode, name, step):
    steps = list(episode.steps)
    steps[step] = replace(steps[step], **{name: None})
    return replace(episode, steps=tuple(steps))


def small(episode):
    picture = encode_image(np.zeros((8, 8, 3), np.uint8))
    return replace(episode, steps=tuple(replace(step, image=picture) for step in episode.steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: hole(e, "image", 2), "1 of 5 steps have no picture; the first is step 2"),
        (lambda e: hole(e, "camera_pose", 1), "camera_pose is missing at step 1 and given at step 0"),
        (lambda e: without(e, "end_effector_position"), "end_effector_position on no steps; the first episode on all"),
        (small, r"pictures of \(8, 8\), so far of \(16, 24\)"),
        (lambda e: replace(e, steps=tuple(replace(s, state=s.state[:6]) for s in e.steps)), "6 numbers of state"),
        (
            lambda e: replace(e, steps=tuple(replace(s, timestamp=2 * s.timestamp) for s in e.steps)),
            "10 steps per second",
        ),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(SourceError, match=message) as caught, LerobotWriter(tmp_path / "set") as writer:
        writer.write(make_episode(0, 5))
        writer.write(change(make_episode(1, 5)))
    assert "set/1" in str(caught.value) and not (tmp_path / "set/meta/info.json").exists()


def test_what_the_writer_refuses(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(SourceError, match="not empty"):
        LerobotWriter(tmp_path / "full")
    with pytest.raises(SourceError, match="no episode was written"):
        write_lerobot([], tmp_path / "none")
    with pytest.raises(SourceError, match="one plain word"):
        LerobotWriter(tmp_path / "x", camera="../front")
    with pytest.raises(SourceError, match="needs traces"):
        write_lerobot([make_episode(0, 3)], tmp_path / "y", traces=None, trace_events=8)
    with pytest.raises(SourceError, match="even height and width"):
        write_lerobot([make_episode(0, 3, size=(15, 24))], tmp_path / "z", traces=None, video=True)


def test_events_hold_the_trace_from_each_frame_on(tmp_path):
    episode = make_episode(0, 9)
    trace = make_trace(episode)
    with LerobotWriter(tmp_path / "set", trace_events=4) as writer:
        writer.write(episode, trace)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["features"][EVENTS] == {"dtype": "language", "shape": [1], "names": None}
    rows = pq.read_table(tmp_path / "set/data", columns=[EVENTS])[EVENTS].to_pylist()
    for t, (row,) in enumerate(rows):
        content = json.loads(row["content"])
        assert (row["style"], row["camera"], row["role"]) == ("trace", CAMERA, "assistant")
        assert len(content["points"]) == len(content["visible"]) == min(4, 9 - t)
        first = trace.points[t]
        assert content["points"][0] == (None if np.isnan(first).any() else np.round(first.astype(float), 2).tolist())


def open_with_lerobot(root, **options):
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    return module.LeRobotDataset("some/name", root=root, video_backend="pyav", **options)


@pytest.mark.parametrize("video", [False, True])
def test_lerobot_opens_it(tmp_path, monkeypatch, video):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("lerobot")
    episodes = [make_episode(k, 5 + k) for k in range(3)]
    traces = [make_trace(episode, scored=True) for episode in episodes]
    with LerobotWriter(tmp_path / "set", video=video) as writer:
        for episode, trace in zip(episodes, traces, strict=True):
            writer.write(episode, trace)
    ahead = {"trace.point": [k / 20 for k in range(4)]}
    dataset, windows = open_with_lerobot(tmp_path / "set"), open_with_lerobot(tmp_path / "set", delta_timestamps=ahead)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (18, 3, 20)
    rows = [
        (episode, trace, t) for episode, trace in zip(episodes, traces, strict=True) for t in range(len(episode.steps))
    ]
    for index, (episode, trace, t) in enumerate(rows):
        item, step = dataset[index], episode.steps[t]
        assert item["task"] == episode.instructions[0]
        np.testing.assert_array_equal(item["observation.state"][:7].numpy(), step.state)
        if step.action is not None:
            np.testing.assert_array_equal(item["action"].numpy(), step.action)
        np.testing.assert_array_equal(item["trace.point"].numpy(), trace.points[t])
        picture = (item[CAMERA].permute(1, 2, 0) * 255).round().numpy()
        assert np.abs(picture - decode_image(step.image)).max() <= (2.5 if video else 0)
        window = windows[index]
        inside = ~window["trace.point_is_pad"].numpy()
        np.testing.assert_array_equal(window["trace.point"].numpy()[inside], trace.points[t : t + 4])
        assert inside.sum() == min(4, len(trace) - t)


def test_lerobot_finds_traces_in_their_reserved_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("lerobot")
    if importlib.util.find_spec("lerobot.datasets.language") is None:
        pytest.skip("this lerobot has no language columns")
    from lerobot.datasets.language import column_for_style, validate_camera_field

    dataset = open_with_lerobot(write_lerobot([make_episode(0, 6)], tmp_path / "set", trace_events=8))
    (row,) = dataset[2][column_for_style("trace")]
    validate_camera_field(row["style"], row["camera"])
    assert row["camera"] in dataset.meta.camera_keys and len(json.loads(row["content"])["points"]) == 4


def test_statistics_are_those_of_lerobot(tmp_path):
    stats = pytest.importorskip("lerobot.datasets.compute_stats")
    episodes = [make_episode(k, 7 + k) for k in range(3)]
    root = write_lerobot(episodes, tmp_path / "set", traces=None)
    ours, parts = json.loads((root / "meta/stats.json").read_text()), []
    for number, episode in enumerate(episodes):
        paths = []
        for t, step in enumerate(episode.steps):
            paths.append(str(tmp_path / f"{number}-{t}.png"))
            Path(paths[-1]).write_bytes(step.image)
        state = np.array([[*step.state, step.gripper_open] for step in episode.steps], np.float32)
        features = {"observation.state": {"dtype": "float32"}, CAMERA: {"dtype": "image"}}
        parts.append(stats.compute_episode_stats({"observation.state": state, CAMERA: paths}, features))
    # before 0.6, lerobot squares pictures as bytes, which overflow
    old = importlib.util.find_spec("lerobot.datasets.language") is None
    for name, theirs in stats.aggregate_stats(parts).items():
        for key in ("min", "max", "mean", "count") + (() if old and name == CAMERA else ("std",)):
            np.testing.assert_allclose(ours[name][key], theirs[key], rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}")
        for key in ("q01", "q50", "q99"):
            np.testing.assert_allclose(ours[name][key], theirs[key], atol=0.35, err_msg=f"{name} {key}")
