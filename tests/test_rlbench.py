"""The RLBench adapter against a stand-in installation: hangs, crashes, wrong actions, what is missing, seeds."""

import ast
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rlbench_installation import installed

import llarva
import llarva.rlbench
from llarva.errors import EpisodeLost
from llarva.rlbench.env import RlbenchEnv, variation_of
from llarva.rlbench.messages import DTYPES, MessageError, pack, receive, send, unpack
from llarva.rlbench.simulator import RequestFailed, RlbenchError, Simulator, SimulatorConfig
from llarva.robots import ActionError

TASK = "open_drawer"
STILL = np.append(np.zeros(7), 1.0)
QUICK = SimulatorConfig(step_seconds=1.0, reset_seconds=20.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rlbench")
    with installed(folder, "peract"):
        yield folder


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[RlbenchEnv]:
    env = RlbenchEnv(TASK, image_size=64, max_steps=30, config=QUICK)
    yield env
    env.close()


@pytest.fixture
def env(shared: RlbenchEnv, home: Path) -> Iterator[RlbenchEnv]:
    yield shared
    shared.config = QUICK
    for fault in (home / "faults").iterdir():
        fault.unlink()


def fault(home: Path, name: str) -> None:
    (home / "faults" / name).touch()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


# Messages

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(DTYPES).flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, min_side=0))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(max_examples=80, deadline=None)
@given(plain)
def test_messages_come_out_as_they_went_in(message: Any) -> None:
    assert same(message, unpack(pack(message)))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_damaged_messages_are_refused_or_read(noise: bytes, cut: int) -> None:
    for data in (noise, pack({"a": np.arange(5.0), "b": [1, "x"]})[:cut]):
        try:
            unpack(data)
        except MessageError:
            pass


def test_objects_and_foreign_arrays_are_no_messages() -> None:
    for value in (object(), np.array(["text"]), np.array([None]), {1: 2}, {"__array__": 1}, b"bytes"):
        with pytest.raises(MessageError):
            pack(value)


def test_a_partial_message_times_out() -> None:
    ours, theirs = socket.socketpair()
    send(ours, STILL)
    assert np.array_equal(receive(theirs, 1.0), STILL)
    ours.sendall(b"\0\0\0\0\0\0\0\xff12")
    with pytest.raises(TimeoutError):
        receive(theirs, 0.05)
    ours.close()
    with pytest.raises(ConnectionError):
        receive(theirs, 1.0)
    theirs.close()


@pytest.mark.parametrize("module", ["messages", "display", "worker"])
def test_what_runs_beside_rlbench_is_python_3_8_and_needs_only_numpy(module: str) -> None:
    tree = ast.parse((Path(llarva.__file__).parent / "rlbench" / f"{module}.py").read_text(), feature_version=(3, 8))
    tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name.split(".")[0] for node in tops if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in tops if isinstance(node, ast.ImportFrom) and not node.level}
    assert names - set(sys.stdlib_module_names) <= {"numpy"}
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tops)


# Episodes

def test_observations_and_info_follow_the_contract(env: RlbenchEnv) -> None:
    observation, info = env.reset(seed=5)
    assert env.observation_space.contains(observation) and observation["image"].dtype == np.uint8
    assert observation["gripper_open"] == pytest.approx(1.0, abs=0.02)
    assert env.fork == "peract" and env.variation_count == 3
    assert info["variation"] == variation_of(5, 3) and info["seed"] == 5 and "drawer" in info["instruction"]
    assert info["camera_intrinsics"][0, 0] > 0 and info["camera_pose"].shape == (4, 4)
    observation, reward, terminated, truncated, info = env.step(np.append(np.eye(7)[0] * 99, 0.0))
    assert info["clipped"] == 1 and info["joint_velocity_command"][0] == pytest.approx(2.175)
    assert (reward, terminated, truncated, info["failure"]) == (0.0, False, False, None)
    assert observation["gripper_open"] < 0.2 and observation["state"][0] > 0.05


def test_the_same_seed_gives_the_same_first_image(env: RlbenchEnv) -> None:
    first = env.reset(seed=8)[0]["image"]
    assert not np.array_equal(first, env.reset(seed=9)[0]["image"])
    assert np.array_equal(first, env.reset(seed=8)[0]["image"])
    env.config = SimulatorConfig(relaunch_every=1)
    process = env.simulator.process.pid
    assert np.array_equal(first, env.reset(seed=8)[0]["image"]) and env.simulator.process.pid != process


def test_the_step_limit_ends_an_episode(env: RlbenchEnv) -> None:
    env.reset(seed=1)
    for _ in range(29):
        assert not env.step(STILL)[3]
    _, _, terminated, truncated, info = env.step(STILL)
    assert (terminated, truncated, info["failure"]) == (False, True, "step_limit")
    with pytest.raises(RlbenchError, match="call reset"):
        env.step(STILL)


@pytest.mark.parametrize("action,says", [
    (np.zeros(7), r"shape \(8,\)"), (np.zeros(9), r"shape \(8,\)"), (np.zeros((1, 8)), r"shape \(8,\)"),
    ([np.nan] * 8, "nan"), ([0.0] * 7 + [np.inf], "inf"), ("up", "8 numbers"),
])
def test_wrong_actions_never_reach_the_simulator(env: RlbenchEnv, action: Any, says: str) -> None:
    before = env.reset(seed=1)[0]["state"]
    with pytest.raises(ActionError, match=says):
        env.step(action)
    assert env.steps == 0 and np.abs(env.step(STILL)[0]["state"] - before).max() < 1e-3


def test_without_the_check_a_nan_would_hang(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator(QUICK)
    simulator.ask("open", 60.0, task=TASK, camera="front", image_size=32, renderer="opengl", frames=False)
    simulator.ask("reset", 20.0, seed=0, variation=0)
    with pytest.raises(RequestFailed, match="longer than 0.5 s") as caught:
        simulator.ask("step", 0.5, action=np.full(8, np.nan))
    assert caught.value.failure == "step_timeout" and not simulator.alive
    simulator.close()


@pytest.mark.parametrize("name,failure,lives", [
    ("step-1-InvalidActionError", "invalid_action", True), ("step-1-IKError", "inverse_kinematics", True),
    ("step-1-ConfigurationPathError", "path", True), ("step-1-RuntimeError", "simulator_error", False),
    ("step-1-hang", "step_timeout", False), ("step-1-crash", "simulator_died", False),
])
def test_a_failed_step_costs_one_episode(env: RlbenchEnv, home: Path, name: str, failure: str, lives: bool) -> None:
    env.reset(seed=2)
    fault(home, name)
    seen = env.step(STILL)[0]
    pid = env.simulator.process.pid
    observation, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated, info["failure"]) == (0.0, False, True, failure)
    assert info["failure_detail"] and np.array_equal(observation["image"], seen["image"])
    assert env.simulator.alive is lives and gone(pid) is not lives
    with pytest.raises(RlbenchError, match="call reset"):
        env.step(STILL)
    env.reset(seed=3)
    assert not env.step(STILL)[3] and (env.simulator.process.pid == pid) is lives


@pytest.mark.parametrize("how", ["hang", "crash", "RuntimeError"])
def test_a_failed_reset_is_tried_once_more(env: RlbenchEnv, home: Path, how: str) -> None:
    expected = env.reset(seed=4)[0]["image"]
    env.config = SimulatorConfig(reset_seconds=6.0, relaunch_every=1)
    fault(home, f"reset-0-{how}")
    assert np.array_equal(env.reset(seed=4)[0]["image"], expected)
    assert not list((home / "faults").iterdir())


def test_lost_resets_are_said_and_a_broken_simulator_stops_the_run(env: RlbenchEnv, home: Path) -> None:
    env.config = SimulatorConfig(relaunch_every=1)
    for count in (1, 2, 3):
        fault(home, "reset-0-crash")
        patient, env._launch = env._launch, lambda: relaunched(env, home)  # type: ignore[method-assign]
        try:
            with pytest.raises(EpisodeLost if count < 3 else RlbenchError) as caught:
                env.reset(seed=count)
        finally:
            env._launch = patient  # type: ignore[method-assign]
        assert "SIGSEGV" in str(caught.value)
        assert count == 3 or caught.value.failure == "simulator_died"
    assert "3 episodes in a row" in str(caught.value)
    for left in (home / "faults").iterdir():
        left.unlink()
    env.reset(seed=1)
    assert env.lost == 0


def test_a_launch_that_fails_once_is_tried_again(env: RlbenchEnv, home: Path) -> None:
    fault(home, "launch-0-crash")
    other = RlbenchEnv(env.task)
    assert other.reset(seed=4)[0]["image"].shape == (128, 128, 3) and not list((home / "faults").iterdir())
    other.close()


@pytest.mark.parametrize("kind", [RequestFailed, EpisodeLost])
def test_failures_cross_between_processes(kind: type[RequestFailed | EpisodeLost]) -> None:
    again = pickle.loads(pickle.dumps(kind("open_timeout", "open took longer than 3 s")))
    assert type(again) is kind and (again.failure, str(again)) == ("open_timeout", "open took longer than 3 s")


def relaunched(env: RlbenchEnv, home: Path) -> Simulator:
    fault(home, "reset-0-crash")
    return RlbenchEnv._launch(env)


def test_a_scene_that_cannot_be_placed_is_lost_without_a_restart(env: RlbenchEnv, home: Path) -> None:
    env.config = SimulatorConfig(relaunch_every=1)
    fault(home, "reset-0-TaskEnvironmentError")
    with pytest.raises(EpisodeLost, match="too crowded") as caught:
        env.reset(seed=6)
    assert caught.value.failure == "placement" and env.simulator.alive


def test_wrong_settings(env: RlbenchEnv) -> None:
    with pytest.raises(RlbenchError, match="reset option 'appearance_seed'"):
        env.reset(seed=1, options={"appearance_seed": 3})
    with pytest.raises(RlbenchError, match="variation 3"):
        env.reset(seed=1, options={"variation": 3})
    with pytest.raises(RlbenchError, match="at least 0"):
        variation_of(-1, 3)
    for wrong in ({"renderer": "vulkan"}, {"camera": "back"}, {"step_seconds": 0.0}, {"relaunch_every": 0}):
        with pytest.raises(RlbenchError):
            SimulatorConfig(**wrong)  # type: ignore[arg-type]
    for wrong in ({"max_steps": 0}, {"image_size": 0}):
        with pytest.raises(RlbenchError):
            RlbenchEnv(TASK, **wrong)  # type: ignore[arg-type]


def test_displacements_move_the_tip_by_what_they_say(home: Path) -> None:
    env = RlbenchEnv(TASK, "end_effector_delta", 32, config=QUICK)
    _, info = env.reset(seed=0)
    start = info["end_effector_position"]
    for _ in range(15):
        _, _, _, _, info = env.step([0.0, 0.008, -0.008, 0, 0, 0.02, 1])
    assert np.allclose(info["end_effector_position"] - start, [0, 0.12, -0.12], atol=0.012)
    env.simulator.ask = turned_round(env.simulator.ask)  # type: ignore[method-assign]
    with pytest.raises(RlbenchError, match="drive this arm by joint_velocity"):
        for _ in range(3):
            env.step([0.0, 0.02, 0, 0, 0, 0.1, 1])
    assert not env.simulator.alive
    env.close()


def turned_round(ask: Any) -> Any:
    def asked(do: str, *arguments: Any, **named: Any) -> Any:
        reply = ask(do, *arguments, **named)
        reply["observation"]["joint_frames"][:, 3:] = [0, 1, 0, 0]
        return reply

    return asked
