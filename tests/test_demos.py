"""Demonstrations: honest pictures, scenes that depend on nothing but their number, recoveries."""

import dataclasses
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import llarva.tabletop.env  # noqa: F401  (registers the tasks)
from llarva.episodes.records import Episode, actions_in, check_episode, decode_image, decode_mask
from llarva.errors import LlarvaError
from llarva.tabletop import demos
from llarva.tabletop.demos import DemoConfig, DemoError, episodes, failed_attempts, record_episode
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.registry import TASKS, get_task


def config(task: str = "push_buttons", out: str | Path = "", **changes: object) -> DemoConfig:
    return dataclasses.replace(DemoConfig(task, 4, str(out), frames_per_episode=3, episodes_per_shard=2), **changes)


@cache
def simulation(task: str) -> Simulation:
    return Simulation(get_task(task))


def record(chosen: DemoConfig, index: int) -> Episode:
    episode = record_episode(simulation(chosen.task), chosen, index)
    assert episode is not None
    return episode


@pytest.mark.parametrize("task", TASKS)
def test_episodes_keep_the_rules_and_their_frames(task: str) -> None:
    for index in range(2):
        episode = record(config(task), index)
        check_episode(episode)
        kept = [t for t, step in enumerate(episode.steps) if step.image]
        assert kept[0] == 0 and len(kept) == 3 and kept[-1] < len(episode.steps) - 1
        for t, step in enumerate(episode.steps):
            assert (step.segmentation is None) == (step.image is None) == (not step.object_points)
            assert step.timestamp == pytest.approx(t / 20)
        labels = decode_mask(episode.steps[0].segmentation)
        assert labels.shape == (32, 32) and labels.max() <= len(episode.object_names)
        assert set(episode.steps[0].object_points) <= set(episode.object_names)


@pytest.mark.parametrize("task", TASKS)
def test_pictures_and_states_are_those_of_the_environment(task: str) -> None:
    """The environment, given the recorded actions, shows the recorded pictures: none of them knows the future."""
    chosen = config(task, kicks=0, frames_per_episode=5)
    episode = record(chosen, 0)
    env = gymnasium.make(f"llarva/{task}-v0", control_mode="end_effector_delta")
    options = {"variation": episode.variation, "arm_noise": chosen.arm_noise}
    observation, info = env.reset(seed=episode.seed, options=options)
    assert info["instructions"] == episode.instructions
    terminated = False
    for step in episode.steps:
        assert np.array_equal(observation["state"], step.state)
        assert np.allclose(info["end_effector_position"], step.end_effector_position, atol=1e-6)
        if step.image:
            assert np.array_equal(observation["image"], decode_image(step.image))
        if step.action is not None:
            assert not terminated
            observation, _, terminated, _, info = env.step(step.action)
            assert np.array_equal(info["joint_velocity_command"], step.joint_velocity_command)
    assert terminated and info["success"]
    env.close()


def test_both_control_modes_can_be_read_from_one_episode() -> None:
    episode = record(config(kicks=0), 1)
    velocity = actions_in(episode, "joint_velocity")
    assert velocity.shape == (len(episode.steps) - 1, 8)
    env = gymnasium.make("llarva/push_buttons-v0", control_mode="joint_velocity")
    env.reset(seed=episode.seed, options={"variation": episode.variation, "arm_noise": 0.12})
    terminated = False
    for action in velocity:
        assert not terminated
        _, _, terminated, _, _ = env.step(action)
    assert terminated
    env.close()


def test_kicks_start_episodes_elsewhere_and_are_not_recorded() -> None:
    calm = [record(config(kicks=0, frames_per_episode=1), index) for index in range(6)]
    kicked = [record(config(kicks=3, frames_per_episode=1), index) for index in range(6)]
    assert any(not np.array_equal(a.steps[0].state, b.steps[0].state) for a, b in zip(calm, kicked, strict=True))
    for episode in kicked:
        jumps = np.abs(np.diff([step.state for step in episode.steps], axis=0))
        assert jumps.max() < 2.7 / 20
        assert all(np.linalg.norm(step.action[:3]) < 0.021 for step in episode.steps[:-1])


def test_an_index_depends_on_nothing_else() -> None:
    sim = Simulation(get_task("push_buttons"))
    for index in (3, 0, 2):
        record_episode(sim, config(), index)
    episode, fresh = record_episode(sim, config(), 1), record(config(episodes=99, workers=3, out_dir="x"), 1)
    assert episode is not None
    assert [step.image for step in episode.steps] == [step.image for step in fresh.steps]
    other = record(config(seed=1), 1)
    assert [step.image for step in other.steps] != [step.image for step in fresh.steps]


@pytest.mark.parametrize(
    "changes",
    [{"episodes": 0}, {"workers": 0}, {"frames_per_episode": 0}, {"kicks": -1}, {"variations": (999,)},
     {"variations": ()}, {"task": "push_button"}, {"arm_noise": float("nan")}, {"seed": -1}, {"image_size": 0}],
    ids=str,
)  # fmt: skip
def test_impossible_wishes_are_refused_at_once(changes: dict[str, object]) -> None:
    with pytest.raises(LlarvaError):
        config(**changes)


def test_detours_lead_the_hand_elsewhere() -> None:
    starts = {}
    for share in (0.0, 1.0):
        config = DemoConfig("push_buttons", 12, "", frames_per_episode=1, kicks=1, detour_share=share)
        starts[share] = np.stack([episode.steps[0].end_effector_position for episode, _ in episodes(config, range(12))])
    moved = np.linalg.norm(starts[1.0] - starts[0.0], axis=1)
    assert np.sum(moved > 0.05) >= 3 and np.sum(moved == 0) >= 3  # episodes without a kick are the same


def test_a_share_of_the_demonstrations_is_seen_differently(tmp_path: Path) -> None:
    config = DemoConfig("push_buttons", 4, str(tmp_path), frames_per_episode=1, appearance_share=0.5, kicks=0)
    poses = [episode.steps[0].camera_pose for episode, _ in episodes(config, range(4))]
    plain = next(episodes(dataclasses.replace(config, appearance_share=0.0), range(1)))[0].steps[0].camera_pose
    moved = [not np.array_equal(pose, plain) for pose in poses]
    assert any(moved) and not all(moved)


def test_a_scene_tells_which_attempt_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of failed attempts is read off the stored scenes: nothing can lose or double it."""
    whole = demos.record_episode

    def sometimes(sim: Simulation, config: DemoConfig, index: int, attempt: int) -> Episode | None:
        return whole(sim, config, index, attempt) if attempt >= index % 3 else None

    monkeypatch.setattr(demos, "record_episode", sometimes)
    chosen = config(frames_per_episode=1, kicks=0)
    for index, (episode, failed) in enumerate(episodes(chosen, range(4))):
        assert failed >= index % 3
        assert failed_attempts(chosen, index, episode.seed) == failed
    with pytest.raises(DemoError, match="no attempt"):
        failed_attempts(chosen, 0, 1_500_000)
