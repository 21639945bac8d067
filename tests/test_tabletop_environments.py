"""Environments: control modes, options of a reset, limits, and what gymnasium asks of them."""

import gymnasium
import numpy as np
import pytest

import llarva.tabletop.env  # registers the tasks
from llarva.errors import LlarvaError
from llarva.tabletop.tasks.registry import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_both_control_modes_make_the_same_motion(task: str) -> None:
    ends = []
    for mode in ("joint_velocity", "end_effector_delta"):
        env = gymnasium.make(f"llarva/{task}-v0", control_mode=mode)
        observation, info = env.reset(seed=8)
        assert env.observation_space.contains(observation) and len(set(info["instructions"])) >= 4
        terminated = truncated = False
        while not (terminated or truncated):
            action = env.unwrapped.expert_action()
            assert action.dtype == np.float32 and env.action_space.contains(action)
            observation, reward, terminated, truncated, info = env.step(action)
        assert terminated and info["success"] and reward == 1 and info["failure"] is None
        ends.append((env.unwrapped.sim.steps, observation["state"]))
        env.close()
    assert ends[0][0] == ends[1][0] and np.abs(ends[0][1] - ends[1][1]).max() < 1e-3


def test_the_step_limit_truncates() -> None:
    env = gymnasium.make("llarva/open_drawer-v0", max_steps=3)
    env.reset(seed=0)
    results = [env.step(np.zeros(8, dtype=np.float32)) for _ in range(3)]
    assert [result[3] for result in results] == [False, False, True] and not results[-1][2]
    assert results[-1][4]["failure"] == "step_limit" and results[0][4]["failure"] is None
    env.close()


def test_resets_follow_their_options() -> None:
    env = gymnasium.make("llarva/push_buttons-v0")
    first, info = env.reset(seed=3, options={"variation": 19})
    again, same = env.reset(seed=3, options={"variation": 19})
    assert np.array_equal(first["image"], again["image"]) and info["instruction"] == same["instruction"]
    assert info["variation"] == 19 and info["instruction"] == "push the white button"
    noisy, _ = env.reset(seed=3, options={"variation": 19, "arm_noise": 0.12})
    assert 0.02 < np.abs(noisy["state"] - first["state"]).max() < 0.6
    drawn = {env.reset()[1]["seed"] for _ in range(3)}
    assert len(drawn) == 3
    env.close()


WRONG_OPTIONS = [{"variation": 54}, {"variation": -1}, {"variations": 1}, {"arm_noise": float("nan")}]


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_wrong_reset_options_are_refused(options: dict[str, float]) -> None:
    env = gymnasium.make("llarva/push_buttons-v0")
    with pytest.raises(LlarvaError):
        env.reset(seed=0, options=options)
    env.close()


def test_wrong_names_are_refused() -> None:
    with pytest.raises(LlarvaError, match="push_buttons"):
        llarva.tabletop.env.TabletopEnv("push_button")
    with pytest.raises(LlarvaError, match="end_effector_delta"):
        gymnasium.make("llarva/push_buttons-v0", control_mode="telepathy")
    with pytest.raises(LlarvaError, match="image_size"):
        gymnasium.make("llarva/push_buttons-v0", image_size=0)
    with pytest.raises(LlarvaError, match="max_steps"):
        gymnasium.make("llarva/push_buttons-v0", max_steps=0)


def test_gymnasium_agrees() -> None:
    from gymnasium.utils.env_checker import check_env

    env = llarva.tabletop.env.TabletopEnv("push_buttons", image_size=32)
    check_env(env, skip_render_check=True)
    env.close()


def test_a_wrong_button_is_a_failure_and_lights_up() -> None:
    env = gymnasium.make("llarva/push_buttons-v0", control_mode="end_effector_delta")
    env.reset(seed=1, options={"variation": 0})
    task = env.unwrapped.sim.task
    task.order = [1]  # the expert is told another button than the judge
    done = False
    while not done:
        action = env.unwrapped.expert_action()
        task.order = [0]
        _, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        task.order = [1]
    assert truncated and not terminated and reward == 0 and info["failure"] == "wrong_button"
    env.close()
