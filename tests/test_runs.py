"""Runs: parameters are refused before anything starts, results are recorded, a finished run is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llarva.metrics import RunError, describe_run, format_table, provenance, read_metrics, recorded, write_metrics
from llarva.runs import (
    RUN_NOTEBOOKS,
    Parameter,
    check_parameters,
    find_notebook,
    main,
    notebook_parameters,
    run_notebook,
)
from llarva.training.config import SPEED

CELL = """\
steps: int = 3  # how many
rate: float = 0.1  # how fast
names: list[str] = ["a"]  # which
fast: bool = False  # whether
base: str | None = None  # from where
out_dir: str = "runs/x"  # where"""


def write_notebook(path: Path, parameters: str = CELL, body: str = "print(steps)", tag: str = "parameters") -> Path:
    cells = [nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(body)]
    cells[0].metadata["tags"] = [tag]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "small.ipynb")


def test_parameters_are_read_from_the_cell(notebook: Path) -> None:
    found = notebook_parameters(notebook)
    assert [p.name for p in found] == ["steps", "rate", "names", "fast", "base", "out_dir"]
    assert found[0] == Parameter("steps", "int", 3, "how many")
    assert found[4].default is None and found[4].kind == "str | None"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 3", "expected `name: type = value"),
        ("steps: int = len('abc')", "not a plain value"),
        ("import os", "expected `name: type = value"),
    ],
)
def test_parameters_cell_must_be_plain(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        notebook_parameters(write_notebook(tmp_path / "x.ipynb", text))


def test_comment_after_wide_characters(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "x.ipynb", 'name: str = "größe · é"  # Größe')
    assert notebook_parameters(path)[0].comment == "Größe"


def test_missing_parameters_cell(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="0 cells tagged"):
        notebook_parameters(write_notebook(tmp_path / "x.ipynb", tag="other"))


def test_unknown_parameter_names_the_near_one(notebook: Path) -> None:
    with pytest.raises(RunError, match=r"'stepps'\. Did you mean 'steps'\? Valid choices: .*out_dir"):
        run_notebook(notebook, notebook.parent / "out", {"stepps": 4})
    assert not (notebook.parent / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 1.5}, {"steps": "3"}, {"steps": True}, {"steps": None}, {"rate": "x"}, {"names": "a"}, {"fast": 1}],
)
def test_wrong_types_are_refused(notebook: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="expected"):
        check_parameters(notebook_parameters(notebook), wrong)


def test_fitting_values_pass(notebook: Path) -> None:
    right = {"steps": 4, "rate": 1, "names": ["b", "c"], "fast": True, "base": "x"}
    assert check_parameters(notebook_parameters(notebook), right) == {**right, "out_dir": "runs/x"}
    assert check_parameters(notebook_parameters(notebook), {"base": None})["base"] is None


def test_unknown_run_lists_the_known_ones() -> None:
    with pytest.raises(RunError, match="Unknown run 'trian'"):
        find_notebook("trian")
    with pytest.raises(RunError, match="no notebook"):
        find_notebook("nowhere/x.ipynb")


def test_run_once_then_leave_alone_then_refuse(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = notebook.parent / "out"
    body = "from llarva.metrics import recorded\nwith recorded(out_dir, 'small', {'seed': 7}) as metrics:\n    "
    write_notebook(notebook, body=body + "metrics['doubled'] = 2 * steps\n    print('worked')")
    assert run_notebook(notebook, out, {"steps": 4}) == out
    assert "worked" in capsys.readouterr().out
    saved = read_metrics(out)
    assert saved["finished"] and saved["metrics"] == {"doubled": 8} and saved["seed"] == 7
    assert saved["notebook_parameters"]["steps"] == 4 and saved["wall_seconds"] >= 0
    assert (out / "small.ipynb").exists()

    before = (out / "metrics.json").read_bytes()
    run_notebook(notebook, out, {"steps": 4})
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "metrics.json").read_bytes() == before
    with pytest.raises(RunError, match="steps: 4, now 5"):
        run_notebook(notebook, out, {"steps": 5})


def test_every_run_may_go_on_with_other_workers() -> None:
    for path in RUN_NOTEBOOKS.glob("*.ipynb"):
        bound = {one.name for one in notebook_parameters(path) if not one.free} & {"workers", "executor", "device"}
        assert not bound, path.name


def test_what_a_notebook_declares_free_may_differ(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = CELL.replace("names:", "# may change when the run goes on:\nnames:")
    write_notebook(notebook, cell, "1 / (steps - 3)")
    assert [p.name for p in notebook_parameters(notebook) if p.free] == ["names", "fast", "base", "out_dir"]
    out = notebook.parent / "out"
    with pytest.raises(RunError, match="ZeroDivisionError"):
        run_notebook(notebook, out)
    write_notebook(notebook, cell, "print('went on', fast)")
    run_notebook(notebook, out, {"fast": True, "names": ["b"]})
    assert "went on True" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"steps: 3, now 4\)"):
        run_notebook(notebook, out, {"fast": False, "steps": 4})


@pytest.mark.parametrize("name", ["train", "train_baseline", "label", "evaluate", "demos", "takeovers"])
def test_runs_declare_what_changes_no_result(name: str) -> None:
    free = {parameter.name for parameter in notebook_parameters(find_notebook(name)) if parameter.free}
    others = {"train": SPEED - {"compile", "loaders", "threads"} | {"compile_model", "save_every"},
              "train_baseline": {"loaders", "save_every"}, "label": {"workers", "executor"},
              "evaluate": {"workers", "executor", "device"}}  # fmt: skip
    assert free == others.get(name, {"workers"}) | {"out_dir"}


def test_an_attempt_that_left_nothing_binds_nobody(notebook: Path) -> None:
    out, body = notebook.parent / "out", "if steps == 3:\n    raise ValueError(steps)"
    write_notebook(notebook, body=body)
    with pytest.raises(RunError, match="ValueError: 3"):
        run_notebook(notebook, out)
    run_notebook(notebook, out, {"steps": 4})
    with pytest.raises(RunError, match="steps: 4, now 5"):
        run_notebook(notebook, out, {"steps": 5})
    write_notebook(notebook, body=f"from pathlib import Path\n(Path(out_dir) / 'half').mkdir()\n{body}")
    with pytest.raises(RunError, match="ValueError: 3"):
        run_notebook(notebook, notebook.parent / "other")
    with pytest.raises(RunError, match="steps: 3, now 4"):
        run_notebook(notebook, notebook.parent / "other", {"steps": 4})


def test_a_run_from_before_numbers_were_chosen_had_the_likeliest(notebook: Path) -> None:
    out = notebook.parent / "out"
    body = "from llarva.metrics import recorded\nwith recorded(out_dir, 'small', {}):\n    pass"
    write_notebook(notebook, body=body)
    run_notebook(notebook, out)
    write_notebook(notebook, f"{CELL}\nnumber_choice: str = 'auto'  # of number tokens", body)
    run_notebook(notebook, out, {"number_choice": "likeliest"})
    with pytest.raises(RunError, match="number_choice: 'likeliest', now 'auto'"):
        run_notebook(notebook, out)


def test_failing_cell_is_named_and_the_run_goes_on_later(notebook: Path) -> None:
    out = notebook.parent / "out"
    write_notebook(notebook, body="from pathlib import Path\nopen(Path(out_dir).parent / 'flag').read()")
    with pytest.raises(RunError, match=r"small stopped in cell .*FileNotFoundError"):
        run_notebook(notebook, out)
    assert read_metrics(out)["finished"] is False
    (notebook.parent / "flag").write_text("x")
    run_notebook(notebook, out)
    assert read_metrics(out)["finished"] is True


def test_killed_kernel_is_told(notebook: Path) -> None:
    write_notebook(notebook, body="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match="killed"):
        run_notebook(notebook, notebook.parent / "out")


def test_time_of_interrupted_attempts_adds_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, "r", {"seed": 1}) as metrics:
        metrics["part"] = 1
        raise KeyboardInterrupt
    first = read_metrics(tmp_path)
    write_metrics(tmp_path, {**first, "wall_seconds": 100.0})
    with recorded(tmp_path, "r", {"seed": 1}) as metrics:
        assert metrics == {"part": 1}
    second = read_metrics(tmp_path)
    assert second["finished"] and second["attempts"] == 2 and second["wall_seconds"] >= 100.0
    with recorded(tmp_path, "r", {"seed": 2}) as metrics:
        assert metrics == {}
    assert read_metrics(tmp_path)["attempts"] == 1


def test_metrics_take_arrays_and_paths(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"a": np.arange(2), "b": np.float32(0.5), "c": tmp_path, "d": {3, 1}})
    saved = read_metrics(tmp_path)
    assert saved["a"] == [0, 1] and saved["b"] == 0.5 and saved["c"] == str(tmp_path) and saved["d"] == [1, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": '])
def test_broken_metrics_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(RunError, match="metrics.json"):
        read_metrics(tmp_path)


def test_provenance_is_complete() -> None:
    told = provenance()
    assert {"llarva", "commit", "modified", "python", "platform", "processors", "packages"} == set(told)
    assert told["packages"]["torch"] and json.dumps(told)


def test_command_line(notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(notebook), "--parameters"]) == 0
    assert "how many" in capsys.readouterr().out
    assert main([str(notebook), "-p", "stps", "4"]) == 1
    assert "Did you mean 'steps'" in capsys.readouterr().err
    assert main(["nothing"]) == 1
    assert main([str(notebook), "-f", str(tmp_path / "none.yaml")]) == 1
    (tmp_path / "p.yaml").write_text("steps: 9\nrate: 0.5\n")
    write_notebook(notebook, body="print('got', steps, rate, base, out_dir)")
    arguments = [
        str(notebook),
        "-f",
        str(tmp_path / "p.yaml"),
        "-p",
        "rate",
        "2",
        "-p",
        "out_dir",
        str(tmp_path / "12"),
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"got 9 2 None {tmp_path / '12'}" in out and "results:" in out


def test_report_is_pointed_to(tmp_path: Path) -> None:
    with recorded(tmp_path, "r", {}) as metrics:
        metrics["table"] = [{"policy": "tuned", "success": 0.95}]
    assert "report:" not in describe_run(tmp_path)
    (tmp_path / "report.html").write_text("<p>")
    told = describe_run(tmp_path)
    assert told.splitlines()[-1] == f"report: {tmp_path / 'report.html'}" and "tuned" in told


values = st.one_of(st.integers(-999, 999), st.floats(-10, 10), st.text("ab é", max_size=5))


@given(st.lists(st.fixed_dictionaries({"one": values, "two": values}), max_size=5))
def test_tables_are_rectangular(rows: list[dict[str, Any]]) -> None:
    lines = format_table(rows).split("\n")
    assert len(lines) == (len(rows) + 2 if rows else 1)


def test_numbers_may_be_written_with_an_exponent() -> None:
    declared = [Parameter("rate", "float", 0.1, ""), Parameter("other", "float | None", None, "")]
    declared.append(Parameter("name", "str", "x", ""))
    given = {"rate": "1e-3", "other": "-2.5E4", "name": "1e-3"}
    assert check_parameters(declared, given) == {"rate": 0.001, "other": -25000.0, "name": "1e-3"}
    with pytest.raises(RunError, match="expected float"):
        check_parameters(declared, {"rate": "1e-3x"})
