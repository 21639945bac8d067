"""Putting things into furniture: what counts, what does not, and recoveries."""

from collections.abc import Callable, Iterator

import mujoco
import numpy as np
import pytest

from llarva.cameras import project
from llarva.tabletop.experts import expert_action, run_expert
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


def act(sim: Simulation, steps: int = 1) -> None:
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))


def act_until(sim: Simulation, reached: Callable[[], bool]) -> None:
    while not reached():
        assert sim.steps < sim.task.max_steps, "never reached"
        act(sim)


def let_go(sim: Simulation, steps: int = 8) -> None:
    for _ in range(steps):
        sim.advance([*np.zeros(7), 1.0])


def put(sim: Simulation, body: str, position: np.ndarray, yaw: float = 0.0) -> None:
    sim.place(body, position, yaw)
    sim.data.joint(body).qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)


# What every task promises

def test_every_variation_succeeds(sim: Simulation) -> None:
    for variation in range(sim.task.variation_count):
        sim.reset(100 + variation, variation=variation, arm_noise=0.12)
        assert not sim.task.success(sim) and sim.task.failure(sim) is None
        assert run_expert(sim), variation
        assert sim.steps < sim.task.max_steps / 1.4


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    sim.reset(4)
    before = {name: mark.point for name, mark in sim.task.objects(sim).items()}
    for _ in range(40):
        sim.advance([*np.zeros(7), 1.0])
        assert not sim.success and sim.failure is None
    for name, mark in sim.task.objects(sim).items():
        assert np.allclose(before[name], mark.point, atol=0.002), name


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    states = []
    for _ in range(2):
        sim.reset(9, arm_noise=0.12)
        act(sim, 5)
        states.append((sim.data.qpos.tobytes(), sim.model.body_pos.tobytes(), sim.variation))
        sim.reset(10)
        act(sim, 3)
    assert states[0] == states[1]


def test_snapshots_continue_to_the_last_bit(sim: Simulation) -> None:
    sim.reset(7, variation=1)
    act(sim, 60)
    snapshot = sim.snapshot()
    act(sim, 25)
    later = sim.data.qpos.copy()
    sim.reset(8, variation=0)
    act(sim, 3)
    sim.restore(snapshot)
    act(sim, 25)
    assert np.array_equal(sim.data.qpos, later)


def test_phrasings_name_things_by_their_marks(sim: Simulation) -> None:
    canonical = set()
    for variation in range(sim.task.variation_count):
        sim.reset(1, variation=variation)
        marks = sim.task.objects(sim)
        phrasings = sim.task.instructions(variation)
        assert len(set(phrasings)) == len(phrasings) >= 4
        named = [{name for name in marks if f"the {name}" in phrase} for phrase in phrasings]
        assert all(names == named[0] for names in named) and named[0]
        canonical.add(phrasings[0])
    assert len(canonical) == sim.task.variation_count


@needs_gl
def test_what_may_be_named_is_seen_where_it_is_pointed_at(sim: Simulation) -> None:
    for seed in range(5):
        sim.reset(seed)
        seen, names = sim.segmentation(128)
        for name, mark in sim.task.objects(sim).items():
            x, y = project(mark.point, *sim.camera())[0].astype(int)
            assert 4 < x < 124 and 4 < y < 124, name
            assert names.index(name) + 1 in seen[y - 2 : y + 3, x - 2 : x + 3], (seed, name)


# Drawers

def put_in(sim: Simulation, drawer: int, opening: float = TRAVEL) -> None:
    sim.data.joint(f"slide{drawer}").qpos[0] = opening
    mujoco.mj_forward(sim.model, sim.data)
    put(sim, "item", sim.position(f"drawer{drawer}") + sim.rotation("cabinet") @ drop_place(drawer, opening))


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
    put(cabinet, "item", cabinet.position("item") + [0, 0, 0.04])
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
    put(cabinet, "item", np.array([0.5, 0.95, 0.3]))
    assert cabinet.task.failure(cabinet) == "dropped"


@pytest.mark.parametrize("drawer", range(3))
def test_an_item_lost_on_the_way_is_fetched_again(cabinet: Simulation, drawer: int) -> None:
    cabinet.reset(20 + drawer, variation=drawer)
    top = cabinet.position("cabinet")[2] + CABINET_TOP + ITEM[2]
    act_until(cabinet, lambda: cabinet.holding("item") and cabinet.position("item")[2] > top + 0.01)
    let_go(cabinet)
    assert not cabinet.holding("item")
    assert run_expert(cabinet)


def test_an_item_on_the_table_is_put_in_the_drawer(cabinet: Simulation) -> None:
    cabinet.reset(6, variation=1)
    put(cabinet, "item", np.array([0.12, 0.33, 0.752 + ITEM[2]]), yaw=0.6)
    assert run_expert(cabinet)


@needs_gl
def test_the_item_is_seen_in_every_drawer(cabinet: Simulation) -> None:
    for drawer in range(len(DRAWERS)):
        cabinet.reset(drawer, variation=drawer)
        put_in(cabinet, drawer)
        seen, names = cabinet.segmentation(128)
        assert np.count_nonzero(seen == names.index("item") + 1) >= 8, drawer
