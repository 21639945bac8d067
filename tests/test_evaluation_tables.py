"""Several tasks and controls in one table: exact intervals, means over suites, paired losses, one figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_world import Patches, make_checkpoint
from scipy import stats

from llarva.errors import LlarvaError
from llarva.evaluation import rollouts
from llarva.evaluation.controls import (
    control_folder,
    evaluate_controls,
    losses,
    mean_results,
    side_by_side,
    task_results,
)
from llarva.evaluation.rows import EvaluationError
from llarva.evaluation.scenes import CONTROLS, TEST_SEEDS, VALIDATION_SEEDS, EvaluationConfig, split_of
from llarva.plots.evaluation import CONTROL_COLOURS, success_figure
from llarva.suites import RLBENCH_12, RLBENCH_18, RLBENCH_COLOURED
from llarva.tabletop.demos import EVALUATION_SEEDS


def rows_of(task: str, control: str, outcomes: Sequence[bool], obeyed: bool | None = True) -> list[dict[str, Any]]:
    return [{"task": task, "variation": 0, "seed": k, "success": good, "reached_asked": obeyed, "control": control}
            for k, good in enumerate(outcomes)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=5))
def test_every_task_has_its_exact_interval_and_the_mean_weighs_tasks_alike(outcomes: list[list[bool]]) -> None:
    results = {"none": [row for k, some in enumerate(outcomes) for row in rows_of(f"task {k}", "none", some)]}
    for one, some in zip(task_results(results), outcomes, strict=True):
        low, high = stats.binomtest(sum(some), len(some)).proportion_ci(method="exact")
        assert np.allclose((one.success.low, one.success.high), (low, high)) and one.successes == sum(some)
    means = mean_results(results)
    assert len(means) == (len(outcomes) > 1)
    for mean in means:
        assert mean.success.estimate == pytest.approx(np.mean([np.mean(some) for some in outcomes]))
    json.dumps([one.facts() for one in (*task_results(results), *means)])


def suite_rows(tasks: Sequence[str], control: str, good: int) -> list[dict[str, Any]]:
    return [row for task in tasks for row in rows_of(task, control, [True] * good + [False] * (4 - good))]


def test_means_are_over_the_suites_that_a_control_covers() -> None:
    results = {"none": suite_rows(RLBENCH_18, "none", 3)}
    results["colours_swapped"] = suite_rows(RLBENCH_COLOURED, "colours_swapped", 0)
    means = [(one.task, one.control, one.success.estimate) for one in mean_results(results)]
    suites = ("mean over rlbench-12", "mean over rlbench-18", "mean over rlbench-coloured")
    assert means == [*((name, "none", 0.75) for name in suites), (suites[-1], "colours_swapped", 0.0)]
    lines = {line["task"]: line for line in side_by_side(results)}
    assert len(lines) == 18 + 3 and list(lines)[:18] == list(RLBENCH_18)
    assert lines["open_drawer"]["colours_swapped"] == lines[suites[0]]["colours_swapped"] == "–"
    assert lines["push_buttons"] == {"task": "push_buttons", "none": "3 of 4 (19–99 %)",
                                     "colours_swapped": "0 of 4 (0–60 %), 4 obeyed"}
    assert "mean over tasks" not in lines and "mean over rlbench-12" == mean_results(
        {"none": suite_rows(RLBENCH_12, "none", 1)})[0].task
    test = losses(results)["colours_swapped"]
    assert (test.pairs, test.only_a, test.only_b) == (4 * len(RLBENCH_COLOURED), 3 * len(RLBENCH_COLOURED), 0)
    assert losses({"blank_image": results["none"]}) == {}, "without the truth there is nothing to lose"


def test_unknown_obedience_is_not_counted() -> None:
    results = {"wrong_instruction": rows_of("a", "wrong_instruction", [True, False], None)}
    assert task_results(results)[0].obeyed is None and "obeyed" not in side_by_side(results)[0]["wrong_instruction"]


def start(folder: Path, controls: Sequence[str], **changes: Any) -> dict[str, list[dict[str, Any]]]:
    config = EvaluationConfig("none", str(folder), tasks=("one", "two"), episodes=2, batch=2, videos=1, **changes)
    return evaluate_controls(config, controls, checkpoint=make_checkpoint(), progress=False,
                             make_env=lambda task, config, size: Patches())


def test_controls_lie_apart_and_none_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start(tmp_path, ["none"])
    both = start(tmp_path, ["none", *CONTROLS[1:]])
    assert list(both) == list(CONTROLS) and both["none"] == first["none"]
    for control, rows in both.items():
        assert {row["control"] for row in rows} == {control}
        assert (control_folder(tmp_path, control) / "rows").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"rollouts", "controls"}
    monkeypatch.setattr(rollouts, "playing", None)
    assert start(tmp_path, ["none", *CONTROLS[1:]]) == both


def test_wrong_controls_are_refused_before_anything_runs(tmp_path: Path) -> None:
    config = EvaluationConfig("nowhere", str(tmp_path / "out"), tasks=("open_drawer",))
    for controls, says in (
        ([], "at least one"), (["none", "none"], "once"), (["none", "mirror"], "'mirror'.*blank_image"),
        (["none", "colours_swapped"], "open_drawer.*rlbench-coloured"),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=says):
            evaluate_controls(config, controls)
    assert not (tmp_path / "out").exists()


def test_the_figure_shows_every_result_with_its_interval() -> None:
    results = {"none": suite_rows(RLBENCH_12, "none", 3), "blank_image": suite_rows(RLBENCH_12, "blank_image", 0)}
    tasks, means = task_results(results), mean_results(results)
    figure = success_figure(tasks, means, "title")
    assert [line.name for line in figure.data] == ["as it is", "blank image"]
    assert list(figure.layout.yaxis.ticktext) == [*RLBENCH_12, "mean over rlbench-12"]
    for line, control in zip(figure.data, results, strict=True):
        some = [one for one in (*tasks, *means) if one.control == control]
        assert np.allclose(np.add(line.x, line.error_x.array), [100 * one.success.high for one in some])
        assert np.allclose(np.subtract(line.x, line.error_x.arrayminus), [100 * one.success.low for one in some])
    places = np.concatenate([line.y for line in figure.data])
    assert len(np.unique(places.round(6))) == len(places), "nothing covers anything"
    assert set(CONTROL_COLOURS) == set(CONTROLS)
    with pytest.raises(LlarvaError, match="no results"):
        success_figure([])


# ---- which scenes


def test_scenes_to_report_and_to_choose_on_are_apart_and_never_recorded() -> None:
    assert not set(TEST_SEEDS[:: 100_000]) & set(VALIDATION_SEEDS[:: 1000])
    assert (TEST_SEEDS.start, VALIDATION_SEEDS.stop) == (EVALUATION_SEEDS.start, EVALUATION_SEEDS.stop)
    assert TEST_SEEDS.stop == VALIDATION_SEEDS.start and EvaluationConfig("c", "o").seed == TEST_SEEDS.start


@pytest.mark.parametrize("seed,episodes,says", [
    (1_000_000, 25, "test scenes 1000000–1000024"), (1_900_000, 2, "validation scenes 1900000–1900001"),
    (1_899_999, 2, "other scenes 1899999–1900000"), (1_999_999, 2, "other scenes 1999999–2000000"),
    (0, 1, "other scenes 0–0"),
])
def test_a_figure_says_which_scenes_it_is_on(seed: int, episodes: int, says: str) -> None:
    assert split_of(EvaluationConfig("c", "o", seed=seed, episodes=episodes)) == says
