"""Stacking blocks: what counts as a tower, what as failure, and recoveries."""

from collections.abc import Iterator

import numpy as np
import pytest
import task_checks as checks
from task_checks import act_until, move, wait

from llarva.errors import LlarvaError
from llarva.tabletop.experts import run_expert
from llarva.tabletop.gl import BACKEND
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.base import Task
from llarva.tabletop.tasks.picking import scatter
from llarva.tabletop.tasks.stack_blocks import BLOCKS, HALF, PALETTE, SAME, TOP, StackBlocks

needs_gl = pytest.mark.skipif(BACKEND is None, reason="no GL library to render with")
TASKS: tuple[type[Task], ...] = (StackBlocks,)
VARIATIONS = {"stack_blocks": (1, 58)}
NAMES = {"stack_blocks": lambda variation: (f"{PALETTE[variation % 20]} blocks",)}


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.name)
def sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    simulation = Simulation(request.param())
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
