"""Figures that are right, rows that survive a kill, controls that do what they say, a page without network."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from llarva.decoding import untrained_checkpoint
from llarva.evaluation import report, rollouts
from llarva.evaluation.rollouts import evaluate, rollout, row_of, trace_error
from llarva.evaluation.rows import TIMINGS, EvaluationError, compare, format_summary, part_path, read_rows, summarize
from llarva.evaluation.rows import write_part as write
from llarva.evaluation.scenes import CONTROLS, EvaluationConfig, Scene, check_seeds, other_instruction, scenes_of
from llarva.evaluation.statistics import (
    StatisticsError,
    bootstrap_mean_over_tasks,
    clopper_pearson,
    mcnemar,
    wilson,
)
from llarva.evaluation.video import Frame, VideoError, draw_trace, gif_bytes, mp4_bytes, strip, write_film
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, Range
from llarva.models.checkpoints import Checkpoint
from llarva.models.tiny import TinySize
from llarva.robots import get_robot

COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


# ---- statistics


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


# ---- a small world: a point goes to one of three patches


class Patches(gymnasium.Env[Any, Any]):
    """The instruction names one of three letters; the first two patches are there, the third only in variation 2."""

    variation_count = 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        drawn = int(rng.integers(2))
        self.variation = int((options or {}).get("variation", drawn))
        self.names = ["patch A", "patch B"] + (["patch C"] if self.variation == 2 else [])
        angles = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3
        self.places = 0.35 * np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], axis=1)
        self.position, self.steps = np.zeros(3), 0
        return self.look(), self.info(False, None)

    def object_points(self) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.places, strict=False))

    def look(self) -> dict[str, Any]:
        image = np.zeros((64, 64, 3), np.uint8)
        for i, place in enumerate(self.places[: len(self.names)]):
            x, y = (32 + 60 * place[:2]).astype(int)
            image[y - 3 : y + 3, x - 3 : x + 3, i] = 255
        return {"image": image, "state": np.array(get_robot("panda").home, np.float32),
                "gripper_open": np.ones(1, np.float32)}

    def info(self, success: bool, failure: str | None) -> dict[str, Any]:
        pose = np.eye(4)
        pose[2, 3] = -1
        instruction = f"go to patch {'ABC'[self.variation]}"
        return {"instruction": instruction, "variation": self.variation, "clipped": self.steps,
                "camera_intrinsics": np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]), "camera_pose": pose,
                "end_effector_position": self.position, "success": success, "failure": failure}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position, self.steps = self.position + action[:3], self.steps + 1
        near = np.linalg.norm(self.places - self.position, axis=1) < 0.06
        success = bool(near[self.variation])
        failure = None if success else "wrong_patch" if near.any() else "time_limit" if self.steps >= 12 else None
        return self.look(), 0.0, success, failure is not None, self.info(success, failure)


class Seer:
    """Reads the letter and finds that patch by its colour; asks the world nothing."""

    def reset(self, instructions: Sequence[str], indices: Sequence[int] | None = None) -> None:
        self.asked = dict(zip(indices or (), instructions, strict=True))

    def step(self, observations: Sequence[Mapping[str, Any]], indices: Sequence[int] | None = None) -> Any:
        actions = []
        for i, seen in zip(indices or (), observations, strict=True):
            spots = np.argwhere(seen["image"][..., "ABC".index(self.asked[i][-1])] > 200)
            goal = (spots.mean(0)[::-1] + 0.5 - 32) / 60 if len(spots) else np.zeros(2)
            actions.append(np.array([*goal * 0.25, 0, 0, 0, 0, 1], np.float32) if self.turn(i) < 4 else np.zeros(7))
        return actions, [None] * len(actions)

    def turn(self, i: int) -> int:
        self.turns = getattr(self, "turns", {})
        self.turns[i] = self.turns.get(i, -1) + 1
        return self.turns[i]


def run_control(control: str, count: int = 10) -> list[dict[str, Any]]:
    scenes = [Scene("patches", seed, None, False) for seed in range(count)]
    return [row_of(one, control) for one in rollout(Seer(), scenes, [Patches() for _ in scenes], control)]


def test_controls_take_away_what_they_say() -> None:
    rows = {control: run_control(control) for control in CONTROLS}
    assert all(row["success"] and row["failure"] is None and row["reached_asked"] for row in rows["none"])
    assert sum(row["success"] for row in rows["blank_image"]) <= 2
    assert sum(row["success"] for row in rows["other_scene_image"]) <= 4
    for row in rows["wrong_instruction"]:
        assert not row["success"] and row["failure"] == "wrong_patch" and row["reached_asked"]
        assert row["asked_variation"] == 1 - row["variation"], "variation 2 asks for a patch that is not there"
    assert [row["variation"] for row in rows["none"]] == [row["variation"] for row in rows["wrong_instruction"]]
    assert compare(rows["none"], rows["wrong_instruction"]).only_a == 10


def test_wrong_instruction_needs_another_variation() -> None:
    env, scene = Patches(), Scene("patches", 0, 0, False)
    info = env.reset(seed=0, options={"variation": 0})[1]
    assert other_instruction(env, scene, info) == ("go to patch B", 1)
    with pytest.raises(EvaluationError, match="no other variation"):
        other_instruction(env, scene, info, variations=(0, 2))


def test_rows_say_what_happened() -> None:
    row = run_control("none", 1)[0]
    env = Patches()
    env.reset(seed=0)
    assert row["steps"] <= 4 and row["clipped"] == row["steps"] and re.fullmatch("[0-9a-f]{64}", row["action_sha256"])
    assert row["decode_ms_p50"] is None and row["trace_error_px"] is None and row["variation"] == env.variation


# ---- whole evaluations


MODE = "end_effector_delta"
FORMAT = InstructionFormat(
    "llarva-workbench-v1",
    BinNumbers(64, {"trace": Range((0.0,) * 2, (64.0,) * 2), f"state:{MODE}": Range((-1.0,) * 7, (1.0,) * 7),
                    f"action:{MODE}": Range((-0.1,) * 7, (0.1,) * 7)}),
    "panda", history=1, n=4, trace_points=4, image_size=(64, 64),
)


def make_checkpoint(seed: int = 0) -> Checkpoint:
    size = TinySize(width=64, mlp_width=96, heads=4, vision_layers=1, text_layers=2, image_size=64)
    return untrained_checkpoint(FORMAT, ["go to patch A"], seed, size)


def start(folder: Path, **changes: Any) -> Path:
    config = EvaluationConfig("none", str(folder), tasks=("one", "two"), episodes=5, batch=2, videos=1)
    return evaluate(replace(config, **changes), checkpoint=make_checkpoint(), progress=False,
                    make_env=lambda task, config, size: Patches())


def facts(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_rows(folder)]


def test_evaluation_is_complete_and_repeats_itself(tmp_path: Path) -> None:
    folder = start(tmp_path / "a")
    rows = facts(folder)
    scenes = [(task, 1_000_000 + i) for task in ("one", "two") for i in range(5)]
    assert [(row["task"], row["seed"]) for row in rows] == scenes
    assert all(row["trace_error_px"] > 0 for row in rows)
    assert {path.name for path in (folder / "films").iterdir()} == {"one-1000000.gif", "two-1000000.gif"}
    assert {path.name for path in (folder / "strips").iterdir()} == {"one-1000000.png", "two-1000000.png"}
    assert (folder / "summary.txt").read_text().strip() == format_summary(read_rows(folder))
    assert facts(start(tmp_path / "b")) == rows
    assert not list(tmp_path.rglob("*.partial"))


def test_batches_do_not_change_outcomes(tmp_path: Path) -> None:
    one, four = facts(start(tmp_path / "1", batch=1)), facts(start(tmp_path / "4", batch=4))
    assert [row["action_sha256"] for row in one] == [row["action_sha256"] for row in four]


def test_killed_evaluations_continue_to_the_same_rows(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); import test_evaluation as t\n"
        "step = t.Patches.step\n"
        "def slow(self, action):\n    time.sleep(0.02)\n    return step(self, action)\n"
        "t.Patches.step = slow; t.start(t.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(Path(__file__).parent)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    waited = time.monotonic() + 60
    while not part_path(tmp_path / "killed", 1).is_file() and time.monotonic() < waited and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = len(list((tmp_path / "killed" / "rows").glob("*.parquet")))
    assert 1 < done < 6, "the run should have been killed half-way"
    assert facts(start(tmp_path / "killed")) == facts(start(tmp_path / "whole"))


def test_a_finished_evaluation_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start(tmp_path / "a")
    before = facts(folder)
    monkeypatch.setattr(rollouts, "Policy", None)
    monkeypatch.setattr(rollouts, "rollout", None)
    start(tmp_path / "a")
    assert facts(folder) == before


def test_a_folder_belongs_to_one_evaluation(tmp_path: Path) -> None:
    start(tmp_path / "a", episodes=1)
    with pytest.raises(EvaluationError, match="differs in control"):
        start(tmp_path / "a", episodes=1, control="blank_image")
    config = EvaluationConfig("none", str(tmp_path / "a"), tasks=("one", "two"), episodes=1, batch=2, videos=1)
    with pytest.raises(EvaluationError, match="differs in fingerprint"):
        evaluate(config, checkpoint=make_checkpoint(1), make_env=lambda *_: Patches(), progress=False)


def test_environments_are_closed_even_when_a_rollout_fails(tmp_path: Path) -> None:
    closed = []

    class Broken(Patches):
        def step(self, action: Any) -> Any:
            raise RuntimeError("out of order")

        def close(self) -> None:
            closed.append(self)

    config = EvaluationConfig("none", str(tmp_path / "x"), tasks=("one",), episodes=2, batch=2)
    with pytest.raises(RuntimeError, match="out of order"):
        evaluate(config, checkpoint=make_checkpoint(), make_env=lambda *_: Broken(), progress=False)
    assert len(closed) == 2


@pytest.mark.parametrize("changes,says", [
    ({"control": "blank"}, "'blank'.*blank_image"), ({"episodes": 0}, "episodes must be at least 1"),
    ({"batch": 0}, "batch"), ({"tasks": ()}, "needs a task"), ({"variations": ()}, "variations"),
    ({"seed": -1}, "seed"),
])
def test_wrong_settings(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        EvaluationConfig("c", "o", **changes)


def test_training_seeds_are_refused() -> None:
    config = EvaluationConfig("c", "o", seed=100)
    check_seeds(config, {})
    check_seeds(config, {"training_seeds": [0, 99]})
    with pytest.raises(EvaluationError, match="overlap the training seeds 0–100"):
        check_seeds(config, {"training_seeds": [0, 100]})


def test_variations_are_cycled_and_the_first_scenes_filmed() -> None:
    config = EvaluationConfig("c", "o", episodes=4, batch=3, variations=(5, 7), videos=1)
    scenes = [scene for batch in scenes_of(config) for scene in batch]
    assert [scene.variation for scene in scenes] == [5, 7, 5, 7]
    assert [scene.film for scene in scenes] == [True, False, False, False]


def test_the_tabletop_is_evaluated_in_both_modes(tmp_path: Path) -> None:
    ranges = {"trace": Range((0.0,) * 2, (64.0,) * 2)}
    for mode, state, action in ((MODE, 7, 7), ("joint_velocity", 8, 8)):
        ranges |= {f"state:{mode}": Range((-3.0,) * state, (3.0,) * state),
                   f"action:{mode}": Range((-0.02,) * action, (0.02,) * action)}
    checkpoint = replace(make_checkpoint(), format=replace(FORMAT, numbers=BinNumbers(64, ranges)))
    config = EvaluationConfig("none", "", episodes=2, batch=2, videos=1, max_steps=4, variations=tuple(range(10)))
    for mode, control in ((MODE, "wrong_instruction"), ("joint_velocity", "none")):
        mine = replace(config, out_dir=str(tmp_path / mode), control_mode=mode, control=control)
        rows = read_rows(evaluate(mine, checkpoint=checkpoint, progress=False))
        assert [row["failure"] for row in rows] == ["step_limit"] * 2 and [row["steps"] for row in rows] == [4, 4]
        assert [row["variation"] for row in rows] == [0, 1]
        assert all((row["asked_variation"] != row["variation"]) == (control != "none") for row in rows)
        assert all(row["nearest_object"].endswith("button") for row in rows)
    with pytest.raises(EvaluationError, match="'push_button'.*push_buttons"):
        evaluate(replace(config, out_dir=str(tmp_path / "x"), tasks=("push_button",)), checkpoint=checkpoint,
                 progress=False)


# ---- rows


def some_rows(outcomes: Sequence[bool], task: str = "t") -> list[dict[str, Any]]:
    return [{"env": "e", "task": task, "variation": 0, "seed": i, "success": ok, "steps": 5,
             "failure": None if ok else "time_limit", "decode_ms_p50": None, "decode_ms_p99": None, "clipped": 0,
             "action_sha256": "", "trace_error_px": None, "instruction": "go", "nearest_object": None,
             "reached_asked": None, "asked_variation": 0, "control": "none"} for i, ok in enumerate(outcomes)]


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 7))
def test_rows_come_back_in_order(tmp_path_factory: pytest.TempPathFactory, outcomes: list[bool], size: int) -> None:
    folder, rows = tmp_path_factory.mktemp("rows"), some_rows(outcomes)
    for part in range(0, len(rows), size):
        write(folder, part // size, rows[part : part + size])
    assert read_rows(folder) == rows
    summary = summarize(rows)["t"]
    assert (summary.successes, sum(summary.failures.values())) == (sum(outcomes), len(outcomes) - sum(outcomes))


def test_broken_rows_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no evaluation rows"):
        read_rows(tmp_path)
    path = write(tmp_path, 0, some_rows([True]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EvaluationError, match=re.escape(str(path))):
        read_rows(tmp_path)


def test_compare_wants_the_same_scenes() -> None:
    rows = some_rows([True, False])
    with pytest.raises(EvaluationError, match="seed 1"):
        compare(rows, rows[:1])
    with pytest.raises(EvaluationError, match="each counts once"):
        compare(rows + rows, rows)
    assert compare(rows, rows).p_value == 1.0
    assert "time_limit" in format_summary(rows) and "mean over tasks" in format_summary(rows + some_rows([True], "u"))


# ---- pictures


def test_trace_error_of_shifted_and_of_missing_traces() -> None:
    line = np.stack([np.linspace(0, 30, 7), np.zeros(7)], 1)
    assert trace_error(line, line[::2]) == pytest.approx(0, abs=1e-5)
    assert trace_error(line + (0, 3), line) == pytest.approx(3, rel=1e-5)
    assert trace_error(None, line) is None and trace_error(line[:1], line[:1]) == 0


def test_traces_are_drawn_where_their_pixels_are() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    drawn = draw_trace(image, [[10.5, 20.5], [40.5, 20.5]], scale=1)
    rows, columns = np.nonzero(drawn.any(-1))
    assert 18 <= rows.min() and rows.max() <= 23 and columns.min() <= 11 and columns.max() >= 40
    assert not image.any(), "the picture itself must stay as it was"
    assert draw_trace(image, None, path=[[0, 0], [63, 63]], scale=3).shape == (192, 192, 3)


def test_films_keep_real_time_and_the_last_frame(tmp_path: Path) -> None:
    frames = [Frame(np.full((16, 16, 3), 12 * i, np.uint8), None, i) for i in range(20)]
    film = Image.open(write_film(tmp_path / "a" / "film.gif", frames, every=2, scale=1))
    assert film.n_frames == 11 and film.info["duration"] == 100
    film.seek(10)
    assert abs(int(np.asarray(film.convert("RGB"))[0, 0, 0]) - 12 * 19) <= 6
    assert strip(frames, count=5, scale=1).shape == (16, 5 * 16 + 4 * 4, 3)
    assert strip(frames[:1], count=5, scale=1).shape == (16, 16, 3)
    no_film = (lambda: gif_bytes([]), lambda: mp4_bytes([]), lambda: write_film(tmp_path / "film.avi", frames))
    for call in (lambda: write_film(tmp_path / "x.gif", []), lambda: strip([]), *no_film):
        with pytest.raises(VideoError):
            call()


@pytest.mark.parametrize("side", [16, 17])
def test_both_film_formats_show_the_same_frames(side: int, tmp_path: Path) -> None:
    frames = [Frame(np.full((side, side, 3), 12 * i, np.uint8), None, i) for i in range(20)]
    gif = Image.open(write_film(tmp_path / "film.gif", frames, scale=1))
    path = write_film(tmp_path / "film.mp4", frames, scale=1)
    film = imageio.v3.imread(path, plugin="FFMPEG")
    assert path.read_bytes() == write_film(tmp_path / "again.mp4", frames, scale=1).read_bytes()
    assert imageio.v3.immeta(path, plugin="FFMPEG")["fps"] == 10
    # The last frame stays for a second, and sizes are rounded up to even numbers.
    assert film.shape == (gif.n_frames + 10, side + side % 2, side + side % 2, 3)
    for k in range(gif.n_frames):
        gif.seek(k)
        assert np.abs(film[k].mean() - np.asarray(gif.convert("RGB")).mean()) < 4
    assert np.abs(film[-1].mean() - film[gif.n_frames - 1].mean()) < 2


# ---- the report


class Links(HTMLParser):
    """Collects everything that a page refers to, and checks that elements are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in ("meta", "img", "line", "rect", "path", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "path")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_file_without_network_and_escapes_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    image = np.full((8, 8, 3), 9, np.uint8)
    film = gif_bytes([image, image + 1])
    Image.fromarray(image).save(buffer := BytesIO(), "JPEG")
    (tmp_path / "film.gif").write_bytes(film)
    pieces = (
        report.paragraph(hostile), report.tiles({hostile: hostile}), report.table([hostile], [[hostile]]),
        report.success_bars([(hostile, wilson(1, 2), hostile)]),
        report.curves({hostile: ([0, 1, 2], [1.0, float("nan"), 3.0]), "flat": ([0, 1], [2, 2])}, hostile, hostile),
        report.gallery([report.picture(x, hostile) for x in (image, film, buffer.getvalue(), tmp_path / "film.gif")]),
    )
    sections = [report.Section(hostile, pieces, wide=True)]
    path = report.write_report(tmp_path / "new" / "report.html", hostile, hostile, sections)
    page = path.read_text()
    parser = Links()
    parser.feed(page)
    assert len(parser.links) == 4 and all(link.startswith("data:image/") for link in parser.links) and not parser.open
    assert "<script" not in page and "nan" not in page and "url(" not in page and "@import" not in page
    assert page.count("<main>") == 1 and not list(tmp_path.rglob("*.partial"))
    json.dumps(page)


@pytest.mark.parametrize("call", [
    lambda: report.picture(b"BM nothing", "x"), lambda: report.table(["a", "b"], [[1]]),
    lambda: report.success_bars([]),
    lambda: report.curves({"a": ([0], [float("inf")])}, "x", "y"),
])
def test_broken_pieces_are_refused(call: Any) -> None:
    with pytest.raises(report.ReportError):
        call()


def test_appearance_seed_gives_every_scene_its_own_look() -> None:
    config = EvaluationConfig("c", "o", tasks=("push_buttons", "open_drawer"), episodes=3, appearance_seed=7)
    looks = [scene.appearance_seed for batch in scenes_of(config) for scene in batch]
    assert len(set(looks)) == 3 and looks[:3] == looks[3:]  # of the seed, not of the task
    plain = scenes_of(replace(config, appearance_seed=None))
    assert all(scene.appearance_seed is None for batch in plain for scene in batch)


def test_a_suite_stands_for_its_tasks() -> None:
    config = EvaluationConfig("c", "o", tasks=("rlbench-12",), episodes=1)
    assert len(scenes_of(config)) == 12
