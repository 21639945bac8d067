"""Tasks done with a tool, and what holds for every task here: success, failure, snapshots, recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from task_checks import act_until, move, wait

from llarva.errors import LlarvaError
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.scene import COLOURS, TABLE_HEIGHT
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.colours import DISTINCT, other_colours
from llarva.tabletop.tasks.place_wine_at_rack_location import SIDES, PlaceWine
from llarva.tabletop.tasks.reach_and_drag import CHOICES, CLEAR, CUBE, REACHED, ReachAndDrag
from llarva.tabletop.tasks.sweep_to_dustpan_of_size import CRUMB, CRUMBS, INSIDE, PAN, PANS, SweepToDustpan

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS = (ReachAndDrag, SweepToDustpan, PlaceWine)
ARM_NOISE = 0.12  # rad
NAMES = {
    "reach_and_drag": lambda variation: (f"{list(COLOURS)[variation]} target", "stick", "cube"),
    "sweep_to_dustpan_of_size": lambda variation: (f"{PANS[variation]} dustpan", "dirt"),
    "place_wine_at_rack_location": lambda variation: (f"{SIDES[variation]} place", "wine bottle", "rack"),
}


@pytest.fixture(scope="module")
def simulations() -> Iterator[dict[type[Task], Simulation]]:
    sims = {task: Simulation(task()) for task in TASKS}
    yield sims
    for sim in sims.values():
        sim.close()


@pytest.fixture(params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest, simulations: dict[type[Task], Simulation]) -> Simulation:
    return simulations[request.param]


@pytest.fixture
def dragging(simulations: dict[type[Task], Simulation]) -> Simulation:
    return simulations[ReachAndDrag]


@pytest.fixture
def sweeping(simulations: dict[type[Task], Simulation]) -> Simulation:
    return simulations[SweepToDustpan]


# Every task

def test_the_expert_succeeds_in_variations_of_all_kinds(sim: Simulation) -> None:
    kinds = np.unique(np.linspace(0, sim.task.variation_count - 1, 5).astype(int)).tolist()
    checks.expert_succeeds(sim, kinds[::2], arm_noise=0.0)
    checks.expert_succeeds(sim, kinds[1::2])


def test_a_still_robot_gets_nowhere(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_things_lie_still(sim: Simulation) -> None:
    for seed in range(4):
        sim.reset(seed)
        before = sim.data.qpos.copy()
        wait(sim, 20)
        assert np.allclose(before, sim.data.qpos, atol=0.002)


def test_phrasings_differ_and_use_the_names_of_things(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, NAMES[sim.task.name])


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, 0, every=45, ahead=12)


def test_the_expert_is_a_function_of_the_state(sim: Simulation) -> None:
    sim.reset(5, arm_noise=ARM_NOISE)
    taken, snapshots = [], []
    while not sim.success and sim.steps < sim.task.max_steps:
        snapshots.append(sim.snapshot())
        taken.append(expert_action(sim))
        assert np.linalg.norm(taken[-1][:3]) <= 0.4 / 20 and np.linalg.norm(taken[-1][3:6]) <= 1.6 / 20
        sim.advance(sim.end_effector_to_joint_velocity(taken[-1]))
    for k in np.random.default_rng(0).permutation(len(taken))[:15]:
        sim.restore(snapshots[k])
        assert np.array_equal(expert_action(sim), taken[k])


def test_the_same_seed_gives_the_same_scene(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(8))


# Colours

def test_other_colours_can_be_told_apart() -> None:
    for seed, colour in enumerate(COLOURS):
        names = [colour, *other_colours(np.random.default_rng(seed), [colour], 4)]
        rgb = np.array([COLOURS[name] for name in names])
        away = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)
        assert away[np.triu_indices(5, 1)].min() >= DISTINCT


def test_colours_that_do_not_exist() -> None:
    with pytest.raises(LlarvaError, match="teal-ish"):
        other_colours(np.random.default_rng(0), ["red", "teal-ish"], 2)
    with pytest.raises(LlarvaError, match="not 30"):
        other_colours(np.random.default_rng(0), ["red"], 30)


# Dragging

def hold_stick(sim: Simulation) -> None:
    """Let the expert grasp the stick and raise it."""
    act_until(sim, lambda: sim.holding("stick") and sim.task.clearance(sim) > CLEAR)  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", range(CHOICES))
def test_where_the_cube_is_left_decides(dragging: Simulation, target: int) -> None:
    dragging.reset(8)
    hold_stick(dragging)
    x, y = dragging.task.places[target]  # type: ignore[attr-defined]
    for aside, on in ((REACHED - 0.003, True), (REACHED + 0.003, False)):
        move(dragging, "cube", [x, y + aside, TABLE_HEIGHT + CUBE])
        assert dragging.task.success(dragging) is (on and target == 0)
        assert dragging.task.failure(dragging) == ("wrong_target" if on and target else None)


def test_a_cube_counts_at_rest_and_free_of_the_stick(dragging: Simulation) -> None:
    dragging.reset(9)
    hold_stick(dragging)
    x, y = dragging.task.places[0]  # type: ignore[attr-defined]
    move(dragging, "cube", [x, y, TABLE_HEIGHT + CUBE])
    assert dragging.task.success(dragging)
    dragging.data.joint("cube").qvel[0] = 0.05
    mujoco.mj_forward(dragging.model, dragging.data)
    assert not dragging.task.success(dragging), "it slides"
    move(dragging, "cube", [x, y, TABLE_HEIGHT + CUBE + 0.03])
    assert not dragging.task.success(dragging), "it hovers"
    move(dragging, "cube", [x, y, TABLE_HEIGHT + CUBE])
    dragging.data.eq_active[:] = 0
    assert not dragging.task.success(dragging), "nobody holds the stick"
    dragging.reset(9)
    move(dragging, "cube", [x, y, TABLE_HEIGHT + CUBE])
    assert not dragging.task.success(dragging), "the stick has not been touched"


@pytest.mark.parametrize("body", ["cube", "stick"])
def test_what_falls_off_the_table_is_lost(dragging: Simulation, body: str) -> None:
    dragging.reset(10)
    move(dragging, body, [0.5, 1.1, 0.4])
    assert dragging.task.failure(dragging) == "dropped"


def test_a_stick_dropped_on_the_way_is_grasped_again(dragging: Simulation) -> None:
    dragging.reset(11)
    hold_stick(dragging)
    wait(dragging, 8)
    assert not dragging.holding("stick")
    assert run_expert(dragging)


def test_a_cube_dragged_too_far_is_brought_back(dragging: Simulation) -> None:
    dragging.reset(12)
    x, y = dragging.task.places[0]  # type: ignore[attr-defined]
    move(dragging, "cube", [x - 0.05, y, TABLE_HEIGHT + CUBE], yaw=0.7)
    assert run_expert(dragging)


def test_a_crooked_grasp_is_straightened(dragging: Simulation) -> None:
    dragging.reset(13)
    act_until(dragging, lambda: dragging.holding("stick"))
    weld = dragging.model.eq_data[dragging.model.equality("hold_stick").id]
    straight, tilt = weld[6:10].copy(), 0.3
    mujoco.mju_mulQuat(weld[6:10], straight, [np.cos(tilt / 2), 0.0, np.sin(tilt / 2), 0.0])
    assert run_expert(dragging)
    assert dragging.rotation("stick")[2, 2] > 0.995


# Sweeping

def sweep_by_hand(sim: Simulation, pan: str, deep: float, crumbs: int = CRUMBS) -> None:
    """Put crumbs side by side into a dustpan, `deep` metres from its edge."""
    for k in range(crumbs):
        local = np.array([0.03 * (k - 2), deep, CRUMB])
        place = sim.position(f"{pan}_dustpan") + sim.rotation(f"{pan}_dustpan") @ local
        move(sim, f"dirt{k}", place.tolist())


@pytest.mark.parametrize("variation", [0, 1])
def test_all_dirt_must_be_inside_the_named_dustpan(sweeping: Simulation, variation: int) -> None:
    pan = PANS[variation]
    sweeping.reset(14, variation=variation)
    sweep_by_hand(sweeping, pan, 0.06, CRUMBS - 1)
    assert not sweeping.task.success(sweeping), "a crumb is left"
    for deep, done in ((INSIDE - 0.002, False), (INSIDE + 0.002, True), (PAN[1] - CRUMB, True), (PAN[1] + 0.02, False)):
        sweep_by_hand(sweeping, pan, deep)
        assert sweeping.task.success(sweeping) is done, deep
    sweep_by_hand(sweeping, pan, 0.06)
    sweeping.data.joint("dirt3").qvel[0] = 0.05
    mujoco.mj_forward(sweeping.model, sweeping.data)
    assert not sweeping.task.success(sweeping), "one still slides"


def test_one_crumb_in_the_other_dustpan_is_one_too_many(sweeping: Simulation) -> None:
    sweeping.reset(15, variation=0)
    sweep_by_hand(sweeping, "short", 0.05, 1)
    assert sweeping.task.failure(sweeping) == "wrong_dustpan"


@pytest.mark.parametrize("body", ["broom", "dirt4"])
def test_what_falls_off_the_table_cannot_be_swept(sweeping: Simulation, body: str) -> None:
    sweeping.reset(16)
    move(sweeping, body, [0.5, 1.1, 0.4])
    assert sweeping.task.failure(sweeping) == "dropped"


def test_the_broom_stands_upright_and_stands_up_again(sweeping: Simulation) -> None:
    sweeping.reset(17)
    x, y, z = sweeping.position("broom")
    tilt = 0.3
    sweeping.data.joint("broom").qpos[:] = [x, y, z + 0.02, np.cos(tilt / 2), np.sin(tilt / 2), 0, 0]
    wait(sweeping, 40)
    assert sweeping.rotation("broom")[2, 2] > 0.999


def test_dirt_behind_the_broom_gets_a_stroke_of_its_own(sweeping: Simulation) -> None:
    sweeping.reset(18, variation=1)
    act_until(sweeping, lambda: sweeping.task.inside(sweeping, "short").sum() >= 2)  # type: ignore[attr-defined]
    move(sweeping, "dirt0", [float(sweeping.position("short_dustpan")[0]), 0.0, TABLE_HEIGHT + CRUMB])
    assert run_expert(sweeping)


def test_a_broom_dropped_on_the_way_is_grasped_again(sweeping: Simulation) -> None:
    sweeping.reset(19)
    act_until(sweeping, lambda: sweeping.holding("broom"))
    wait(sweeping, 8)
    assert not sweeping.holding("broom")
    assert run_expert(sweeping)
