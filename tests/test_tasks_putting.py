"""Putting things into furniture: what counts, what does not, and recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from task_checks import act_until, move, wait

from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.open_drawer import CABINET_TOP, DRAWERS, OTHER_SHARE, TRAVEL
from llarva.tabletop.tasks.put_item_in_drawer import ITEM, PutItemInDrawer, drop_place

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS: tuple[type[Task], ...] = (PutItemInDrawer,)


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    sim = Simulation(request.param())
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def cabinet() -> Iterator[Simulation]:
    sim = Simulation(PutItemInDrawer())
    yield sim
    sim.close()


# What every task promises

def test_every_variation_succeeds(sim: Simulation) -> None:
    checks.expert_succeeds(sim, range(sim.task.variation_count), share=1 / 1.4)


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim, (4, 5), slack=0.002)


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_snapshots_continue_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, 1, every=30, ahead=25)


def test_phrasings_name_things_by_their_marks(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, lambda variation: (f"{DRAWERS[variation]} drawer", "item"))
    for variation, drawer in enumerate(DRAWERS):
        phrasings = sim.task.instructions(variation)
        assert all("the item" in phrase and f"the {drawer} drawer" in phrase for phrase in phrasings)


@needs_gl
def test_what_may_be_named_is_seen_where_it_is_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(5), margin=4)


# Drawers

def put_in(sim: Simulation, drawer: int, opening: float = TRAVEL) -> None:
    sim.data.joint(f"slide{drawer}").qpos[0] = opening
    mujoco.mj_forward(sim.model, sim.data)
    move(sim, "item", sim.position(f"drawer{drawer}") + sim.rotation("cabinet") @ drop_place(drawer, opening))


@pytest.mark.parametrize("drawer", range(3))
def test_the_item_counts_when_it_rests_in_the_drawer(cabinet: Simulation, drawer: int) -> None:
    cabinet.reset(1, variation=drawer)
    put_in(cabinet, drawer)
    assert cabinet.task.success(cabinet)
    cabinet.data.joint("item").qvel[0] = 0.05
    mujoco.mj_forward(cabinet.model, cabinet.data)
    assert not cabinet.task.success(cabinet), "it slides"
    put_in(cabinet, drawer)
    cabinet.data.eq_active[cabinet.model.equality("hold_item").id] = 1
    assert not cabinet.task.success(cabinet), "the hand holds it"
    cabinet.data.eq_active[:] = 0
    cabinet.data.qpos[cabinet.fingers] = 0.02
    assert not cabinet.task.success(cabinet), "the fingers are closed"
    cabinet.data.qpos[cabinet.fingers] = 0.04
    move(cabinet, "item", cabinet.position("item") + [0, 0, 0.04])
    assert not cabinet.task.success(cabinet), "it is above the rim"
    assert cabinet.task.failure(cabinet) is None


def test_an_open_drawer_alone_is_not_enough(cabinet: Simulation) -> None:
    cabinet.reset(1, variation=2)
    cabinet.data.joint("slide2").qpos[0] = TRAVEL
    mujoco.mj_forward(cabinet.model, cabinet.data)
    assert not cabinet.task.success(cabinet)
    assert run_expert(cabinet) and cabinet.steps < 80, "the item is fetched at once"


def test_wrong_drawers_and_the_floor(cabinet: Simulation) -> None:
    cabinet.reset(1, variation=0)
    put_in(cabinet, 1, 0.9 * OTHER_SHARE * TRAVEL)
    assert cabinet.task.failure(cabinet) == "wrong_drawer", "the item is in another drawer"
    cabinet.reset(1, variation=0)
    cabinet.data.joint("slide1").qpos[0] = 1.05 * OTHER_SHARE * TRAVEL
    assert cabinet.task.failure(cabinet) == "wrong_drawer", "another drawer is open"
    cabinet.reset(1, variation=0)
    move(cabinet, "item", np.array([0.5, 0.95, 0.3]))
    assert cabinet.task.failure(cabinet) == "dropped"


@pytest.mark.parametrize("drawer", range(3))
def test_an_item_lost_on_the_way_is_fetched_again(cabinet: Simulation, drawer: int) -> None:
    cabinet.reset(20 + drawer, variation=drawer)
    top = cabinet.position("cabinet")[2] + CABINET_TOP + ITEM[2]
    act_until(cabinet, lambda: cabinet.holding("item") and cabinet.position("item")[2] > top + 0.01)
    wait(cabinet, 8)
    assert not cabinet.holding("item")
    assert run_expert(cabinet)


def test_an_item_on_the_table_is_put_in_the_drawer(cabinet: Simulation) -> None:
    cabinet.reset(6, variation=1)
    move(cabinet, "item", np.array([0.12, 0.33, 0.752 + ITEM[2]]), yaw=0.6)
    assert run_expert(cabinet)


@needs_gl
def test_the_item_is_seen_in_every_drawer(cabinet: Simulation) -> None:
    for drawer in range(len(DRAWERS)):
        cabinet.reset(drawer, variation=drawer)
        put_in(cabinet, drawer)
        seen, names = cabinet.segmentation(128)
        assert np.count_nonzero(seen == names.index("item") + 1) >= 8, drawer
