"""The figures on the pages are those of the rows that lie in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest

from llarva.evaluation.controls import mean_results, task_results
from llarva.evaluation.rows import Row
from llarva.evaluation.scenes import TEST_SEEDS
from llarva.evaluation.statistics import Interval
from llarva.suites import RLBENCH_12, RLBENCH_18

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "nbs" / "runs" / "benchmark"
PAGE = (ROOT / "docs" / "pages" / "pretraining.md").read_text(encoding="utf-8")
STAGES = ["evaluation-first", "evaluation-takeovers", "evaluation-likeliest", "evaluation"]
SETTINGS = ["wrong_instruction", "other_scene_image", "blank_image", "colours_swapped", "appearance", "joint_velocity"]
COLOURS = 1 + SETTINGS.index("colours_swapped")
SUITES = {"mean over rlbench-12": "mean of the 12", "mean over rlbench-18": "mean of the 18"}


def rows_of(name: str) -> list[Row]:
    return list(datasets.Dataset.from_parquet(str(ROWS / f"{name}.parquet")))


def cells(heading: str) -> dict[str, list[str]]:
    """The first table under a heading of the page, by the first cell of its lines, without any emphasis."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].replace("**", "")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines[2:]}


def percent(interval: Interval) -> str:
    return f"{round(100 * interval.low)}–{round(100 * interval.high)} %"


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_the_table_of_the_shipped_policy_and_of_those_before_it(stage: int) -> None:
    rows, shown = rows_of(STAGES[stage]), cells("What it reaches")
    results = {"none": rows}
    tasks = {one.task: one for one in task_results(results)}
    means = {SUITES[one.task]: one for one in mean_results(results) if one.task in SUITES}
    assert list(shown) == [*RLBENCH_18, *means] and set(tasks) == set(RLBENCH_18)
    for name, line in shown.items():
        if name in tasks:
            assert line[stage] == f"{tasks[name].successes} of {tasks[name].episodes}", name
        else:
            assert line[stage] == f"{round(100 * means[name].success.estimate)} %", name
        if stage == len(STAGES) - 1:
            assert line[-1] == percent((tasks | means)[name].success), name


def test_the_table_of_controls() -> None:
    others = rows_of("evaluation-controls")
    first_ten = [row for row in rows_of("evaluation") if row["seed"] < TEST_SEEDS[10]]
    columns = [first_ten, *([row for row in others if row["setting"] == name] for name in SETTINGS)]
    shown = cells("Does it look, and does it read?")
    assert list(shown) == [*RLBENCH_18, *SUITES.values()]
    for place, rows in enumerate(columns):
        successes = {one.task: one.successes for one in task_results({"none": rows})}
        assert {one.episodes for one in task_results({"none": rows})} == {10}
        assert [shown[task][place] for task in RLBENCH_18] == [str(successes.get(task, "–")) for task in RLBENCH_18]
        for tasks, name in zip((RLBENCH_12, RLBENCH_18), SUITES.values(), strict=True):
            known = [successes[task] / 10 for task in tasks if task in successes]
            partly = place == COLOURS and tasks == RLBENCH_12  # colours can be swapped in some of them only
            assert shown[name][place] == ("–" if partly else f"{round(100 * sum(known) / len(known))} %"), (name, place)


def test_what_the_readme_says_that_the_shipped_policy_reaches() -> None:
    means = {one.task: one.success.estimate for one in mean_results({"none": rows_of("evaluation")})}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"solves (\d+) % of unseen scenes of the 12 .*? and (\d+) % of all 18", text)
    assert found is not None
    assert [int(one) for one in found.groups()] == [round(100 * means[name]) for name in SUITES]
