"""The repository keeps its promises: code equals notebooks, notebooks are clean and small, imports flow one way."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.specifiers import SpecifierSet

from llarva.runs import notebook_parameters

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llarva"
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LIBRARY = [path for path in NOTEBOOKS if path.parent == ROOT / "nbs"]
RUNS = [path for path in NOTEBOOKS if path.parent.name == "runs"]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py")

# A room may import rooms of its own rank or of a lower one; equal ranks are checked for cycles below.
RANKS = {
    name: rank
    for rank, names in enumerate(
        [
            ("errors", "suites", "workers"),
            ("robots", "kinematics"),
            ("card_fields",),
            ("cards",),
            ("cameras",),
            ("episodes",),
            ("sources", "traces", "tabletop"),
            ("rlbench",),
            ("instructions",),
            ("models",),
            ("training", "text_cache", "lean_llama", "text_runners", "drafting", "token_choice", "int8", "prefill"),
            ("decoding",),
            ("policy",),
            ("baselines", "takeovers"),
            ("evaluation",),
            ("plots", "metrics"),
            ("runs",),
            ("widgets",),
            ("quickstart", "ablations"),
            ("quickstart_report",),
        ]
    )
    for name in names
}


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the notebooks, exported and cleaned there, so that the working tree stays as it is."""
    copy = tmp_path_factory.mktemp("copy") / "repository"
    copy.mkdir()
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", ".last_checked"))
    shutil.copytree(PACKAGE, copy / "llarva", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for command in (["nbdev_export"], ["nbdev_clean"]):
        done = run(command, copy)
        assert done.returncode == 0, done.stdout + done.stderr
    return copy


def python_files(package: Path) -> dict[str, str]:
    files = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    return {name: text for name, text in files.items() if text.strip()}


def test_exported_code_equals_notebooks(exported: Path) -> None:
    here, there = python_files(PACKAGE), python_files(exported / "llarva")
    assert sorted(here) == sorted(there)
    changed = [name for name in here if here[name] != there[name]]
    assert not changed, f"these differ from their notebooks, run `make export`: {changed}"


def test_every_module_comes_from_a_notebook() -> None:
    exports = set()
    for path in LIBRARY:
        for cell in nbformat.read(path, as_version=4).cells:
            exports |= set(re.findall(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M))
    modules = {".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in MODULES if p.stat().st_size}
    assert modules - {"__init__"} == exports


def test_notebooks_are_clean(exported: Path) -> None:
    dirty = [
        name
        for name, path in zip(ids(NOTEBOOKS), NOTEBOOKS, strict=True)
        if json.loads(path.read_text(encoding="utf-8")) != json.loads((exported / name).read_text(encoding="utf-8"))
    ]
    assert not dirty, f"run `nbdev_clean` on: {dirty}"


def test_readme_is_current() -> None:
    done = run([sys.executable, "tools/readme.py", "--check"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_shows_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_notebook_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= 150_000, f"{path.stat().st_size / 1000:.0f} kB; save no widget state, shrink pictures"
    assert len(notebook.cells) <= 70
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.get("kernelspec", {}).get("name") == "python3", "run `make export`"


@pytest.mark.parametrize("path", LIBRARY, ids=ids(LIBRARY))
def test_title_stands_alone(path: Path) -> None:
    # Whatever else stands in the first cell would be lost from the site.
    first = nbformat.read(path, as_version=4).cells[0]
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert first.cell_type == "markdown" and lines[0].startswith("# ")
    assert all(line.startswith(">") for line in lines[1:])


@pytest.mark.parametrize("path", RUNS, ids=ids(RUNS))
def test_run_notebooks_are_thin(path: Path) -> None:
    parameters = notebook_parameters(path)
    assert {"out_dir"} <= {parameter.name for parameter in parameters}
    assert all(parameter.comment for parameter in parameters), "every parameter carries a comment"
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda), cell.source
            if isinstance(node, ast.ImportFrom):
                root = (node.module or "").split(".")[0]
                assert root in ("llarva", "pathlib", "IPython"), f"{node.module}: logic belongs into llarva"


class RunTime(ast.NodeTransformer):
    """Leaves out what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute names of everything a module imports at run time, wherever in it, with line numbers."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = []
    for node in ast.walk(RunTime().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found.append((name, node.lineno))
            found += [(f"{name}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_no_development_tools_at_run_time(path: Path) -> None:
    forbidden = {"nbdev", "fastcore", "execnb", "ghapi", "torchvision", "pytest", "hypothesis"}
    assert not [(name, line) for name, line in imports(path) if name.split(".")[0] in forbidden]


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_imports_flow_one_way() -> None:
    wrong = []
    for path in MODULES:
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own == "__init__":
            continue
        assert own in RANKS, f"{path}: give the room {own} a rank here"
        for name, line in imports(path):
            other = room(name) if name.startswith("llarva.") else ""
            if other in RANKS and RANKS[other] > RANKS[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} {own} imports {other}")
    assert not wrong, wrong


def test_the_site_shows_every_room() -> None:
    tree = ast.parse((ROOT / "tools" / "make_site.py").read_text())
    listed = next(node.value for node in tree.body if isinstance(node, ast.Assign) and "ROOMS" in ast.unparse(node))
    assert {node.value for node in ast.walk(listed) if isinstance(node, ast.Constant)} == set(RANKS)


def test_no_cycles_between_modules() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    graph = {name: {other for other, _ in imports(path) if other in names} - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " imports ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_light_rooms_stay_light() -> None:
    # Reading data must not cost seconds of importing a deep-learning framework.
    heavy = {"torch", "transformers", "peft", "mujoco", "plotly", "gymnasium"}
    light = {"errors", "robots", "kinematics", "cards", "cameras", "traces", "instructions"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in MODULES
        if room(".".join(path.relative_to(ROOT).with_suffix("").parts)) in light
        for name, line in imports(path)
        if name.split(".")[0] in heavy and not path.stem.startswith("detection")  # a network, wanted where it is asked
    ]
    assert not wrong, wrong


def tracked() -> list[Path]:
    done = run(["git", "ls-files"], ROOT)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_machine_paths_and_no_big_files() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/\w+")
    for path in tracked():
        assert path.stat().st_size < 30_000_000, path
        if path.suffix in {".py", ".ipynb", ".md", ".toml", ".ini", ".txt", ".cfg", ".json", ".js", ""}:
            match = pattern.search(path.read_text(encoding="utf-8"))
            assert match is None, f"{path}: {match.group(0) if match else ''}"


def test_constraints_are_exact_and_portable() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), (
        "exact versions only, no paths, no local builds"
    )
    names = [line.split("==")[0].lower() for line in lines]
    assert "torchvision" not in names and len(set(names)) == len(names)


def test_tested_set_installs_on_every_python_311() -> None:
    # Distributions ship early patch releases of Python; a package that wants a later one breaks their set-up.
    wrong = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, version = line.split("==")
            try:
                found = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            wanted = SpecifierSet(found.metadata["Requires-Python"] or "")
            if found.version.split("+")[0] == version and "3.11.0" not in wanted:
                wrong.append(f"{line} needs Python {wanted}")
    assert not wrong, wrong


def test_lab_asks_for_no_news() -> None:
    done = run(["make", "-n", "lab"], ROOT)
    assert done.returncode == 0 and "--LabApp.news_url=None" in done.stdout, done.stderr


def test_make_lists_its_targets() -> None:
    done = run(["make", "help"], ROOT)
    assert done.returncode == 0, done.stderr
    for target in ("run", "test", "lab", "docs", "export", "clean-runs"):
        assert re.search(rf"make {target}\b", done.stdout)
