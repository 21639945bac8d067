"""Every run notebook through papermill with tiny parameters: one chain, as a person would type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detector_samples import save_cups_and_grippers

from llarva.errors import LlarvaError
from llarva.instructions.dataset import RowStore
from llarva.instructions.numbers import DecimalNumbers
from llarva.metrics import RunError, read_metrics
from llarva.models.checkpoints import load_checkpoint
from llarva.quickstart import QuickstartConfig
from llarva.runs import run_notebook
from llarva.tabletop.tasks.registry import TASKS
from llarva.traces.audit_table import AuditTable
from llarva.traces.detection_model import detector_mark, load_detector

SMALL = {"steps": 2, "batch_size": 4, "width": 32, "vision_layers": 1, "text_layers": 1}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations, their rows, and a model that has seen eight of them."""
    out = tmp_path_factory.mktemp("runs")
    run_notebook("demos", out / "demos", {"episodes": 2, "frames_per_episode": 3, "workers": 1})
    run_notebook("label", out / "label", {"episodes": [str(out / "demos" / "episodes")]})
    run_notebook("audit", out / "audit", {"episodes": str(out / "demos" / "episodes"), "reject_above": 0.99})
    run_notebook("train", out / "train", {**SMALL, "rows": [str(out / "label" / "rows")]})
    baseline = {"kind": "act", "size": {"width": 32, "mlp_width": 48}, "steps": 2, "batch_size": 4}
    run_notebook("train_baseline", out / "train_baseline", {**baseline, "rows": [str(out / "label" / "rows")]})
    return out


@pytest.mark.parametrize("stage", ["demos", "label", "audit", "train", "train_baseline"])
def test_stage_is_recorded(chain: Path, stage: str) -> None:
    saved = read_metrics(chain / stage)
    assert saved["finished"] and saved["run"] == stage and saved["metrics"]
    assert saved["provenance"]["packages"]["mujoco"] and saved["wall_seconds"] > 0
    assert (chain / stage / f"{stage}.ipynb").exists()


def test_demos_of_several_tasks(tmp_path: Path) -> None:
    wanted = {"tasks": ["turn_tap", "open_drawer"], "episodes": 1, "episodes_of": {"turn_tap": 2}, "workers": 1}
    run_notebook("demos", tmp_path, {**wanted, "frames_per_episode": 1, "frames_of": {"open_drawer": 3}})
    metrics = read_metrics(tmp_path)["metrics"]
    assert [(row["task"], row["episodes"], row["frames"]) for row in metrics["table"]] == [
        ("turn_tap", 2, 2),
        ("open_drawer", 1, 3),
    ]
    assert metrics["stores"] == [str(tmp_path / name / "episodes") for name in ("turn_tap", "open_drawer")]
    assert metrics["episodes_per_second"] > 0 and metrics["failed_attempts"] >= 0
    with pytest.raises(RunError, match="frames_of"):
        run_notebook("demos", tmp_path, {**wanted, "frames_per_episode": 1})


def test_numbers_are_written_out_for_any_robot(chain: Path, tmp_path: Path) -> None:
    store = str(chain / "demos" / "episodes")
    run_notebook("label", tmp_path / "label", {"episodes": [store], "numbers": "decimal"})
    format = RowStore(tmp_path / "label" / "rows").format
    assert format.numbers == DecimalNumbers() and format.for_robot("widowx").robot == "widowx"
    run_notebook("train", tmp_path / "train", {**SMALL, "rows": [str(tmp_path / "label" / "rows")]})
    assert load_checkpoint(tmp_path / "train" / "checkpoint").format == format
    with pytest.raises(RunError, match="'hex'. Valid choices: bins, decimal"):
        run_notebook("label", tmp_path / "wrong", {"episodes": [store], "numbers": "hex"})
    with pytest.raises(RunError, match="numbers are those of the base"):
        base = str(chain / "train" / "checkpoint")
        run_notebook("label", tmp_path / "wrong", {"episodes": [store], "numbers": "decimal", "base": base})


def test_detectors_are_audited_and_label(chain: Path, tmp_path: Path) -> None:
    """A detector of several classes: its traces are audited beside the projection, shown, and made rows of."""
    store, base = str(chain / "demos" / "episodes"), save_cups_and_grippers(tmp_path / "base")
    chosen = {"detector": str(base), "detector_label": "gripper"}
    run_notebook("audit", tmp_path / "audit", {"episodes": store, **chosen})
    audit = AuditTable(tmp_path / "audit" / "audit")
    traced_by = read_metrics(tmp_path / "audit")["parameters"]["traces"]
    assert audit.info["traces"] == traced_by == f"detector {base} ({detector_mark(base)}), gripper"
    assert {row["trace_source"] for row in audit.episodes()} == {"detection"}
    assert audit.counts()["coverage"] == (2, 2), "random weights find no hand in most pictures"
    run_notebook("label", tmp_path / "label", {"episodes": [store], **chosen})
    assert read_metrics(tmp_path / "label")["metrics"]["untraced"] > 0
    with pytest.raises(RunError, match="cup, gripper"):
        run_notebook("label", tmp_path / "none", {"episodes": [store], "detector": str(base)})


def test_detector_looks_at_its_stores_and_its_base_first(chain: Path, tmp_path: Path) -> None:
    for wrong, said in (({"episodes": ["nowhere"]}, "nowhere"), ({"base": "nobase"}, "nobase")):
        with pytest.raises(RunError, match=said):
            run_notebook("detector", tmp_path, {"pictures_dir": str(tmp_path / "pictures"), **wrong})
        assert not (tmp_path / "pictures").exists(), "nothing was drawn before"


def test_a_class_of_several_is_trained_and_judged(tmp_path: Path) -> None:
    base = save_cups_and_grippers(tmp_path / "base")
    few = {"pictures_per_robot": 1, "judged_per_robot": 1, "judged_unseen": 2, "image_size": 64}
    few |= {"steps": 1, "batch_size": 2, "pictures_dir": str(tmp_path / "pictures")}
    few |= {"base": str(base), "base_label": "gripper"}
    run_notebook("detector", tmp_path / "out", few)
    assert read_metrics(tmp_path / "out")["metrics"]["unseen_robot"]["pictures"] == 2
    assert load_detector(tmp_path / "out" / "checkpoint").labels == load_detector(base, "gripper").labels


def test_train_continues_only_its_own_run(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_notebook("train", chain / "train", {**SMALL, "rows": [str(chain / "label" / "rows")]})
    assert "nothing to do" in capsys.readouterr().out


def test_evaluate(chain: Path) -> None:
    checkpoint = str(chain / "train" / "checkpoint")
    few = {"checkpoint": checkpoint, "episodes": 2, "batch": 2, "videos": 1, "film_format": "mp4", "max_steps": 6}
    few |= {"tasks": ["push_buttons", "open_drawer"], "controls": ["none", "colours_swapped"]}
    run_notebook("evaluate", chain / "evaluate", few)
    saved = read_metrics(chain / "evaluate")["metrics"]
    assert saved["scenes"] == "test scenes 1000000–1000001"
    assert "4 training rows" in saved["self_test"] and "in 2 of 2 episodes" in saved["repeated"]
    assert saved["published"] == "4 of 4 scenes are on the published list"
    table = [(row["task"], row["control"]) for row in saved["table"]]
    assert table == [("push_buttons", "none"), ("open_drawer", "none"), ("push_buttons", "colours_swapped")]
    assert [row["task"] for row in saved["means"]] == ["mean over tasks"]
    assert list((chain / "evaluate").glob("rollouts/strips/*.png"))
    assert list((chain / "evaluate").glob("rollouts/films/*.mp4"))


def test_evaluate_with_other_weights(chain: Path) -> None:
    few = {"checkpoint": str(chain / "train" / "checkpoint"), "episodes": 1, "max_steps": 4, "videos": 0}
    other = {"runner": "library", "weights": "int8", "number_choice": "likeliest"}
    run_notebook("evaluate", chain / "int8", few | other)
    assert "int8" in read_metrics(chain / "int8")["metrics"]["answers"]
    chosen = json.loads((chain / "int8" / "rollouts" / "evaluation.json").read_text())
    assert (chosen["runner"], chosen["weights"]) == ("library", "int8") and "number_choice" not in chosen
    usual = json.loads((chain / "evaluate" / "rollouts" / "evaluation.json").read_text())
    assert usual["number_choice"] == "median"
    with pytest.raises(RunError, match="Unknown weights 'int4'"):
        run_notebook("evaluate", chain / "int4", {**few, "weights": "int4"})


def test_choose_and_compare(chain: Path) -> None:
    mine, tiny = str(chain / "train" / "checkpoint"), {"episodes": 2, "batch": 2, "max_steps": 4}
    run_notebook("choose", chain / "choose", {**tiny, "checkpoints": [mine]})
    saved = read_metrics(chain / "choose")["metrics"]
    assert saved["chosen"] == mine and saved["scenes"] == "validation scenes 1900000–1900001"
    # The folder of a choice is a checkpoint like any other.
    run_notebook("compare", chain / "compare", {**tiny, "a": str(chain / "choose"), "b": mine})
    assert read_metrics(chain / "compare")["metrics"]["verdict"].startswith("undecided after 2 of 2 scenes")


def test_a_quickstart_takes_what_is_held_out_or_all() -> None:
    chosen = {task: QuickstartConfig("base", "out", task=task).chosen_variations() for task in TASKS}
    assert chosen.pop("push_buttons") == (50, 51, 52, 53) and set(chosen.values()) == {None}
    with pytest.raises(LlarvaError, match="Unknown variation of open_drawer 50.*0, 1, 2"):
        QuickstartConfig("base", "out", task="open_drawer", variations=(50,))


def test_quickstart(chain: Path) -> None:
    small = {"demonstrations": 2, "frames_per_episode": 3, "steps": 2, "batch_size": 4, "episodes": 1, "workers": 1}
    small |= {"look_tasks": ["push_buttons", "turn_tap"], "look_episodes": 1}
    out = chain / "quickstart"
    run_notebook("quickstart", out, {**small, "base": str(chain / "train" / "checkpoint"), "max_steps": 6})
    metrics = read_metrics(out)["metrics"]
    table = metrics["table"]
    assert [row["task"] for row in metrics["look"]] == ["push_buttons", "turn_tap"]
    assert [row["policy"] for row in table][:3] == ["tuned", "before tuning", "untrained"]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report and report.count("data:image") >= 2
    # One page that needs nothing else, and nothing from elsewhere.
    assert "http://" not in report and "https://" not in report
