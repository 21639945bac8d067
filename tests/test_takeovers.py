"""Take-overs: the policy drives first, the expert ends it; the same bytes whoever asks."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llarva.episodes.store import EpisodeStore, verify_store
from llarva.instructions.rows import BuildConfig, episode_rows
from llarva.metrics import read_metrics
from llarva.models.checkpoints import load_checkpoint
from llarva.models.pretrained import pretrained
from llarva.policy import Policy
from llarva.runs import run_notebook
from llarva.tabletop.demos import DemoError, begin
from llarva.tabletop.experts import expert_action
from llarva.tabletop.recording import record_tasks
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.registry import get_task
from llarva.takeovers import TakeoverConfig, drive, record_group, take_over, takeover_episodes

CHECKPOINT = str(pretrained())


def config(out: str | Path = "", **changes: object) -> TakeoverConfig:
    small = TakeoverConfig("push_buttons", 3, str(out), seed=5, frames_per_episode=2, checkpoint=CHECKPOINT)
    return dataclasses.replace(small, **{"longest_drive": 0.1, **changes})


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return Simulation(get_task("push_buttons"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(load_checkpoint(CHECKPOINT), "end_effector_delta", 3)


def test_driving_in_turns_is_driving(sim: Simulation, policy: Policy) -> None:
    """What a policy does over snapshots of one simulation is what it does in the simulation itself."""
    begin(sim, config(), 0, 0)
    start = sim.snapshot()
    (way,) = drive(sim, policy, [start], [9])
    assert len(way) == 10
    sim.restore(start)
    policy.reset([sim.task.instructions(sim.variation)[0]], [0])
    for _ in range(9):
        seen = {"image": sim.render(), "state": sim.joint_positions.astype(np.float32),
                "gripper_open": np.array([sim.gripper_opening], np.float32)}  # fmt: skip
        (action,), _ = policy.step([seen], [0])
        sim.advance(sim.end_effector_to_joint_velocity(action))
    np.testing.assert_allclose(sim.snapshot().physics, way[-1].physics, atol=1e-9)


def test_ways_end_before_the_end(sim: Simulation, policy: Policy) -> None:
    begin(sim, config(), 0, 0)
    start = sim.snapshot()
    assert [len(way) for way in drive(sim, policy, [start, start], [0, 4])] == [1, 5]

    class Expert:
        """Drives to success."""

        control_mode = "joint_velocity"

        def reset(self, instructions: list[str], indices: range) -> None:
            assert len(instructions) == len(indices)

        def step(self, observations: list, indices: list[int]) -> tuple[list, list]:
            return [sim.end_effector_to_joint_velocity(expert_action(sim))], [None]

    (way,) = drive(sim, Expert(), [start], [400])
    assert 10 < len(way) < 220
    sim.restore(way[-1])
    assert not sim.success and sim.failure is None


def test_the_expert_starts_where_the_policy_stopped(sim: Simulation, policy: Policy) -> None:
    chosen, rng = config(), np.random.default_rng(0)
    begin(sim, chosen, 1, 0)
    (way,) = drive(sim, policy, [sim.snapshot()], [7])
    sim.restore(way[-1])
    joints = sim.joint_positions.astype(np.float32)
    episode = take_over(sim, chosen, 1, way, 7, rng)
    assert episode is not None and episode.success and np.array_equal(episode.steps[0].state, joints)
    assert episode.steps[0].image is not None and sum(step.image is not None for step in episode.steps) == 2
    form = load_checkpoint(CHECKPOINT).format
    assert len(episode_rows(episode, BuildConfig(form))) == 2


def test_a_short_way_is_taken_over_anywhere(sim: Simulation, policy: Policy) -> None:
    chosen = config(frames_per_episode=1)
    begin(sim, chosen, 2, 0)
    (way,) = drive(sim, policy, [sim.snapshot()], [12])
    starts = set()
    for seed in range(12):
        episode = take_over(sim, chosen, 2, way, 99, np.random.default_rng(seed))
        assert episode is not None
        starts.add(episode.steps[0].state.tobytes())
    assert len(starts) > 4


def test_same_bytes_for_any_blocks_and_workers(tmp_path: Path, sim: Simulation) -> None:
    together = list(takeover_episodes(config(), range(3)))
    (last, _), = takeover_episodes(config(), [2])  # fmt: skip
    assert [s.image for s in last.steps] == [s.image for s in together[2][0].steps]
    (summary,) = record_tasks([config(tmp_path, workers=1)], 1, takeover_episodes)
    stored = EpisodeStore(summary.store)
    verify_store(summary.store)
    assert summary.episodes == 3 and summary.failed_attempts == sum(failed for _, failed in together)
    assert [e.steps[0].image for e in stored.shard(0, 1)] == [e.steps[0].image for e, _ in together]


def test_nothing_else_is_appended(tmp_path: Path) -> None:
    record_tasks([config(tmp_path, episodes=1)], 1, takeover_episodes)
    with pytest.raises(DemoError, match="other parameters"):
        record_tasks([config(tmp_path, episodes=1, control_mode="joint_velocity")], 1, takeover_episodes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"kicks": 1}, "kicks"), ({"checkpoint": "nowhere"}, "'nowhere'"), ({"longest_drive": 0.0}, "0.0"),
     ({"number_choice": "mean"}, "'mean'.*auto, likeliest, median")],
)
def test_what_cannot_be_recorded(changes: dict, told: str) -> None:
    with pytest.raises(DemoError, match=told):
        TakeoverConfig("push_buttons", 1, "", **{"checkpoint": CHECKPOINT, **changes})


def test_it_is_known_how_the_driver_chose_its_numbers() -> None:
    """Recordings from before there was a choice were driven by the likeliest numbers, and can be continued."""
    assert config().identity()["number_choice"] == "auto"
    assert "number_choice" not in config(number_choice="likeliest").identity()


def test_an_expert_that_never_mends_is_told(sim: Simulation, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llarva.takeovers.take_over", lambda *_: None)
    with pytest.raises(DemoError, match="push_buttons"):
        record_group(sim, policy, config(longest_drive=0.01), [0])


def test_the_run(tmp_path: Path) -> None:
    few = {"checkpoint": CHECKPOINT, "tasks": ["push_buttons", "slide_block_to_color_target"], "episodes": 1}
    run_notebook("takeovers", tmp_path, {**few, "frames_per_episode": 2, "longest_drive": 0.05, "workers": 1})
    metrics = read_metrics(tmp_path)["metrics"]
    assert metrics["episodes"] == 2 and metrics["frames"] == 4
