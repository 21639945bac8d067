"""Things in each other's colours: seen by the policy alone, and followed by one that reads colours."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest

import llarva.tabletop.env  # noqa: F401  (registers the tasks)
from llarva.cameras import project
from llarva.errors import LlarvaError
from llarva.evaluation.batches import rollout, row_of
from llarva.evaluation.scenes import Scene, begin, like_things
from llarva.suites import RLBENCH_COLOURED
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.repainting import exchanged_paint, render_painted, told_apart_by_colour
from llarva.tabletop.scene import COLOURS
from llarva.tabletop.simulation import CHANGED_BY_RESET, Simulation
from llarva.tabletop.tasks.registry import TASKS, get_task

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")


def everything(sim: Simulation) -> list[bytes]:
    snapshot = sim.snapshot()
    return [snapshot.physics.tobytes(), *(getattr(sim.model, name).tobytes() for name in CHANGED_BY_RESET)]


def named_first(sim: Simulation) -> tuple[str, tuple[str, ...]]:
    alike, words = told_apart_by_colour(sim.task.objects(sim)), sim.task.instructions(sim.variation)[0]
    first = min((name for name in alike if name in words), key=words.index)
    return first, alike[first]


@pytest.mark.parametrize("task", TASKS)
def test_a_colour_says_what_is_meant_in_the_coloured_suite_only(task: str) -> None:
    sim = Simulation(get_task(task))
    for variation in np.unique(np.linspace(0, sim.task.variation_count - 1, 6).astype(int)).tolist():
        sim.reset(variation, variation=variation)
        alike = told_apart_by_colour(sim.task.objects(sim))
        for words in sim.task.instructions(variation):
            assert any(name in words for name in alike) == (task in RLBENCH_COLOURED), words


@pytest.mark.parametrize("task", RLBENCH_COLOURED)
def test_paint_is_exchanged_geom_by_geom(task: str) -> None:
    sim = Simulation(get_task(task))
    for seed in range(4):
        sim.reset(seed)
        first, others = named_first(sim)
        for other in others:
            paint, geoms = exchanged_paint(sim, first, other), sim.task.painted(sim)
            mine, theirs = set(geoms[first]), set(geoms[other])
            assert paint and not mine & theirs and set(paint) <= mine | theirs
            assert all((geom in mine) == (source in theirs) for geom, source in paint.items())
            for geom, source in paint.items():
                assert np.array_equal(sim.model.geom_size[geom], sim.model.geom_size[source]), "the same part"
            wanted = np.array(COLOURS[first.split()[0]])
            shown = [sim.model.geom_rgba[paint[geom]][:3] for geom in theirs if geom in paint]
            assert min(float(np.abs(rgba - wanted).max()) for rgba in shown) < 1e-6, "it wears the colour that is named"


def near(sim: Simulation, geoms: Iterable[int]) -> np.ndarray:
    """Which pixels [128, 128] show one of the geoms, or touch one that does: edges are smoothed."""
    labels = np.zeros(sim.model.ngeom, dtype=np.uint8)
    labels[list(geoms)] = 1
    mask = np.pad(sim.drawing.mask(sim.data, 128, labels) > 0, 1)
    return np.any([mask[1 + dy : 129 + dy, 1 + dx : 129 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)


@needs_gl
@pytest.mark.parametrize("task", RLBENCH_COLOURED)
def test_nothing_but_one_picture_changes(task: str) -> None:
    sim, plain = Simulation(get_task(task)), Simulation(get_task(task))
    for one in (sim, plain):
        one.reset(5, arm_noise=0.12, appearance_seed=2)
    first, others = named_first(sim)
    paint = exchanged_paint(sim, first, others[0])
    for _ in range(6):
        before, seen = everything(sim), sim.render()
        shown = render_painted(sim, paint)
        assert everything(sim) == before and np.array_equal(sim.render(), seen)
        assert np.array_equal(plain.render(), seen) and everything(plain) == before
        changed = np.any(shown != seen, axis=-1)
        assert changed.sum() > 20 and np.all(near(sim, paint)[changed]), "only what is painted"
        for one in (sim, plain):
            one.advance([0.2, 0.1, -0.1, 0.2, 0.0, 0.1, 0.3, 1.0])


@needs_gl
def test_a_picture_is_painted_even_when_drawing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Simulation(get_task("push_buttons"))
    paint, before = exchanged_paint(sim, *like(sim)), sim.model.geom_rgba.copy()

    def broken(size: int | None = None) -> np.ndarray:
        assert not np.array_equal(sim.model.geom_rgba, before)
        raise RuntimeError("no paper")

    monkeypatch.setattr(sim, "render", broken)
    with pytest.raises(RuntimeError, match="no paper"):
        render_painted(sim, paint)
    assert np.array_equal(sim.model.geom_rgba, before)


def like(sim: Simulation) -> tuple[str, str]:
    first, others = named_first(sim)
    return first, others[0]


@pytest.mark.parametrize(("one", "other"), [("ring", "board"), ("red peg", "ring"), ("red peg", "red peg"), ("a", "b")])
def test_other_things_are_not_exchanged(one: str, other: str) -> None:
    sim = Simulation(get_task("insert_onto_square_peg"))
    sim.reset(0, variation=0)
    with pytest.raises(LlarvaError, match="Unknown thing that its colour tells apart"):
        exchanged_paint(sim, one, other)


# ---- one that looks and reads


class Reader:
    """Presses the button that looks most like the colour that is asked for; where buttons are it is told.

    The hand is the expert's, the choice is made from the first picture it is shown.
    """

    def __init__(self, envs: Sequence[Any]) -> None:
        self.envs = envs

    def reset(self, instructions: Sequence[str], indices: Sequence[int] | None = None) -> None:
        self.asked = dict(zip(indices or (), instructions, strict=True))
        self.chosen: dict[int, int] = {}

    def step(self, observations: Sequence[Mapping[str, Any]], indices: Sequence[int] | None = None) -> Any:
        actions = []
        for i, seen in zip(indices or (), observations, strict=True):
            env = self.envs[i].unwrapped
            task = env.sim.task
            if i not in self.chosen:
                self.chosen[i] = self.choose(env, seen["image"], self.asked[i].split()[-2])
            truth, task.order = task.order, [self.chosen[i]]
            actions.append(env.expert_action())
            task.order = truth
        return actions, [None] * len(actions)

    def choose(self, env: Any, image: np.ndarray, colour: str) -> int:
        away = []
        for mark in env.sim.task.objects(env.sim).values():
            x, y = project(mark.point, *env.sim.camera())[0].astype(int)
            patch = image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3) / 255.0
            away.append(float(np.linalg.norm(patch / max(patch.max(), 0.2) - COLOURS[colour], axis=1).min()))
        return int(np.argmin(away))


@needs_gl
def test_a_reader_of_colours_goes_to_the_wrong_button() -> None:
    scenes = [Scene("push_buttons", 1_000_000 + k, variation, False) for k, variation in enumerate((0, 4, 6, 8))]
    envs = [gymnasium.make("llarva/push_buttons-v0", control_mode="end_effector_delta") for _ in scenes]
    rows = {}
    for control in ("none", "colours_swapped"):
        rows[control] = [row_of(episode, control) for episode in rollout(Reader(envs), scenes, envs, control)]
    assert all(row["success"] for row in rows["none"])
    for row in rows["colours_swapped"]:
        assert not row["success"] and row["failure"] == "wrong_button" and row["reached_asked"]
        assert row["nearest_object"] not in row["instruction"], "by its own name it is another one"
    for env in envs:
        env.close()


@needs_gl
def test_the_view_follows_the_scene_and_spares_what_is_named_later() -> None:
    env = gymnasium.make("llarva/push_buttons-v0", control_mode="end_effector_delta")
    start = begin(Scene("push_buttons", 1_000_007, 25, False), env, "colours_swapped")
    one, other = start.shown_as
    assert one in start.instruction and other not in start.instruction
    assert (one, other) == like_things(env, Scene("push_buttons", 1_000_007, 25, False), start.instruction)
    assert start.view is not None
    first = start.view()
    for _ in range(5):
        env.step(np.array([0.02, 0, -0.02, 0, 0, 0, 1], np.float32))
    assert not np.array_equal(start.view(), first), "the arm has moved"
    env.close()
