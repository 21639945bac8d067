"""Towers of blocks and rings on pegs: what counts as success, what as failure, and recoveries."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import task_checks as checks
from task_checks import act_until, move, wait

from llarva.errors import LlarvaError
from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.insert_onto_square_peg import AROUND, BAR, BOARD_TOP, PEGS, InsertOntoSquarePeg
from llarva.tabletop.tasks.picking import scatter
from llarva.tabletop.tasks.stack_blocks import BLOCKS, HALF, PALETTE, SAME, TOP, StackBlocks

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS: tuple[type[Task], ...] = (StackBlocks, InsertOntoSquarePeg)
VARIATIONS = {"stack_blocks": (1, 58), "insert_onto_square_peg": (0, 9, 18)}
NAMES = {
    "stack_blocks": lambda variation: (f"{PALETTE[variation % 20]} blocks",),
    "insert_onto_square_peg": lambda variation: (f"{PALETTE[variation]} peg", "ring"),
}


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(request.param())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def pegs() -> Iterator[Simulation]:
    simulation = Simulation(InsertOntoSquarePeg())
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def blocks() -> Iterator[Simulation]:
    simulation = Simulation(StackBlocks())
    yield simulation
    simulation.close()


# Every task

def test_the_expert_succeeds(sim: Simulation) -> None:
    checks.expert_succeeds(sim, VARIATIONS[sim.task.name])


def test_a_still_robot_never_succeeds(sim: Simulation) -> None:
    checks.still_robot_never_succeeds(sim)


def test_phrasings_name_marked_things_only(sim: Simulation) -> None:
    checks.phrasings_name_marked_things(sim, NAMES[sim.task.name])


@needs_gl
def test_names_are_seen_where_they_are_pointed_at(sim: Simulation) -> None:
    checks.marks_are_seen(sim, range(10))


def test_the_same_seed_gives_the_same_bytes(sim: Simulation) -> None:
    checks.same_seed_same_bytes(sim)


def test_a_snapshot_continues_to_the_last_bit(sim: Simulation) -> None:
    checks.snapshots_continue_to_the_last_bit(sim, VARIATIONS[sim.task.name][0])


# Blocks

def build(sim: Simulation, blocks: tuple[str, ...], shift: float = 0.0) -> None:
    """Stack `blocks` on the platform, the topmost shifted aside."""
    for level, name in enumerate(blocks):
        aside = shift if name == blocks[-1] else 0.0
        x, y = sim.position("platform")[:2]
        move(sim, name, [x + aside, y, TOP + HALF * (2 * level + 1)])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_tower_counts_when_it_is_whole(blocks: Simulation, count: int) -> None:
    blocks.reset(2, variation=20 * (count - 2))
    build(blocks, BLOCKS[: count - 1])
    assert not blocks.task.success(blocks), "one is missing"
    build(blocks, BLOCKS[:count])
    assert blocks.task.success(blocks)
    wait(blocks, 20)
    assert blocks.success, "it stands"
    blocks.data.joint(BLOCKS[0]).qvel[0] = 0.05
    blocks.data.eq_active[blocks.model.equality(f"hold_{BLOCKS[count - 1]}").id] = 1
    assert not blocks.task.success(blocks), "the hand holds the top"


def test_what_is_no_tower(blocks: Simulation) -> None:
    blocks.reset(2, variation=0)
    build(blocks, BLOCKS[:2], shift=0.022)
    assert not blocks.task.success(blocks), "aside"
    build(blocks, BLOCKS[:3])
    assert not blocks.task.success(blocks), "one too many"
    blocks.reset(2, variation=0)
    move(blocks, BLOCKS[0], [0.3, 0.0, TOP - 0.008 + HALF])
    move(blocks, BLOCKS[1], [0.3, 0.0, TOP - 0.008 + 3 * HALF])
    assert not blocks.task.success(blocks), "not on the platform"


def test_a_block_of_another_colour_and_the_floor(blocks: Simulation) -> None:
    blocks.reset(2, variation=0)
    build(blocks, (BLOCKS[0], BLOCKS[SAME]))
    assert blocks.task.failure(blocks) == "wrong_block"
    blocks.reset(2, variation=0)
    move(blocks, BLOCKS[5], [0.5, 0.9, 0.3])
    assert blocks.task.failure(blocks) == "dropped"


def test_the_nearest_block_comes_first(blocks: Simulation) -> None:
    for seed in range(10):
        blocks.reset(seed)
        away = [np.linalg.norm((blocks.position(name) - blocks.position("platform"))[:2]) for name in BLOCKS[:SAME]]
        assert np.diff(np.sort(away)).min() > 0.015
        mark = blocks.objects()[f"{PALETTE[blocks.variation % 20]} blocks"]
        nearest = blocks.position(BLOCKS[int(np.argmin(away))])
        assert np.allclose(mark.point[:2], nearest[:2])


def test_a_dropped_block_is_picked_up_again(blocks: Simulation) -> None:
    blocks.reset(1, variation=3)
    act_until(blocks, lambda: blocks.position(blocks.task.next_block(blocks, BLOCKS[:SAME], []))[2] > 0.83)  # type: ignore[attr-defined]
    wait(blocks, 8)
    assert not any(blocks.holding(name) for name in BLOCKS)
    assert run_expert(blocks)


def test_a_block_beside_the_tower_is_put_on_it(blocks: Simulation) -> None:
    blocks.reset(4, variation=7)
    x, y = blocks.position("platform")[:2]
    build(blocks, BLOCKS[:1])
    move(blocks, BLOCKS[1], [x, y + 0.09, TOP + HALF])
    assert blocks.task.next_block(blocks, BLOCKS[:SAME], [BLOCKS[0]]) == BLOCKS[1]  # type: ignore[attr-defined]
    assert run_expert(blocks)


def test_a_neighbour_in_the_way_of_a_finger(blocks: Simulation) -> None:
    blocks.reset(5, variation=4)
    move(blocks, BLOCKS[0], [0.3, 0.0, TOP + HALF])
    move(blocks, BLOCKS[SAME], [0.3, 0.07, TOP + HALF])
    for name in (*BLOCKS[1:SAME], *BLOCKS[SAME + 1 :]):
        move(blocks, name, [0.06 * int(name[-1]), -0.3, TOP + HALF])
    act_until(blocks, lambda: blocks.holding(BLOCKS[0]))
    assert abs(blocks.rotation("panda_hand")[1, 1]) < 0.4, "the fingers close across"


# Ring and pegs

def put_around(sim: Simulation, peg: int, aside: float = 0.0, above: float = 0.0) -> None:
    x, y = sim.position(f"peg{peg}")[:2]
    move(sim, "ring", [x + aside, y, BOARD_TOP + BAR[1] + 0.0005 + above])


def test_a_ring_counts_when_it_is_down_and_let_go(pegs: Simulation) -> None:
    pegs.reset(1)
    goal = pegs.task.goal  # type: ignore[attr-defined]
    put_around(pegs, goal)
    assert pegs.task.success(pegs) and pegs.task.failure(pegs) is None
    put_around(pegs, goal, above=0.03)
    assert not pegs.task.success(pegs), "still above the board"
    put_around(pegs, goal, aside=AROUND + 0.002)
    assert not pegs.task.success(pegs), "beside the peg"
    put_around(pegs, goal)
    pegs.data.joint("ring").qvel[2] = -0.05
    mujoco.mj_forward(pegs.model, pegs.data)
    assert not pegs.task.success(pegs), "falling"
    put_around(pegs, goal)
    pegs.data.eq_active[pegs.model.equality("hold_ring").id] = 1
    assert not pegs.task.success(pegs), "the hand holds it"


def test_the_wrong_peg_and_the_floor(pegs: Simulation) -> None:
    pegs.reset(1)
    goal = pegs.task.goal  # type: ignore[attr-defined]
    for peg in range(PEGS):
        put_around(pegs, peg)
        assert pegs.task.failure(pegs) == (None if peg == goal else "wrong_peg")
    move(pegs, "ring", [0.5, 0.9, 0.3])
    assert pegs.task.failure(pegs) == "dropped"


def test_a_ring_cannot_pass_through_a_peg(pegs: Simulation) -> None:
    pegs.reset(1)
    put_around(pegs, pegs.task.goal)  # type: ignore[attr-defined]
    pegs.data.joint("ring").qvel[0] = 0.5
    wait(pegs, 20)
    assert pegs.task.is_around(pegs, pegs.task.goal)  # type: ignore[attr-defined]


def test_a_dropped_ring_is_picked_up_again(pegs: Simulation) -> None:
    pegs.reset(2)
    act_until(pegs, lambda: pegs.holding("ring") and pegs.position("ring")[2] > 0.8)
    wait(pegs, 8)
    assert not pegs.holding("ring")
    assert run_expert(pegs)


@pytest.mark.parametrize("yaw", [0.8, -0.8])
def test_a_turned_ring_is_taken_too(pegs: Simulation, yaw: float) -> None:
    pegs.reset(3)
    move(pegs, "ring", [0.13, 0.05, 0.7635], yaw)
    assert run_expert(pegs)


# Room

def test_scattered_places_keep_their_distance() -> None:
    clear = np.array([[0.2, 0.1, 0.05, 0.2]])
    for seed in range(20):
        places = scatter(np.random.default_rng(seed), 6, (0.0, -0.3), (0.4, 0.3), 0.1, clear)
        away = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(6)
        assert away.min() > 0.1
        assert not np.any(np.all(np.abs(places - clear[:, :2]) < clear[:, 2:], axis=1))


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(LlarvaError, match="20 objects do not fit"):
        scatter(np.random.default_rng(0), 20, (0.0, 0.0), (0.1, 0.1), 0.1, np.zeros((0, 4)))
