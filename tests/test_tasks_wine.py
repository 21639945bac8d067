"""A bottle put into a rack: what counts as standing in a place, what as failure, and recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
from task_checks import act_until, wait

from llarva.cameras import project
from llarva.tabletop.experts import run_expert
from llarva.tabletop.scene import TABLE_HEIGHT
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.place_wine_at_rack_location import SIDES, PlaceWine


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulation]:
    sim = Simulation(PlaceWine())
    yield sim
    sim.close()


def put(sim: Simulation, place: np.ndarray, tilt: float = 0.0) -> None:
    """Put the bottle somewhere, tilted about x."""
    bottle = sim.data.joint("bottle")
    bottle.qpos[:] = [*place, np.cos(tilt / 2), np.sin(tilt / 2), 0.0, 0.0]
    bottle.qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)


def floor(sim: Simulation, side: int) -> np.ndarray:
    return np.asarray(sim.task.floor(sim, side))  # type: ignore[attr-defined]


@pytest.mark.parametrize("variation", range(3))
@pytest.mark.parametrize("stands", range(3))
def test_the_place_in_which_the_bottle_stands_decides(sim: Simulation, variation: int, stands: int) -> None:
    sim.reset(1, variation=variation)
    put(sim, floor(sim, stands))
    assert sim.task.success(sim) is (variation == stands)
    assert sim.task.failure(sim) == (None if variation == stands else "wrong_place")


def test_a_bottle_counts_upright_on_the_floor_let_go_and_at_rest(sim: Simulation) -> None:
    sim.reset(2, variation=1)
    place = floor(sim, 1)
    put(sim, place)
    assert sim.task.success(sim)
    sim.data.joint("bottle").qvel[2] = -0.05
    mujoco.mj_forward(sim.model, sim.data)
    assert not sim.task.success(sim), "it still falls"
    put(sim, place + [0, 0, 0.03])
    assert not sim.task.success(sim), "it hovers"
    put(sim, place + [0, 0.04, 0])
    assert not sim.task.success(sim), "it stands on a divider"
    put(sim, place, tilt=0.25)
    assert not sim.task.success(sim), "it leans"
    put(sim, place)
    sim.data.eq_active[sim.model.equality("hold_bottle").id] = 1
    assert not sim.task.success(sim), "the hand holds it"
    sim.data.eq_active[:] = 0
    sim.data.qpos[sim.fingers] = 0.03
    mujoco.mj_forward(sim.model, sim.data)
    assert not sim.task.success(sim), "the fingers are not open"


def test_a_place_that_is_wrong_is_wrong_once_the_bottle_is_let_go(sim: Simulation) -> None:
    sim.reset(3, variation=0)
    put(sim, floor(sim, 2))
    sim.data.eq_active[sim.model.equality("hold_bottle").id] = 1
    assert sim.task.failure(sim) is None


def test_a_bottle_on_its_side_and_one_on_the_floor(sim: Simulation) -> None:
    sim.reset(4)
    put(sim, np.array([0.05, 0.2, TABLE_HEIGHT + 0.03]), tilt=np.pi / 2)
    assert sim.task.failure(sim) == "fallen"
    sim.data.eq_active[sim.model.equality("hold_bottle").id] = 1
    assert sim.task.failure(sim) is None, "a hand that holds it can raise it"
    sim.reset(4)
    put(sim, np.array([0.5, 1.1, 0.1]))
    assert sim.task.failure(sim) == "dropped"


def test_left_is_left_in_the_picture(sim: Simulation) -> None:
    for seed in range(6):
        sim.reset(seed)
        marks = sim.task.objects(sim)
        across = [float(project(marks[f"{side} place"].point, *sim.camera())[0][0]) for side in SIDES]
        assert across[1] - across[0] > 8 and across[2] - across[1] > 8


def test_a_bottle_let_go_on_the_way_is_taken_again(sim: Simulation) -> None:
    sim.reset(5)
    act_until(sim, lambda: sim.holding("bottle") and sim.position("bottle")[2] > TABLE_HEIGHT + 0.02)
    wait(sim, 10)
    assert not sim.holding("bottle") and sim.failure is None
    assert run_expert(sim)


def test_a_bottle_held_aslant_is_put_down_upright(sim: Simulation) -> None:
    sim.reset(6, variation=2)
    act_until(sim, lambda: sim.holding("bottle") and sim.position("bottle")[2] > TABLE_HEIGHT + 0.05)
    weld, tilt = sim.model.eq_data[sim.model.equality("hold_bottle").id], 0.3
    straight = weld[6:10].copy()
    mujoco.mju_mulQuat(weld[6:10], straight, [np.cos(tilt / 2), 0.0, np.sin(tilt / 2), 0.0])
    assert run_expert(sim)


def test_a_nudged_bottle_keeps_standing(sim: Simulation) -> None:
    sim.reset(7)
    put(sim, np.array([0.08, 0.0, TABLE_HEIGHT + 0.005]), tilt=0.2)
    wait(sim, 40)
    assert sim.task.upright(sim) > 0.999  # type: ignore[attr-defined]
    assert run_expert(sim)
