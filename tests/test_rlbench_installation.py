"""RLBench installations: demonstrations live and stored, what is missing, what is left behind (nothing)."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlbench_installation import installed

import llarva
import llarva.rlbench
from llarva.rlbench.demos import live_demo, live_demos
from llarva.rlbench.display import MISSING_DISPLAY, display_answers
from llarva.rlbench.env import RlbenchEnv
from llarva.rlbench.simulator import RlbenchError, SimulatorConfig
from llarva.rlbench.stored import read_start
from llarva.sources.opcodes import DEFAULT_LIMITS, SourceError
from llarva.sources.rlbench import find_episodes, read_demo, read_episode
from llarva.sources.rlbench_writer import Instance, dump_pickle, write_episode

TASK = "open_drawer"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rlbench")
    with installed(folder, "peract"):
        yield folder


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[RlbenchEnv]:
    env = RlbenchEnv(TASK, image_size=64, max_steps=30, config=SimulatorConfig())
    yield env
    env.close()


@pytest.fixture
def env(shared: RlbenchEnv, home: Path) -> Iterator[RlbenchEnv]:
    yield shared
    shared.config = SimulatorConfig()
    for fault in (home / "faults").iterdir():
        fault.unlink()


def fault(home: Path, name: str) -> None:
    (home / "faults" / name).touch()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pids: list[int], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(map(gone, pids)):
        time.sleep(0.05)
    return all(map(gone, pids))


# Demonstrations, live and stored

@pytest.mark.parametrize("fork,layout", [("stock", "stock"), ("llarva", "peract")])
def test_stored_demonstrations_are_put_back(tmp_path: Path, fork: str, layout: str) -> None:
    with installed(tmp_path / "home", fork):
        env = RlbenchEnv(TASK, image_size=64)
        demo = live_demo(env, 7, variation=1)
        stored = write_episode(demo, tmp_path / "demos", layout=layout)
        kept = find_episodes(tmp_path / "demos")[0]
        assert read_episode(kept).variation == 1
        # the generator's state from which the scene was drawn; our writer's own seeds are other ones
        state = np.random.RandomState(7).get_state(legacy=True)
        rewrite(stored / "low_dim_obs.pkl", state)
        first = env.reset(seed=7, options={"variation": 1})[0]["image"]
        observation, info = env.reset(seed=0, options={"demo": str(stored)})
        assert np.array_equal(observation["image"], first) and info["variation"] == 1
        with pytest.raises(RlbenchError, match="is of variation 1, not 2"):
            env.reset(seed=0, options={"demo": str(stored), "variation": 2})
        env.close()
    assert demo.success and demo.seed == 7 and len(demo.steps) > 20
    assert np.array_equal(read_start(stored).state[1], state[1])


def rewrite(path: Path, state: Any) -> None:
    demo, fields = read_demo(path, DEFAULT_LIMITS)
    observations = [Instance("rlbench.backend.observation", "Observation", dict(one)) for one in fields]
    kept = {**demo.fields, "_observations": observations, "random_seed": state}
    path.write_bytes(dump_pickle(Instance("rlbench.demo", "Demo", kept)))


def test_damaged_states_are_refused(tmp_path: Path, env: RlbenchEnv) -> None:
    folder = write_episode(live_demo(env, 3), tmp_path)
    words = np.zeros(624, np.uint32)
    short = np.zeros(3, np.uint32)
    for state in (None, ("PCG64", words, 1, 0, 0.0), ("MT19937", short, 1, 0, 0.0), ("MT19937", words, 625, 0, 0.0)):
        rewrite(folder / "low_dim_obs.pkl", state)
        with pytest.raises(SourceError, match="random_seed"):
            env.reset(seed=0, options={"demo": folder})
    with pytest.raises(SourceError, match="not the folder of a stored demonstration"):
        env.reset(seed=0, options={"demo": tmp_path})


def test_failed_demonstrations_are_noted(env: RlbenchEnv, home: Path) -> None:
    env.config = SimulatorConfig(relaunch_every=1)
    env.reset(seed=0)
    fault(home, "reset-1-RuntimeError")
    failed: dict[int, str] = {}
    assert [episode.seed for episode in live_demos(env, [1, 2], failed)] == [2]
    assert "V-REP" in failed[1]
    with pytest.raises(RlbenchError, match="call reset"):
        env.step(np.zeros(8))


# What is missing

def table(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    findings = llarva.rlbench.check()
    return {one.part: one.works for one in findings}, capsys.readouterr().out


def test_check_finds_everything(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    works, said = table(capsys)
    assert all(works.values()) and "18 of the 18" in said and "peract" in said and "image 128 x 128" in said


@pytest.mark.parametrize("missing", ["root", "library", "display", "pyrep", "rlbench", "tasks", "python", "launch"])
def test_check_names_what_is_missing(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed(tmp_path, "stock", ["close_jar"] if missing == "tasks" else [TASK]) as faults:
        site = tmp_path / "site"
        if missing == "root":
            del os.environ["COPPELIASIM_ROOT"]
        if missing == "library":
            (tmp_path / "CoppeliaSim" / "libcoppeliaSim.so.1").unlink()
        if missing == "display":
            (tmp_path / "bin" / "Xvfb").unlink()
            monkeypatch.setattr(shutil, "which", lambda name: None)
            os.environ["PATH"] = str(tmp_path / "bin")
        if missing in ("pyrep", "rlbench"):
            shutil.rmtree(site / missing)
        if missing == "python":
            os.environ["LLARVA_RLBENCH_PYTHON"] = str(tmp_path / "nowhere" / "python")
        if missing == "launch":
            (faults / "launch-0-crash").touch()
        works, said = table(capsys)
        part, word = {
            "root": ("CoppeliaSim", "COPPELIASIM_ROOT is not set"), "library": ("CoppeliaSim", "no libcoppeliaSim.so"),
            "display": ("display", "apt-get install xvfb"), "pyrep": ("pyrep", "No module named 'pyrep'"),
            "rlbench": ("rlbench", "No module named 'rlbench'"), "tasks": ("tasks", "lacking: open_drawer, meat_off"),
            "python": ("pyrep", "cannot be started"), "launch": ("trial", "SIGSEGV"),
        }[missing]  # fmt: skip
        assert works[part] is False and word in said, said
        if missing == "display":
            with pytest.raises(RlbenchError, match="apt-get install xvfb"):
                RlbenchEnv(TASK)
        elif missing not in ("tasks", "launch"):
            with pytest.raises(RlbenchError):
                RlbenchEnv(TASK)


def test_lacking_tasks_are_named(tmp_path: Path) -> None:
    with installed(tmp_path, "stock", [TASK, "stack_cups", "slide_block_to_color_target"]):
        with pytest.raises(RlbenchError, match="stock.*only in PerAct's and LLARVA's.*'slide_block_to_target'"):
            RlbenchEnv("slide_block_to_color_target")
        with pytest.raises(RlbenchError, match="'open_drawers'.*Did you mean 'open_drawer'.*lacks:.*close_jar"):
            RlbenchEnv("open_drawers")
        env = RlbenchEnv("slide_block_to_target", image_size=32)
        assert env.reset(seed=0)[0]["image"].shape == (32, 32, 3)
        env.close()


def test_an_x_server_that_answers_is_used(tmp_path: Path) -> None:
    path = "\0/tmp/.X11-unix/X87654"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        assert display_answers(":87654") and display_answers("unix:87654.0")
        with installed(tmp_path):
            os.environ["DISPLAY"] = ":87654"
            env = RlbenchEnv(TASK, image_size=32)
            env.close()
            assert not list((tmp_path / "xvfb").iterdir())
    assert not display_answers(":87654") and "apt-get" in MISSING_DISPLAY


# Nothing is left behind

def test_the_whole_group_goes(tmp_path: Path) -> None:
    with installed(tmp_path):
        env = RlbenchEnv(TASK, image_size=32)
        server = int(next((tmp_path / "xvfb").iterdir()).name)
        assert not gone(server)
        env.close()
        env.close()
        assert wait_until_gone([server, env.simulator.process.pid])


def test_a_killed_run_leaves_no_simulator(tmp_path: Path) -> None:
    script = (
        "import sys, time; from llarva.rlbench.env import RlbenchEnv\n"
        "env = RlbenchEnv('open_drawer', image_size=32); print(env.simulator.process.pid, flush=True); time.sleep(100)"
    )
    with installed(tmp_path):
        run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        pids = [int(run.stdout.readline()), int(next((tmp_path / "xvfb").iterdir()).name)]
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        run.stdout.close()
        assert wait_until_gone(pids)
