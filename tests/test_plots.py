"""Figures and the explorer's data, without a browser."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llarva.cameras import intrinsics_from_fov, look_at
from llarva.episodes.records import Episode, Step, encode_image
from llarva.episodes.store import EpisodeWriter
from llarva.plots.episodes import (
    PlotError,
    filmstrip,
    image_layer,
    kept_frames,
    playback_figure,
    signals_figure,
    trace_figure,
    trace_layers,
)
from llarva.sources.rlbench_writer import write_episode
from llarva.traces.projection import Trace, project_episode
from llarva.widgets.explorer import TraceExplorer
from llarva.widgets.scenes import find_datasets, make_scene, open_episodes, readable_format, step_text


def make_episode(steps: int = 12, *, every: int = 1, size: tuple[int, int] = (48, 64), name: str = "e") -> Episode:
    rng, records, (height, width) = np.random.default_rng(0), [], size
    for t in range(steps):
        last, velocity, turn = t + 1 == steps, rng.normal(size=7).astype(np.float32), 2 * np.pi * t / steps
        image = encode_image(np.full((height, width, 3), 40 + 5 * t, np.uint8)) if t % every == 0 else None
        records.append(Step(
            state=rng.normal(size=7).astype(np.float32),
            gripper_open=0.5,
            image=image,
            action=None if last else np.append(velocity, np.float32(1)),
            joint_velocity_command=None if last else velocity,
            end_effector_position=np.float32([0.2 * np.cos(turn), 0.25 * np.sin(turn), 1.0]),
            end_effector_quaternion_xyzw=np.float32([1, 0, 0, 0]),
            camera_intrinsics=intrinsics_from_fov(0.7, size),
            camera_pose=look_at((1.35, 0, 1.58), (0, 0, 0.9)),
            timestamp=t / 20,
        ))
    words = ("push the red button",)
    return Episode(name, "tabletop", "panda", "joint_velocity", words, "push_buttons", 0, 0, True, tuple(records))


def layers(figure: go.Figure) -> dict[str, go.Scatter]:
    return {layer.name: layer for layer in figure.data if isinstance(layer, go.Scatter)}


def test_image_covers_its_pixels() -> None:
    """Whatever size is embedded, the picture spans [0, width] × [0, height]: pixel i covers [i, i + 1)."""
    for height, width, side in ((48, 64, 256), (480, 640, 256), (33, 77, 20)):
        layer = image_layer(np.zeros((height, width, 3), np.uint8), side)
        data = base64.b64decode(layer.source.split(",")[1])
        small = Image.open(io.BytesIO(data)).size
        assert max(small) <= side or max(small) == max(height, width)
        assert layer.x0 - layer.dx / 2 == 0 and layer.y0 - layer.dy / 2 == 0
        assert small[0] * layer.dx == pytest.approx(width) and small[1] * layer.dy == pytest.approx(height)


def test_lossless_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    data = base64.b64decode(image_layer(pixels, lossless=True).source.split(",")[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


@pytest.mark.parametrize("bad", [b"", b"no image", np.zeros((3, 3, 7), np.uint8)])
def test_not_an_image(bad: bytes) -> None:
    with pytest.raises(PlotError, match="Not an image"):
        image_layer(bad)


def test_past_future_now_end() -> None:
    episode = make_episode()
    trace = project_episode(episode)
    drawn = layers(trace_figure(episode.steps[4].image or b"", trace, 4))
    np.testing.assert_allclose(np.stack([drawn["past"].x, drawn["past"].y], 1), trace.points[:5], atol=0.01)
    np.testing.assert_allclose([drawn["now"].x[0], drawn["now"].y[0]], trace.points[4], atol=0.01)
    np.testing.assert_allclose([drawn["end"].x[0], drawn["end"].y[0]], trace.points[-1], atol=0.01)
    colour = np.asarray(drawn["future"].marker.color)
    assert colour[0] == 4 and (np.diff(colour) >= 0).all() and drawn["future"].marker.cmax == 11


def test_hidden_stretch_is_dashed_and_not_beaded() -> None:
    points = np.stack([np.arange(20.0), np.zeros(20)], 1).astype(np.float32)
    seen = np.ones(20, bool)
    seen[8:12] = False
    drawn = {layer.name: layer for layer in trace_layers(Trace(points, seen), 0, spacing=0.5)}
    assert drawn["hidden"].line.dash == "dot"
    x = np.asarray(drawn["hidden"].x, float)
    assert np.nanmin(x) == 7 and np.nanmax(x) == 12  # up to the visible neighbours, so that no gap is left
    beads = np.asarray(drawn["future"].x, float)
    assert not ((beads > 7.6) & (beads < 11.4)).any() and (beads < 7).any() and (beads > 12).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.data())
def test_any_trace_can_be_drawn(count: int, data: st.DataObject) -> None:
    numbers = st.floats(-500, 500, width=32) | st.just(float("nan"))
    points = np.array(data.draw(st.lists(st.tuples(numbers, numbers), min_size=count, max_size=count)), np.float32)
    seen = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    step = data.draw(st.integers(0, count - 1))
    figure = trace_figure(np.zeros((20, 30, 3), np.uint8), Trace(points, seen), step)
    json.loads(figure.to_json())
    assert len(trace_layers(Trace(points, seen), step)) == 6


@pytest.mark.parametrize("step", [-1, 12])
def test_step_outside(step: int) -> None:
    with pytest.raises(PlotError, match="valid steps are 0 to 11"):
        trace_layers(project_episode(make_episode()), step)


def test_leaving_the_image_gets_a_margin() -> None:
    inside = Trace(np.float32([[5, 5], [10, 10]]), np.array([True, True]))
    outside = Trace(np.float32([[5, 5], [10, 26]]), np.array([True, False]))
    image = np.zeros((20, 30, 3), np.uint8)
    assert trace_figure(image, inside).layout.xaxis.range == (0, 30)
    assert trace_figure(image, outside).layout.yaxis.range[0] > 20
    far = Trace(np.float32([[5, 5], [10, 2600]]), np.array([True, False]))
    assert trace_figure(image, far).layout.yaxis.range[0] == 26


def test_signals() -> None:
    episode = make_episode()
    figure = signals_figure(episode, 3)
    assert figure.layout.shapes[0].x0 == 0.15
    assert len(figure.data) == 7 + 7 + 2
    np.testing.assert_array_equal(figure.data[8].y, [step.action[1] for step in episode.steps[:-1]])
    assert "rad/s" in figure.layout.annotations[1].text


def test_filmstrip_and_playback() -> None:
    episode = make_episode(every=3)
    trace = project_episode(episode)
    assert kept_frames(episode) == [0, 3, 6, 9]
    strip = filmstrip(episode, trace, count=3)
    assert sum(isinstance(layer, go.Image) for layer in strip.data) == 3
    moving = playback_figure(episode, trace)
    assert [frame.name for frame in moving.frames] == ["0", "3", "6", "9"]
    assert [step.value for step in moving.layout.sliders[0].steps] == ["0", "3", "6", "9"]
    assert len({frame.data[0].source for frame in moving.frames}) == 4
    assert moving.to_json() == playback_figure(episode, trace).to_json()


def test_no_image_at_all() -> None:
    episode = make_episode()
    blind = replace(episode, steps=tuple(replace(step, image=None) for step in episode.steps))
    with pytest.raises(PlotError, match="no image"):
        filmstrip(blind)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with EpisodeWriter(tmp_path / "runs" / "demos", "tabletop") as writer:
        writer.write(make_episode(name="a"))
        writer.write(make_episode(name="b", every=4, steps=9))
    write_episode(make_episode(), tmp_path / "rlbench")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "store.json").write_text('{"kind": "instruction rows", "version": 1, "shards": []}')
    return tmp_path


def test_datasets_are_found(data: Path) -> None:
    assert list(find_datasets(data)) == ["rlbench", "runs/demos"]
    assert find_datasets(data / "absent") == {}
    assert len(open_episodes(data / "rlbench")) == 1


def test_explorer_walks(data: Path) -> None:
    explorer = TraceExplorer(find_datasets(data))
    assert explorer.controls["dataset"].value == "rlbench" and explorer.scene is not None
    explorer.controls["dataset"].value = "runs/demos"
    explorer.controls["episode"].value = 1
    explorer.step = 7
    assert "image of step 8" in explorer.note.value
    explorer.controls["episode"].value = 0
    assert explorer.step == 0 and explorer.controls["slider"].max == 11
    frames = set()
    for step in range(12):
        explorer.step = step
        frames.add(explorer.picture.data[0].source)
        assert len(explorer.picture.data[1].x) == step + 1
        assert explorer.signals.layout.shapes[0].x0 == step / 20
    assert len(frames) == 12
    assert "No action follows the last step" in explorer.words.value


def test_explorer_words_per_control_mode(data: Path) -> None:
    explorer = TraceExplorer({"demos": data / "runs" / "demos"})
    joint = explorer.words.value
    explorer.controls["mode"].value = "end_effector_delta"
    assert "joint control" in joint and "end effector control" in explorer.words.value
    form = readable_format(make_episode())
    prompt, answer = step_text(make_episode(), 2, form, "joint_velocity")
    parsed = form.parse(answer, "joint_velocity")
    np.testing.assert_allclose(parsed.actions[0], make_episode().steps[2].action, atol=1e-4)
    assert prompt.startswith("<image>")


def test_explorer_reports_instead_of_raising(data: Path) -> None:
    explorer = TraceExplorer({})
    assert "No data set was found" in explorer.problem.value
    explorer.controls["folder"].value = str(data / "absent")
    assert "no such folder" in explorer.problem.value and explorer.stage.children == ()
    explorer.controls["folder"].value = str(data / "rows")
    assert "holds instruction rows, not episodes" in explorer.problem.value
    explorer.controls["folder"].value = str(data / "runs" / "demos")
    assert explorer.problem.value == "" and explorer.scene is not None
    next((data / "runs" / "demos" / "data").glob("*.parquet")).write_bytes(b"PAR1")
    explorer.controls["episode"].value = 1
    assert "parquet" in explorer.problem.value and explorer.scene is None


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    episode = replace(make_episode(name=f"{evil}"), instructions=(evil,), task=evil)
    with EpisodeWriter(tmp_path / "d", "tabletop") as writer:
        writer.write(episode)
    explorer = TraceExplorer({"d": tmp_path / "d"})
    for shown in (explorer.about, explorer.words, explorer.problem, explorer.note):
        assert "<img" not in shown.value


def test_episode_without_camera_has_no_trace() -> None:
    episode = make_episode()
    scene = make_scene(replace(episode, steps=tuple(replace(step, camera_pose=None) for step in episode.steps)))
    assert "no camera" in scene.problem and not scene.trace.visible.any()


def test_explore_notebook_is_clean() -> None:
    """A saved FigureWidget would carry five megabytes of plotly."""
    path = Path(__file__).parent.parent / "nbs" / "explore" / "traces.ipynb"
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 20_000 and "widgets" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(cell.get("outputs") for cell in notebook["cells"])
