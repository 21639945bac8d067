"""Turning a tap, closing a jar, screwing in a bulb: the right thing, far enough, let go and at rest."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from hypothesis import given
from hypothesis import strategies as st
from task_checks import act_until, move, wait

from llarva.cameras import project
from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.scene import COLOURS
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.close_jar import PALETTE, CloseJar
from llarva.tabletop.tasks.colours import distinct_colour
from llarva.tabletop.tasks.light_bulb_in import WARM, LightBulbIn
from llarva.tabletop.tasks.screwing import LOOSE, TIGHT, Thread, turning_yaw
from llarva.tabletop.tasks.turn_tap import HANDLES, OTHER, TURNED, TurnTap

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS: tuple[type[Task], ...] = (TurnTap, CloseJar, LightBulbIn)
VARIATIONS = {"turn_tap": (0, 1), "close_jar": (0, 9, 18), "light_bulb_in": (0, 9, 18)}
NAMES = {
    "turn_tap": lambda variation: (f"{HANDLES[variation]} handle",),
    "close_jar": lambda variation: (f"{PALETTE[variation]} jar",),
    "light_bulb_in": lambda variation: (f"{PALETTE[variation]} bulb", "lamp"),
}


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(request.param())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module", params=(CloseJar, LightBulbIn), ids=lambda task: task.name)
def screw(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(request.param())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def jars() -> Iterator[Simulation]:
    simulation = Simulation(CloseJar())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def bulbs() -> Iterator[Simulation]:
    simulation = Simulation(LightBulbIn())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def tap() -> Iterator[Simulation]:
    simulation = Simulation(TurnTap())
    yield simulation
    simulation.close()


def rise(sim: Simulation, steps: int) -> None:
    """Open the fingers and lift the hand."""
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity([0, 0, 0.01, 0, 0, 0, 1]))


# Every task

def test_the_expert_succeeds(sim: Simulation) -> None:
    checks.expert_succeeds(sim, VARIATIONS[sim.task.name])


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, NAMES[sim.task.name])


def test_marks_are_inside_the_picture(sim: Simulation) -> None:
    checks.marks_are_inside_the_picture(sim, range(12))


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, VARIATIONS[sim.task.name][-1], every=12, ahead=8)


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(6))


# The tap

@pytest.mark.parametrize("variation", [0, 1])
def test_a_handle_counts_when_it_is_turned_and_still(tap: Simulation, variation: int) -> None:
    tap.reset(1, variation=variation)
    hinge = tap.data.joint(f"{HANDLES[variation]}_handle")
    for angle, speed, turned in ((-0.02, 0.0, False), (0.02, 0.0, True), (0.02, 0.3, False), (0.02, -0.3, False)):
        hinge.qpos[0], hinge.qvel[0] = TURNED + angle, speed
        assert tap.task.success(tap) is turned


def test_the_wrong_handle(tap: Simulation) -> None:
    tap.reset(1, variation=0)
    tap.data.joint("left_handle").qpos[0] = TURNED + 0.02
    for angle, failure in ((-0.02, None), (0.02, "wrong_handle")):
        tap.data.joint("right_handle").qpos[0] = OTHER + angle
        assert tap.task.failure(tap) == failure
        assert tap.task.success(tap) is (failure is None)


def test_a_handle_stays_where_it_is_let_go(tap: Simulation) -> None:
    tap.reset(2, variation=0)
    tap.data.joint("right_handle").qpos[0] = 0.3
    wait(tap, 20)
    angles = [tap.task.angle(tap, k) for k in range(2)]  # type: ignore[attr-defined]
    assert np.allclose(angles, [0.0, 0.3], atol=0.02)


@pytest.mark.parametrize("share", [0.35, 0.75])
def test_a_lost_handle_is_gripped_again(tap: Simulation, share: float) -> None:
    tap.reset(4)
    act_until(tap, lambda: tap.task.angle(tap, tap.variation) > share * TURNED)  # type: ignore[attr-defined]
    rise(tap, 15)
    assert not tap.success
    assert run_expert(tap)


def test_the_other_handle_stays_shut(tap: Simulation) -> None:
    for seed in range(4):
        tap.reset(seed, arm_noise=0.12)
        assert run_expert(tap)
        assert tap.task.angle(tap, 1 - tap.variation) < 0.05  # type: ignore[attr-defined]


def test_left_is_left_in_the_picture(tap: Simulation) -> None:
    for seed in range(10):
        tap.reset(seed)
        marks = tap.task.objects(tap)
        left, right = (project(marks[f"{side} handle"].point, *tap.camera())[0] for side in HANDLES)
        assert right[0] - left[0] > 20


# Screwing

def threads(sim: Simulation) -> list[Thread]:
    """The thread where the part belongs, then the others."""
    return sim.task.threads  # type: ignore[attr-defined]


def set_down(sim: Simulation, thread: Thread, aside: float = 0.0, yaw: float = 0.0) -> None:
    """Put the part over a thread and let it sink; the arm stays where it is, open."""
    move(sim, thread.part, thread.seat(sim) + [aside, 0, 0.001], yaw)
    wait(sim, 6)


def turn(sim: Simulation, thread: Thread, angle: float) -> None:
    """Turn thread and part, in no time."""
    start = sim.data.joint(thread.part).qpos[3:7].copy()
    mujoco.mju_mulQuat(start, np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)]), start.copy())
    sim.data.joint(thread.part).qpos[3:7] = start
    sim.data.qpos[thread.position] = angle
    mujoco.mj_forward(sim.model, sim.data)


@given(st.floats(-7, 7), st.floats(0, 1.6))
def test_the_wrist_has_room_for_the_turn(bar: float, left: float) -> None:
    start = turning_yaw(bar, left)
    assert abs(np.sin(start - bar)) < 1e-6, "along the bar"
    assert -1.9 < start and start + left < 2.9
    assert abs(start + left / 2 - 0.5) <= np.pi / 2 + 1e-6


@pytest.mark.parametrize("colour", COLOURS)
def test_distractors_look_different(colour: str) -> None:
    others = {distinct_colour(np.random.default_rng(k), colour) for k in range(20)}
    assert colour not in others and len(others) > 5
    assert min(np.linalg.norm(np.subtract(COLOURS[o], COLOURS[colour])) for o in others) >= 0.45


@pytest.mark.parametrize(("aside", "caught"), [(0.0, True), (0.003, True), (0.012, False)])
def test_a_thread_catches_what_sits_straight(screw: Simulation, aside: float, caught: bool) -> None:
    screw.reset(1)
    thread = threads(screw)[0]
    set_down(screw, thread, aside, yaw=0.7)
    assert thread.holds(screw) is caught and not screw.success
    if caught:
        assert np.linalg.norm(screw.position(thread.part) - thread.seat(screw)) < 1e-3


def test_only_turned_tight_counts(screw: Simulation) -> None:
    screw.reset(2)
    thread = threads(screw)[0]
    set_down(screw, thread)
    for angle, tight in ((0.0, False), (TIGHT - 0.03, False), (TIGHT + 0.03, True)):
        turn(screw, thread, angle)
        assert screw.task.success(screw) is tight
    screw.data.qvel[thread.velocity] = 0.1
    assert not screw.task.success(screw), "it turns"
    screw.data.qvel[thread.velocity] = 0.0
    screw.data.eq_active[thread.hold] = 1
    assert not screw.task.success(screw), "the hand holds it"
    screw.data.eq_active[thread.hold] = 0
    screw.data.qpos[screw.fingers] = 0.03
    assert not screw.task.success(screw), "the fingers are around it"


@pytest.mark.parametrize("angle", [0.0, 0.8])
def test_loose_is_pulled_off_and_tight_is_not(screw: Simulation, angle: float) -> None:
    screw.reset(4)
    thread = threads(screw)[0]
    act_until(screw, lambda: thread.holds(screw) and screw.holding(thread.part) and thread.angle(screw) >= angle)
    for _ in range(15):
        screw.advance(screw.end_effector_to_joint_velocity([0, 0, 0.012, 0, 0, 0, 0]))
    if angle < LOOSE:
        assert not thread.holds(screw) and screw.holding(thread.part)
    else:
        assert thread.holds(screw) and not screw.holding(thread.part)
        assert np.linalg.norm(screw.position(thread.part) - thread.seat(screw)) < 2e-3
    assert run_expert(screw)


def test_a_thread_that_gave_its_part_back_starts_anew(screw: Simulation) -> None:
    screw.reset(4)
    thread = threads(screw)[0]
    act_until(screw, lambda: thread.holds(screw) and screw.holding(thread.part))
    act_until(screw, lambda: thread.angle(screw) > 0.3 * LOOSE)
    assert thread.angle(screw) < LOOSE
    for _ in range(6):
        screw.advance(screw.end_effector_to_joint_velocity([0, 0, 0.012, 0, 0, 0, 0]))
    assert not thread.holds(screw) and abs(thread.angle(screw)) < 1e-3


def test_a_snapshot_right_after_the_catch_is_complete(screw: Simulation) -> None:
    screw.reset(4)
    thread = threads(screw)[0]
    screw.place(thread.part, thread.seat(screw) + [0.003, 0, 0.001], 0.3)
    mujoco.mj_step1(screw.model, screw.data)
    thread.follow(screw)
    assert thread.holds(screw)
    snapshot = screw.snapshot()
    wait(screw, 1)
    later = screw.data.qpos.copy()
    screw.restore(snapshot)
    wait(screw, 1)
    assert np.array_equal(screw.data.qpos, later)


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.2])
def test_let_go_half_way_it_is_gripped_again(screw: Simulation, angle: float) -> None:
    screw.reset(5, arm_noise=0.12)
    thread = threads(screw)[0]
    act_until(screw, lambda: thread.holds(screw) and thread.angle(screw) >= angle)
    rise(screw, 10)
    assert not screw.success and not screw.holding(thread.part)
    assert run_expert(screw)


# The jar

def test_the_wrong_jar_and_the_floor(jars: Simulation) -> None:
    jars.reset(3)
    set_down(jars, threads(jars)[1])
    assert jars.failure == "wrong_jar" and not jars.success
    jars.reset(3)
    move(jars, "lid", [0.5, 0.9, 0.3])
    assert jars.task.failure(jars) == "dropped"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lid_dropped_on_the_way_is_picked_up_again(jars: Simulation, seed: int) -> None:
    jars.reset(seed)
    act_until(jars, lambda: jars.holding("lid") and bool(jars.position("lid")[2] > 0.84))
    wait(jars, 6)
    assert not jars.holding("lid")
    assert run_expert(jars)


# The bulb

def test_the_wrong_bulb_and_the_floor(bulbs: Simulation) -> None:
    bulbs.reset(3)
    x, y, z = bulbs.position("bulb1")
    lifted, out, gone = [x, y, z + 0.015], [x, y, z + 0.03], [0.5, 0.9, 0.3]
    for place, failure in ((lifted, None), (out, "wrong_bulb"), (gone, "wrong_bulb")):
        move(bulbs, "bulb1", place)
        assert bulbs.task.failure(bulbs) == failure
    bulbs.reset(3)
    move(bulbs, "bulb0", [0.5, 0.9, 0.3])
    assert bulbs.task.failure(bulbs) == "fallen"
    bulbs.data.eq_active[threads(bulbs)[0].hold] = 1
    assert bulbs.task.failure(bulbs) is None, "in the hand it has not fallen"


def test_a_bulb_let_go_on_the_way_falls_over(bulbs: Simulation) -> None:
    bulbs.reset(1)
    start = bulbs.position("bulb0")
    act_until(bulbs, lambda: bool(np.linalg.norm((bulbs.position("bulb0") - start)[:2]) > 0.06))
    assert bulbs.failure is None
    wait(bulbs, 30)
    assert bulbs.failure == "fallen"


def test_a_bulb_shines_when_it_is_tight(bulbs: Simulation) -> None:
    bulbs.reset(2, variation=4)
    glass = bulbs.model.geom("bulb0_glass")
    before = glass.rgba.copy()
    act_until(bulbs, lambda: threads(bulbs)[0].holds(bulbs))
    snapshot = bulbs.snapshot()
    assert np.array_equal(glass.rgba, before)
    assert run_expert(bulbs)
    assert np.allclose(glass.rgba, WARM)
    bulbs.restore(snapshot)
    assert np.array_equal(glass.rgba, before)


def test_bulbs_stand_in_their_holders(bulbs: Simulation) -> None:
    for seed in range(4):
        bulbs.reset(seed)
        wait(bulbs, 20)
        for k in range(2):
            off = bulbs.position(f"bulb{k}") - bulbs.position(f"holder{k}")
            assert np.linalg.norm(off[:2]) < 0.002 and bulbs.rotation(f"bulb{k}")[2, 2] > 0.999
