"""A sorter and its five shapes: what fits and what does not, what counts, and recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st
from task_checks import act_until, move, wait

import llarva.tabletop.tasks.place_shape_in_shape_sorter as sorter
from llarva.errors import LlarvaError
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.outlines import Outline, Points, crescent, grown, plate_parts, regular, star
from llarva.tabletop.tasks.place_shape_in_shape_sorter import (
    CUBE,
    FLOOR,
    KNOB_PLACE,
    LID_TOP,
    OUTLINES,
    SHAPES,
    TILES,
    PlaceShapeInShapeSorter,
    hole_place,
)

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    simulation = Simulation(PlaceShapeInShapeSorter())
    yield simulation
    simulation.close()


# What every task promises

def test_the_expert_succeeds(sim: Simulation) -> None:
    checks.expert_succeeds(sim, range(len(SHAPES)))


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, lambda variation: (SHAPES[variation], "shape sorter"))
    for variation, shape in enumerate(SHAPES):
        others = [name for name in SHAPES if name != shape]
        assert not any(name in phrase for phrase in sim.task.instructions(variation) for name in others)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(20))


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, 3, every=16)


# What fits

def above_hole(sim: Simulation, shape: str, hole: str, aside: Points, turned: float, height: float) -> None:
    """Put a shape upright over the middle of a hole, its foot `height` m above the lid."""
    axes = sim.rotation("sorter")
    cos, sin = np.cos(turned), np.sin(turned)
    origin = KNOB_PLACE[shape] - OUTLINES[shape].middle()
    place = TILES[hole] + np.array([[cos, -sin], [sin, cos]]) @ origin + aside
    point = sim.position("sorter") + axes @ np.array([*place, LID_TOP + CUBE + height])
    move(sim, shape, point.tolist(), float(np.arctan2(axes[1, 0], axes[0, 0])) + turned)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_falls_through_its_own_hole(sim: Simulation, shape: str) -> None:
    for direction in np.arange(4) * np.pi / 2:
        sim.reset(1, variation=SHAPES.index(shape))
        aside = 0.006 * np.array([np.cos(direction), np.sin(direction)])
        above_hole(sim, shape, shape, aside, 0.05, 0.004)
        assert sim.task.in_sorter(sim, shape)[2] > LID_TOP  # type: ignore[attr-defined]
        wait(sim, 20)
        assert sim.success


@pytest.mark.parametrize("shape", SHAPES)
def test_no_other_shape_fits(sim: Simulation, shape: str) -> None:
    rng, body = np.random.default_rng(1), sim.model.body(shape).id
    for hole in SHAPES:
        for _ in range(3 if hole != shape else 0):
            sim.reset(1, variation=SHAPES.index(shape))
            above_hole(sim, shape, hole, rng.uniform(-0.006, 0.006, 2), rng.uniform(-np.pi, np.pi), 0.002)
            sim.data.xfrc_applied[body, 2] = -2.0
            wait(sim, 16)
            sim.data.xfrc_applied[:] = 0
            assert not sim.task.inside(sim, shape), hole  # type: ignore[attr-defined]
            assert sim.task.in_sorter(sim, shape)[2] > LID_TOP - 0.01, hole  # type: ignore[attr-defined]


@pytest.mark.parametrize(("shape", "hole"), [("cube", "cylinder"), ("cylinder", "cube"), ("star", "cylinder")])
def test_the_arm_cannot_force_it(sim: Simulation, monkeypatch: pytest.MonkeyPatch, shape: str, hole: str) -> None:
    wrong = TILES[hole] - OUTLINES[shape].middle() + KNOB_PLACE[shape]
    monkeypatch.setattr(sorter, "hole_place", lambda name: wrong)
    sim.reset(5, variation=SHAPES.index(shape))
    pressed = 0
    while sim.steps < 110:
        sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))
        x, y, height = sim.task.in_sorter(sim, shape)  # type: ignore[attr-defined]
        pressed += bool(np.linalg.norm(wrong - [x, y]) < 0.005 and height < LID_TOP + CUBE + 0.004)
        assert np.linalg.norm(wrong - [x, y]) > 0.03 or height > LID_TOP + CUBE - 0.008
    assert pressed > 5 and not sim.success


# What counts

def test_a_shape_counts_when_it_is_down_and_let_go(sim: Simulation) -> None:
    sim.reset(2)
    shape, task = sim.task.goal, sim.task  # type: ignore[attr-defined]
    above_hole(sim, shape, shape, np.zeros(2), 0.0, FLOOR - LID_TOP)
    assert task.success(sim) and task.failure(sim) is None
    sim.data.joint(shape).qvel[2] = -0.05
    mujoco.mj_forward(sim.model, sim.data)
    assert not task.success(sim), "falling"
    above_hole(sim, shape, shape, np.zeros(2), 0.0, FLOOR - LID_TOP)
    sim.data.eq_active[sim.model.equality(f"hold_{shape}").id] = 1
    assert not task.success(sim), "the hand holds it"
    sim.data.eq_active[:] = 0
    above_hole(sim, shape, shape, np.zeros(2), 0.0, -0.04)
    assert not task.success(sim), "half way in"
    x, y = sim.position("sorter")[:2]
    move(sim, shape, [x, y - np.sign(y) * 0.2, sim.position(shape)[2] - 0.04])
    assert not task.success(sim), "beside the box"


def test_failures_have_names(sim: Simulation) -> None:
    sim.reset(2)
    goal, task = sim.task.goal, sim.task  # type: ignore[attr-defined]
    for shape in SHAPES:
        sim.reset(2)
        above_hole(sim, shape, shape, np.zeros(2), 0.0, FLOOR - LID_TOP)
        assert task.failure(sim) == (None if shape == goal else "wrong_shape")
    sim.reset(2)
    move(sim, goal, [0.5, 0.9, 0.3])
    assert task.failure(sim) == "dropped"
    for shape in SHAPES:
        sim.reset(2)
        sim.data.joint(shape).qpos[3:] = [np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0]
        mujoco.mj_forward(sim.model, sim.data)
        assert task.failure(sim) == ("toppled" if shape == goal else None)


# Recoveries

def test_a_dropped_shape_is_picked_up_again(sim: Simulation) -> None:
    sim.reset(2, variation=0)
    act_until(sim, lambda: sim.holding("cube") and sim.position("cube")[2] > 0.81)
    wait(sim, 8)
    assert not sim.holding("cube")
    assert run_expert(sim)


def test_a_shape_left_on_the_lid_is_picked_up_again(sim: Simulation) -> None:
    sim.reset(3, variation=1)
    above_hole(sim, "cylinder", "cube", np.zeros(2), 0.0, 0.001)
    assert run_expert(sim)


@pytest.mark.parametrize("yaw", [0.9, -0.9])
def test_a_turned_shape_is_turned_back(sim: Simulation, yaw: float) -> None:
    sim.reset(4, variation=4)
    x, y, z = sim.position("moon")
    move(sim, "moon", [x, y, z], yaw)
    assert run_expert(sim)
    assert np.linalg.norm(sim.task.in_sorter(sim, "moon")[:2] - hole_place("moon")) < 0.01  # type: ignore[attr-defined]


def test_the_fingers_do_not_close_again_on_what_they_let_go(sim: Simulation) -> None:
    for variation, shape in enumerate(SHAPES):
        sim.reset(6, variation=variation)
        act_until(sim, lambda held=shape: sim.holding(held))
        act_until(sim, lambda held=shape: not sim.holding(held))
        while not sim.success:
            assert expert_action(sim)[6] == 1.0
            checks.act(sim)


# Outlines

outlines = st.one_of(
    st.builds(regular, st.integers(3, 24), st.floats(0.02, 0.034), st.floats(0, 6)),
    st.builds(lambda tips, share, first: star(tips, 0.034, 0.034 * share, first),
              st.integers(4, 8), st.floats(0.5, 0.7), st.floats(0, 6)),
    st.builds(lambda opening, pieces: crescent(0.034, 0.021, 0.015, opening, pieces),
              st.floats(0.8, 1.2), st.integers(5, 12)),
)  # fmt: skip


def area(points: Points) -> float:
    x, y = points.T
    return float(0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


@settings(max_examples=60, deadline=None)
@given(outlines, st.floats(-0.002, 0.002))
def test_edges_move_by_the_distance(outline: Outline, distance: float) -> None:
    wider = grown(outline, distance).corners
    edges = np.roll(outline.corners, -1, 0) - outline.corners
    across = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.linalg.norm(edges, axis=1, keepdims=True)
    assert np.allclose(np.sum((wider - outline.corners) * across, axis=1), distance)


@settings(max_examples=60, deadline=None)
@given(outlines)
def test_parts_are_convex_and_cover_the_area_once(outline: Outline) -> None:
    whole = area(outline.corners)
    assert np.isclose(sum(area(part) for part in outline.polygons()), whole)
    plate = [part[np.argsort(np.arctan2(*(part - part.mean(0)).T[::-1]))] for part in plate_parts(outline, 0.045)]
    assert np.isclose(sum(area(part) for part in plate), 0.09**2 - whole)
    for part in [*outline.polygons(), *plate]:
        edges = np.roll(part, -1, 0) - part
        turns = edges[:, 0] * np.roll(edges[:, 1], -1) - edges[:, 1] * np.roll(edges[:, 0], -1)
        assert turns.min() > -1e-9


def test_impossible_outlines_are_errors() -> None:
    with pytest.raises(LlarvaError, match="at least 3 corners, got 2"):
        regular(2, 0.03)
    with pytest.raises(LlarvaError, match="inner < radius"):
        star(5, 0.02, 0.03)
    with pytest.raises(LlarvaError, match="No crescent"):
        crescent(0.03, 0.03, 0.02, 0.5)
    with pytest.raises(LlarvaError, match="the plate ends at 0.03 m"):
        plate_parts(regular(4, 0.05), 0.03)
