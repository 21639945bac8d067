"""What the README and the pages tell to type must be understood, and be what it is said to be."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from llarva import runs
from llarva.models.pretrained import pretrained
from llarva.quickstart import QuickstartConfig
from llarva.tabletop.tasks.registry import get_task

ROOT = Path(__file__).parents[1]
BASE = "llarva/models/weights/tabletop"


def commands(path: Path) -> list[list[str]]:
    """The arguments of every run that a page tells to type."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ").replace("$base", BASE)
    lines = re.findall(r"^    .*-m llarva\.runs (\S.*)$", text, re.M)
    return [shlex.split(line, comments=True) for line in lines]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
COMMANDS = [(page.name, arguments) for page in PAGES for arguments in commands(page)]


def values_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All parameters of the notebook as the command sets them; the command is refused as the real one would be."""
    found: dict[str, Any] = {}

    def check(name: str, out_dir: None, values: dict[str, Any]) -> Path:
        declared = runs.notebook_parameters(runs.find_notebook(name))
        found.update({one.name: one.default for one in declared} | runs.check_parameters(declared, values))
        return Path()

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, "run_notebook", check)
    monkeypatch.setattr(runs, "describe_run", str)
    assert runs.main(arguments) == 0, arguments
    return found


def test_pages_tell_commands() -> None:
    assert len([arguments for page, arguments in COMMANDS if page == "README.md"]) > 12
    assert {"pretraining.md", "detector.md", "quickstart.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "arguments"), COMMANDS, ids=[f"{p}-{a[0]}" for p, a in COMMANDS])
def test_a_documented_command_is_understood(page: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of(arguments, monkeypatch)
    assert "--parameters" in arguments or values["out_dir"]


def test_the_steps_in_the_readme_are_those_of_make_run(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {}
    for _, arguments in COMMANDS[::-1]:  # the first of a name is the one that counts
        if {"runs/demos", "runs/label", "runs/train", "runs/evaluate"} & set(arguments):
            steps[arguments[0]] = values_of(arguments, monkeypatch)
    quick = QuickstartConfig(base=str(pretrained()), out_dir="")
    task = get_task(quick.task)
    held_out = list(task.variations[task.variation_count :])
    demos, train, evaluate = (steps[name] for name in ("demos", "train", "evaluate"))
    assert steps["label"]["base"] == train["base"] == BASE and (ROOT / BASE).samefile(quick.base)
    assert demos["variations"] == evaluate["variations"] == held_out and demos["task"] == quick.task
    assert (demos["episodes"], demos["frames_per_episode"]) == (quick.demonstrations, quick.frames_per_episode)
    assert (train["steps"], train["batch_size"], train["learning_rate"]) == (
        quick.steps, quick.batch_size, quick.learning_rate
    )  # fmt: skip
    assert (train["lora_rank"], train["lora_alpha"]) == (quick.lora_rank, 2 * quick.lora_rank)
    assert train["warmup_steps"] == min(100, quick.steps // 10)
    assert (evaluate["episodes"], evaluate["seed"]) == (quick.episodes, quick.evaluation_seed)
    assert {steps[name]["seed"] for name in ("demos", "label", "train")} == {quick.seed}
