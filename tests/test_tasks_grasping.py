"""Opening drawers and moving meat: what counts as success, what as failure, and recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st
from task_checks import act, act_until, move, wait

from llarva.cameras import project
from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.grasping import SLACK, down_rotation, from_above, grasp_yaw
from llarva.tabletop.tasks.meat_off_grill import MEATS, MeatOffGrill
from llarva.tabletop.tasks.open_drawer import DRAWERS, TRAVEL, OpenDrawer

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")


@pytest.fixture(scope="module")
def cabinet() -> Iterator[Simulation]:
    sim = Simulation(OpenDrawer())
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def grill() -> Iterator[Simulation]:
    sim = Simulation(MeatOffGrill())
    yield sim
    sim.close()


# Coming from above

places = st.tuples(st.floats(-0.3, 0.5), st.floats(-0.4, 0.4), st.floats(0.76, 1.4)).map(np.array)


@settings(deadline=None, max_examples=60)
@given(places, places)
def test_following_from_above_arrives(start: np.ndarray, goal: np.ndarray) -> None:
    goal[2] = min(goal[2], 0.85)
    position = start.copy()
    for _ in range(150):
        way = from_above(position, goal, 0.95) - position
        position = position + way * min(1.0, 0.0175 / max(1e-9, float(np.linalg.norm(way))))
    assert np.linalg.norm(position - goal) < 0.002


@settings(deadline=None, max_examples=60)
@given(places, places)
def test_nothing_is_crossed_low(start: np.ndarray, goal: np.ndarray) -> None:
    goal[2] = min(goal[2], 0.85)
    if np.linalg.norm(start[:2] - goal[:2]) > 0.05 and start[2] < 0.9:
        heading = from_above(start, goal, 0.95)
        assert np.allclose(heading[:2], start[:2]) and heading[2] >= 0.95


@settings(deadline=None)
@given(st.floats(-10, 10), st.floats(-3, 3))
def test_a_hand_turns_to_the_thing_or_its_back(yaw: float, present: float) -> None:
    hand = grasp_yaw(yaw, present)
    off = (yaw - hand + np.pi / 2) % np.pi - np.pi / 2
    assert abs(off) <= SLACK + 1e-9
    assert abs(hand) <= np.pi / 2 + 0.6


def test_down_rotation_points_down() -> None:
    assert np.allclose(down_rotation(0.7)[:, 2], [0, 0, -1])
    assert np.linalg.det(down_rotation(0.7)) == pytest.approx(1)


# Words

@pytest.mark.parametrize(("task", "names"), [(OpenDrawer(), DRAWERS), (MeatOffGrill(), MEATS)])
def test_phrasings_name_the_thing(task: OpenDrawer | MeatOffGrill, names: tuple[str, ...]) -> None:
    for variation, name in enumerate(names):
        phrasings = task.instructions(variation)
        assert len(set(phrasings)) == len(phrasings) >= 4
        assert all(name in phrase for phrase in phrasings)
        assert not any(other in phrase for phrase in phrasings for other in names if other != name)


# Drawers

@pytest.mark.parametrize("drawer", range(3))
def test_a_drawer_counts_when_it_is_open_and_still(cabinet: Simulation, drawer: int) -> None:
    cabinet.reset(1, variation=drawer)
    slide = cabinet.data.joint(f"slide{drawer}")
    for share, speed, open_ in ((0.84, 0.0, False), (0.86, 0.0, True), (0.86, 0.1, False), (0.86, -0.1, False)):
        slide.qpos[0], slide.qvel[0] = share * TRAVEL, speed
        assert cabinet.task.success(cabinet) is open_


def test_the_wrong_drawer(cabinet: Simulation) -> None:
    cabinet.reset(1, variation=0)
    cabinet.data.joint("slide0").qpos[0] = 0.95 * TRAVEL
    for share, failure in ((0.29, None), (0.31, "wrong_drawer")):
        cabinet.data.joint("slide1").qpos[0] = share * TRAVEL
        assert cabinet.task.failure(cabinet) == failure
        assert cabinet.task.success(cabinet) is (failure is None)


def test_drawers_rest_where_they_are(cabinet: Simulation) -> None:
    cabinet.reset(2, variation=0)
    cabinet.data.joint("slide1").qpos[0] = 0.2 * TRAVEL
    wait(cabinet, 20)
    opened = [float(cabinet.data.joint(f"slide{k}").qpos[0]) / TRAVEL for k in range(3)]
    assert np.allclose(opened, [0, 0.2, 0], atol=0.02)


def test_a_half_open_drawer_is_gripped_where_it_is(cabinet: Simulation) -> None:
    cabinet.reset(3, variation=1)
    cabinet.data.joint("slide1").qpos[0] = 0.5 * TRAVEL
    assert run_expert(cabinet)


def test_a_lost_knob_is_gripped_again(cabinet: Simulation) -> None:
    cabinet.reset(4, variation=2)
    act_until(cabinet, lambda: cabinet.task.opening(cabinet, 2) > 0.3)  # type: ignore[attr-defined]
    for _ in range(12):
        cabinet.advance(cabinet.end_effector_to_joint_velocity([0, 0.004, 0.015, 0, 0, 0, 1]))
    assert not cabinet.success
    assert run_expert(cabinet)


def test_other_drawers_stay_shut(cabinet: Simulation) -> None:
    for seed in range(3):
        cabinet.reset(seed, variation=seed)
        assert run_expert(cabinet)
        others = [cabinet.task.opening(cabinet, k) for k in range(3) if k != seed]  # type: ignore[attr-defined]
        assert max(others) < 0.05


@needs_gl
def test_handles_are_apart_in_the_picture(cabinet: Simulation) -> None:
    checks.marks_are_seen(cabinet, range(6))
    for seed in range(6):
        cabinet.reset(seed)
        marks = cabinet.objects()
        pixels = [project(marks[f"{name} drawer"].point, *cabinet.camera())[0] for name in DRAWERS]
        assert min(np.linalg.norm(a - b) for a, b in zip(pixels, pixels[1:], strict=False)) > 10


# Meat

def test_meat_lies_still_on_the_grill(grill: Simulation) -> None:
    for seed in range(5):
        grill.reset(seed)
        before = [grill.position(meat) for meat in MEATS]
        wait(grill, 20)
        assert np.allclose(before, [grill.position(meat) for meat in MEATS], atol=0.003)
        assert not grill.success and grill.failure is None


@pytest.mark.parametrize("variation", [0, 1])
def test_meat_counts_when_let_go_and_at_rest(grill: Simulation, variation: int) -> None:
    meat = MEATS[variation]
    grill.reset(2, variation=variation)
    on_board = [*(grill.position("board") + [0.02, 0.0, 0.034])]
    move(grill, meat, on_board)
    assert grill.task.success(grill)
    grill.data.joint(meat).qvel[0] = 0.05
    mujoco.mj_forward(grill.model, grill.data)
    assert not grill.task.success(grill), "it slides"
    move(grill, meat, on_board)
    grill.data.eq_active[grill.model.equality(f"hold_{meat}").id] = 1
    assert not grill.task.success(grill), "the hand holds it"
    grill.data.eq_active[:] = 0
    move(grill, meat, [on_board[0], on_board[1], on_board[2] + 0.1])
    assert not grill.task.success(grill), "it hovers"
    move(grill, meat, [on_board[0] + 0.12, *on_board[1:]])
    assert not grill.task.success(grill), "it lies beside the board"


def test_the_wrong_meat_and_the_floor(grill: Simulation) -> None:
    grill.reset(2, variation=0)
    board = grill.position("board")
    move(grill, "steak", [board[0], board[1], board[2] + 0.034])
    assert grill.task.failure(grill) == "wrong_meat"
    grill.reset(2, variation=0)
    move(grill, "chicken", [0.5, 0.9, 0.3])
    assert grill.task.failure(grill) == "dropped"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dropped_on_the_way_it_is_picked_up_again(grill: Simulation, seed: int) -> None:
    grill.reset(seed)
    meat = MEATS[grill.variation]
    act_until(grill, lambda: grill.holding(meat) and grill.position(meat)[2] > 0.9)
    wait(grill, 8)
    assert not grill.holding(meat)
    assert run_expert(grill)


def test_a_gripper_closed_on_nothing_opens_again(grill: Simulation) -> None:
    grill.reset(4)
    act(grill, 15)
    wait(grill, 10, gripper=0.0)
    assert grill.gripper_opening < 0.05
    assert run_expert(grill)


def test_meat_that_lies_across_is_taken_too(grill: Simulation) -> None:
    grill.reset(5)
    meat = MEATS[grill.variation]
    move(grill, meat, [*grill.position(meat)], yaw=1.3)
    assert run_expert(grill)


def test_meat_on_the_table_is_taken_to_the_board(grill: Simulation) -> None:
    grill.reset(6)
    move(grill, MEATS[grill.variation], [0.05, 0.25, 0.775], yaw=0.5)
    assert run_expert(grill)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(grill: Simulation) -> None:
    checks.marks_are_seen(grill, range(6))


def test_snapshots_keep_task_and_furniture(grill: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(grill, 1, every=20, ahead=10)
