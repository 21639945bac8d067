"""Evaluations in RLBench, on a stand-in: rows as on the tabletop, and what a hung simulator costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rlbench_installation import installed
from test_evaluation import FORMAT, facts, make_checkpoint

from llarva.evaluation import rollouts
from llarva.evaluation.rollouts import evaluate
from llarva.evaluation.rows import EvaluationError
from llarva.evaluation.scenes import EvaluationConfig, scenes_of
from llarva.instructions.numbers import BinNumbers, Range
from llarva.rlbench.demos import live_demo
from llarva.rlbench.env import RlbenchEnv, variation_of
from llarva.rlbench.simulator import RlbenchError, SimulatorConfig
from llarva.sources.rlbench_writer import write_episode

TASK, SEED = "open_drawer", 1_000_000


def start(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    ranges = {"trace": Range((0.0,) * 2, (64.0,) * 2), "state:joint_velocity": Range((-3.0,) * 8, (3.0,) * 8),
              "action:joint_velocity": Range((-0.5,) * 8, (0.5,) * 8)}  # fmt: skip
    checkpoint = replace(make_checkpoint(), format=replace(FORMAT, numbers=BinNumbers(64, ranges)))
    config = EvaluationConfig("none", str(folder), (TASK,), episodes=3, batch=1, videos=3, max_steps=5,
                              control_mode="joint_velocity", simulator="rlbench")  # fmt: skip
    evaluate(replace(config, **changes), checkpoint=checkpoint, progress=False)
    return facts(folder)


def test_a_hang_costs_one_episode_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llarva.rlbench.env.SimulatorConfig", lambda: SimulatorConfig(step_seconds=3.0))
    with installed(tmp_path / "home", "llarva") as faults:
        whole = start(tmp_path / "whole")
        assert [row["env"] for row in whole] == [f"llarva-rlbench/{TASK}-v0"] * 3
        assert [row["seed"] for row in whole] == [SEED, SEED + 1, SEED + 2]
        assert [row["variation"] for row in whole] == [variation_of(SEED + i, 3) for i in range(3)]
        assert {row["failure"] for row in whole} == {"step_limit"} and all(row["steps"] == 5 for row in whole)
        (faults / "step-2-hang").touch()
        (faults / "reset-2-TaskEnvironmentError").touch()  # counted in each simulator; the first one is killed
        (faults / "reset-1-TaskEnvironmentError").touch()
        hurt = start(tmp_path / "hurt")
    assert [row["failure"] for row in hurt] == ["step_timeout", "step_limit", "placement"]
    assert [row["steps"] for row in hurt] == [3, 5, 0]
    assert hurt[1] == whole[1] and [row["variation"] for row in hurt] == [row["variation"] for row in whole]
    assert len(list((tmp_path / "hurt" / "films").iterdir())) == 2
    assert "step_timeout" in (tmp_path / "hurt" / "summary.txt").read_text()


def test_stored_scenes_are_put_back_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    reset = RlbenchEnv.reset

    def noted(self: RlbenchEnv, *, seed: int | None = None, options: Any = None) -> Any:
        asked.append(options)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(RlbenchEnv, "reset", noted)
    with installed(tmp_path / "home"):
        env = RlbenchEnv(TASK, image_size=64)
        kept = [write_episode(live_demo(env, seed, variation=2), tmp_path / "demos") for seed in (1, 2)]
        env.close()
        rows = start(tmp_path / "out", demos=str(tmp_path / "demos"), episodes=2, variations=(2,))
        assert asked == [{"demo": str(folder)} for folder in kept] and [row["variation"] for row in rows] == [2, 2]
        config = EvaluationConfig("c", "o", (TASK,), episodes=3, simulator="rlbench", demos=str(tmp_path / "demos"))
        with pytest.raises(EvaluationError, match="holds 2 demonstrations of open_drawer that fit, not 3"):
            scenes_of(config)


def test_a_lacking_task_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "playing", None)
    with installed(tmp_path / "home", "stock"), pytest.raises(RlbenchError, match="'sweep_to_dustpan'"):
        start(tmp_path / "out", tasks=("rlbench-18",))
    assert not (tmp_path / "out" / "rows").exists()


@pytest.mark.parametrize("changes,says", [
    ({"simulator": "rlbenhc"}, "Did you mean 'rlbench'"), ({"demos": "d"}, "demos works on rlbench only"),
    ({"simulator": "rlbench", "appearance_seed": 1}, "appearance_seed works on tabletop only"),
    ({"simulator": "rlbench", "control": "colours_swapped", "tasks": ("close_jar",)}, "on the tabletop only"),
])
def test_wrong_settings(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        EvaluationConfig("c", "o", **changes)

