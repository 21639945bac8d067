"""Whole evaluations: complete, repeatable, continued after a kill, refused where senseless."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patch_world import FORMAT, MODE, Patches, make_checkpoint

from llarva.evaluation import rollouts
from llarva.evaluation.rollouts import evaluate
from llarva.evaluation.rows import TIMINGS, EvaluationError, format_summary, read_rows
from llarva.evaluation.scenes import EvaluationConfig, check_seeds, scenes_of
from llarva.instructions.numbers import BinNumbers, Range


def start(folder: Path, **changes: Any) -> Path:
    config = EvaluationConfig("none", str(folder), tasks=("one", "two"), episodes=5, batch=2, videos=1)
    return evaluate(replace(config, **changes), checkpoint=make_checkpoint(), progress=False,
                    make_env=lambda task, config, size: Patches())


def facts(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_rows(folder)]


def test_evaluation_is_complete_and_repeats_itself(tmp_path: Path) -> None:
    folder = start(tmp_path / "a")
    rows = facts(folder)
    scenes = [(task, 1_000_000 + i) for task in ("one", "two") for i in range(5)]
    assert [(row["task"], row["seed"]) for row in rows] == scenes
    assert all(row["trace_error_px"] > 0 for row in rows)
    assert {path.name for path in (folder / "films").iterdir()} == {"one-1000000.gif", "two-1000000.gif"}
    assert {path.name for path in (folder / "strips").iterdir()} == {"one-1000000.png", "two-1000000.png"}
    answers, *summary = (folder / "summary.txt").read_text().strip().splitlines()
    assert answers == "answers the checkpoint's own, numbers by their medians"
    assert summary == format_summary(read_rows(folder)).splitlines()
    assert facts(start(tmp_path / "b")) == rows
    assert not list(tmp_path.rglob("*.partial"))


def test_batches_do_not_change_outcomes(tmp_path: Path) -> None:
    one, four = facts(start(tmp_path / "1", batch=1)), facts(start(tmp_path / "4", batch=4))
    assert [row["action_sha256"] for row in one] == [row["action_sha256"] for row in four]


def test_killed_evaluations_continue_to_the_same_rows(tmp_path: Path) -> None:
    # The environment ends its own process, so that nothing depends on how fast the machine is.
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); import test_evaluation as t\n"
        "step, folder = t.Patches.step, t.Path(sys.argv[1])\n"
        "def last(self, action):\n"
        "    if len(list((folder / 'rows').glob('*.parquet'))) == 2 and self.steps == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, action)\n"
        "t.Patches.step = last; t.start(folder)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(Path(__file__).parent)]
    ended = subprocess.run(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed" / "rows").glob("*.parquet"))) == 2, "killed in the third batch"
    assert facts(start(tmp_path / "killed")) == facts(start(tmp_path / "whole"))


def test_a_finished_evaluation_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start(tmp_path / "a")
    before = facts(folder)
    monkeypatch.setattr(rollouts, "playing", None)
    monkeypatch.setattr(rollouts, "self_test", None)
    start(tmp_path / "a")
    assert facts(folder) == before


def test_a_folder_belongs_to_one_evaluation(tmp_path: Path) -> None:
    start(tmp_path / "a", episodes=1)
    with pytest.raises(EvaluationError, match="differs in control"):
        start(tmp_path / "a", episodes=1, control="blank_image")
    config = EvaluationConfig("none", str(tmp_path / "a"), tasks=("one", "two"), episodes=1, batch=2, videos=1)
    with pytest.raises(EvaluationError, match="differs in fingerprint"):
        evaluate(config, checkpoint=make_checkpoint(1), make_env=lambda *_: Patches(), progress=False)


def test_environments_are_closed_even_when_a_rollout_fails(tmp_path: Path) -> None:
    closed = []

    class Broken(Patches):
        def step(self, action: Any) -> Any:
            raise RuntimeError("out of order")

        def close(self) -> None:
            closed.append(self)

    config = EvaluationConfig("none", str(tmp_path / "x"), tasks=("one",), episodes=2, batch=2)
    with pytest.raises(RuntimeError, match="out of order"):
        evaluate(config, checkpoint=make_checkpoint(), make_env=lambda *_: Broken(), progress=False)
    assert len(closed) == 2


@pytest.mark.parametrize("changes,says", [
    ({"control": "blank"}, "'blank'.*blank_image"), ({"episodes": 0}, "episodes must be at least 1"),
    ({"batch": 0}, "batch"), ({"tasks": ()}, "needs a task"), ({"variations": ()}, "variations"),
    ({"seed": -1}, "seed"),
])
def test_wrong_settings(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        EvaluationConfig("c", "o", **changes)


def test_seeds_that_may_have_been_demonstrated_are_refused() -> None:
    for seed in (1_000_000, 1_899_980, 1_900_000):
        check_seeds(EvaluationConfig("c", "o", seed=seed))
    for seed in (0, 999_999, 1_899_990, 1_999_990):
        with pytest.raises(EvaluationError, match=f"Scenes {seed} to .*1900000 to 1999999"):
            check_seeds(EvaluationConfig("c", "o", seed=seed))
    check_seeds(EvaluationConfig("c", "o", seed=0, simulator="rlbench"))


def test_variations_are_cycled_and_the_first_scenes_filmed() -> None:
    config = EvaluationConfig("c", "o", episodes=4, batch=3, variations=(5, 7), videos=1)
    scenes = [scene for batch in scenes_of(config) for scene in batch]
    assert [scene.variation for scene in scenes] == [5, 7, 5, 7]
    assert [scene.film for scene in scenes] == [True, False, False, False]


def test_the_tabletop_is_evaluated_in_both_modes(tmp_path: Path) -> None:
    ranges = {"trace": Range((0.0,) * 2, (64.0,) * 2)}
    for mode, state, action in ((MODE, 7, 7), ("joint_velocity", 8, 8)):
        ranges |= {f"state:{mode}": Range((-3.0,) * state, (3.0,) * state),
                   f"action:{mode}": Range((-0.02,) * action, (0.02,) * action)}
    checkpoint = replace(make_checkpoint(), format=replace(FORMAT, numbers=BinNumbers(64, ranges)))
    config = EvaluationConfig("none", "", episodes=2, batch=2, videos=1, max_steps=4, variations=tuple(range(50)))
    for mode, control in ((MODE, "wrong_instruction"), ("joint_velocity", "none")):
        mine = replace(config, out_dir=str(tmp_path / mode), control_mode=mode, control=control)
        rows = read_rows(evaluate(mine, checkpoint=checkpoint, progress=False))
        assert [row["failure"] for row in rows] == ["step_limit"] * 2 and [row["steps"] for row in rows] == [4, 4]
        assert [row["variation"] for row in rows] == [0, 1]
        assert all((row["asked_variation"] != row["variation"]) == (control != "none") for row in rows)
        assert all(row["nearest_object"].endswith("button") for row in rows)
    with pytest.raises(EvaluationError, match="'push_button'.*push_buttons"):
        evaluate(replace(config, out_dir=str(tmp_path / "x"), tasks=("push_button",)), checkpoint=checkpoint,
                 progress=False)


def test_appearance_seed_gives_every_scene_its_own_look() -> None:
    config = EvaluationConfig("c", "o", tasks=("push_buttons", "open_drawer"), episodes=3, appearance_seed=7)
    looks = [scene.appearance_seed for batch in scenes_of(config) for scene in batch]
    assert len(set(looks)) == 3 and looks[:3] == looks[3:]  # of the seed, not of the task
    plain = scenes_of(replace(config, appearance_seed=None))
    assert all(scene.appearance_seed is None for batch in plain for scene in batch)


def test_a_suite_stands_for_its_tasks() -> None:
    config = EvaluationConfig("c", "o", tasks=("rlbench-12",), episodes=1)
    assert len(scenes_of(config)) == 12
