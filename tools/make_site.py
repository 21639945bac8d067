"""Build the documentation site from the notebooks, the pages in docs/ and the data cards: into _docs, offline.

The pages are prepared in _proc without running anything: outputs are the ones saved in the notebooks, and the headings,
signatures and docstrings of exported code are read from its text.
"""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from card_pages import card_pages
from plotly.offline import get_plotlyjs

from llarva.evaluation.literature import comparison_page, read_any_rows

ROOT = Path(__file__).resolve().parent.parent
PAGES, SITE = ROOT / "_proc", ROOT / "_docs"
OWN_ROWS = ROOT / "nbs" / "runs" / "benchmark" / "evaluation.parquet"
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
# Rooms in the order in which data flows through them.
ROOMS = [
    *("errors", "suites", "workers", "robots", "kinematics", "card_fields", "cards", "cameras", "episodes", "sources"),
    *("traces", "instructions", "models", "training", "drafting", "token_choice", "int8"),
    *("text_cache", "lean_llama", "text_runners"),
    *("prefill", "decoding", "policy"),
    *("tabletop", "rlbench", "baselines", "takeovers", "evaluation", "ablations"),
    *("plots", "widgets", "metrics", "runs", "quickstart", "quickstart_report"),
]
FOLDERS = {
    "explore": ("Explorers", "Notebooks to open in JupyterLab (`make lab`) and play with."),
    "runs": ("Runs", "Notebooks that are executed with parameters: `python -m llarva.runs NAME -p parameter value`."),
    "benchmarks": ("Benchmarks", "Comparisons of speed; each is a ratio measured in one run."),
}


@dataclass(frozen=True)
class Page:
    """One notebook on its way to the site."""

    source: Path
    target: str
    module: str
    title: str
    summary: str
    cells: list[Any]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_page(source: Path, folder: str) -> Page:
    cells = nbformat.read(source, as_version=4).cells
    head = str(cells[0].source)
    title = next((line[2:] for line in head.splitlines() if line.startswith("# ")), source.stem)
    summary = next((line[2:] for line in head.splitlines() if line.startswith("> ")), "")
    exported = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(str(cell.source) for cell in cells), re.M)
    name = re.sub(r"^\d+[a-z]*_", "", source.stem).replace(".", "-")
    return Page(source, f"{folder}/{name}", exported.group(1) if exported else "", title, summary, cells)


def directives(source: str) -> set[str]:
    return {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}


def plain(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip("\n")


def definitions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def only_imports(source: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


# --- what a reader sees of exported code -----------------------------------------------------------------------------


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    one_line = f"{node.name}({ast.unparse(node.args)}){returns}"
    if len(one_line) <= 100:
        return one_line
    arguments = ast.unparse(node.args)
    return f"{node.name}(\n    " + re.sub(r", (?=[*\w]+(?::|=|,|$))", ",\n    ", arguments) + f"\n){returns}"


def fields(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]


def describe(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, module: str, targets: dict[str, str]) -> str:
    """Markdown of one exported definition: heading, signature or fields, docstring, public methods."""
    target = f"api-{module}-{node.name}".lower().replace(".", "-")
    lines = [f"({target})=" if targets.get(node.name) == target else "", f"### `{node.name}`", ""]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        shown = "\n".join([f"class {node.name}" + (f"({bases})" if bases else ""), *(f"    {f}" for f in fields(node))])
    else:
        shown = signature(node)
    lines += ["```python", shown, "```", "", inspect.cleandoc(ast.get_docstring(node) or ""), ""]
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                told = (ast.get_docstring(item) or "").split("\n\n")[0].replace("\n", " ")
                lines.append(
                    f"- `{signature(item)}`".replace("\n    ", " ").replace("\n", "") + (f": {told}" if told else "")
                )
    return "\n".join(lines)


def link_names(text: str, targets: dict[str, str]) -> str:
    """Turn names of exported things in backticks into links, outside code blocks, headings and existing links."""
    parts = re.split(r"(```.*?```|^#.*?$)", text, flags=re.S | re.M)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(
            r"(?<![\[`\w])`(\w+)`(?![\]`])",
            lambda match: f"[`{match[1]}`](#{targets[match[1]]})" if match[1] in targets else match[0],
            parts[i],
        )
    return "".join(parts)


# --- cells -----------------------------------------------------------------------------------------------------------


def embed(figure: Any) -> str:
    content = json.dumps({key: figure[key] for key in ("data", "layout", "frames") if key in figure})
    safe = content.replace("</", "<\\/")
    return f'<div class="plotly-embed"><script type="application/json">{safe}</script></div>'


def clean_outputs(outputs: list[Any]) -> list[Any]:
    kept = []
    for output in outputs:
        data = output.get("data")
        if data is not None:
            if PLOTLY in data:
                output.data = {"text/html": embed(data[PLOTLY])}
            elif WIDGET in data:
                continue
        elif output.output_type == "stream" and output.name == "stderr":
            continue
        kept.append(output)
    return kept


def page_cells(page: Page, targets: dict[str, str]) -> Iterator[Any]:
    yield nbformat.v4.new_markdown_cell(
        f"# {page.title}\n\n{page.summary}" + (f"\n\n`llarva.{page.module}`" if page.module else "")
    )
    for cell in page.cells[1:]:
        marks = directives(cell.source)
        source = plain(cell.source)
        if "hide" in marks or any(mark.startswith("default_exp") for mark in marks) or not source:
            continue
        if cell.cell_type != "code":
            yield nbformat.v4.new_markdown_cell(link_names(source, targets))
            continue
        code = nbformat.v4.new_code_cell(source, outputs=clean_outputs(cell.outputs))
        code.metadata["tags"] = []
        if marks & {"export", "exporti", "exports"}:
            found = list(definitions(source))
            if not found and only_imports(source):
                continue
            for node in found:
                yield nbformat.v4.new_markdown_cell(link_names(describe(node, page.module, targets), targets))
            code.metadata["tags"] = ["hide-input"]
        yield code


def write_page(page: Page, targets: dict[str, str]) -> None:
    notebook = nbformat.v4.new_notebook(cells=list(page_cells(page, targets)))
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path = PAGES / f"{page.target}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


# --- pages that are not notebooks ------------------------------------------------------------------------------------


def toctree(entries: list[str], caption: str = "", hidden: bool = True) -> str:
    options = ([":hidden:"] if hidden else []) + ([f":caption: {caption}"] if caption else [])
    return "\n".join(["```{toctree}", ":maxdepth: 1", *options, "", *entries, "```", ""])


def write_text(target: str, text: str) -> None:
    path = PAGES / f"{target}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def listing(title: str, text: str, pages: list[Page]) -> str:
    base = Path(pages[0].target).parent
    items = [f"- [{page.title}](/{page.target}.ipynb): {page.summary}" for page in pages]
    entries = [f"/{page.target}" for page in pages]
    assert all(Path(page.target).parent == base for page in pages)
    return "\n".join([f"# {title}", "", text, "", *items, "", toctree(entries)])


def room_pages(pages: list[Page]) -> list[str]:
    """Write one entry page per room and return them in the order of the data's flow."""
    rooms: dict[str, list[Page]] = {}
    for page in pages:
        rooms.setdefault(page.module.split(".")[0] or page.target.split("/")[-1], []).append(page)
    entries = []
    for room in sorted(rooms, key=lambda name: (ROOMS.index(name) if name in ROOMS else len(ROOMS), name)):
        inside = rooms[room]
        if len(inside) == 1:
            entries.append(f"/{inside[0].target}")
            continue
        write_text(f"rooms/{room}", listing(room.capitalize(), f"`llarva.{room}`", inside))
        entries.append(f"/rooms/{room}")
    return entries


def write_cards() -> list[str]:
    """Write the pages of the data cards; returns the entry of their table."""
    for target, text in card_pages(ROOT / "data_cards").items():
        write_text(target, text)
    return ["/data_cards/index"]


def landing(trees: list[str]) -> str:
    index = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    text = "\n\n".join(str(cell.source) for cell in index.cells if cell.cell_type == "markdown")
    text = text.replace("../docs/images/", "images/")
    for folder in ("docs/pages/", "nbs/", ""):
        text = text.replace(f"](../{folder}", "](/")
    return text + "\n\n" + "\n".join(trees)


# --- all together ----------------------------------------------------------------------------------------------------


def gather() -> None:
    """Fill _proc with everything that Sphinx reads."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "pages", PAGES)
    for page in PAGES.glob("*.md"):
        page.write_text(page.read_text(encoding="utf-8").replace("](../images/", "](images/"), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "static", PAGES / "_static")
    shutil.copytree(ROOT / "docs" / "images", PAGES / "images")
    shutil.copy(ROOT / "docs" / "conf.py", PAGES)
    shutil.copy(ROOT / "LICENSE", PAGES / "LICENSE")
    (PAGES / "_static" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")

    modules = [read_page(path, "modules") for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]
    others = {
        folder: [read_page(path, folder) for path in sorted((ROOT / "nbs" / folder).glob("*.ipynb"))]
        for folder in FOLDERS
    }
    targets = api_targets(modules)
    for page in [*modules, *(page for pages in others.values() for page in pages)]:
        write_page(page, targets)
    for folder, (title, text) in FOLDERS.items():
        if others[folder]:
            write_text(f"{folder}/index", listing(title, text, others[folder]))
    guides = [f"/{path.stem}" for path in sorted((ROOT / "docs" / "pages").glob("*.md"), reverse=True)]
    write_text("literature", comparison_page(read_any_rows(OWN_ROWS)))
    guides.append("/literature")
    guides += [f"/{folder}/index" for folder in FOLDERS if others[folder]]
    trees = [toctree(guides, "Using it"), toctree(write_cards(), "Data"), toctree(room_pages(modules), "Rooms")]
    write_text("index", landing(trees))


def api_targets(pages: list[Page]) -> dict[str, str]:
    """Names of exported definitions and the label of each; a name that two modules share has none."""
    found: dict[str, list[str]] = {}
    for page in pages:
        for cell in page.cells:
            if cell.cell_type == "code" and directives(cell.source) & {"export", "exporti", "exports"}:
                for node in definitions(plain(cell.source)):
                    found.setdefault(node.name, []).append(f"api-{page.module}-{node.name}".lower().replace(".", "-"))
    labels = [label for names in found.values() for label in names]
    return {name: names[0] for name, names in found.items() if len(names) == 1 and labels.count(names[0]) == 1}


def outside_requests(folder: Path) -> list[str]:
    """Scripts, styles and pictures of built pages that a browser would fetch from another host."""
    sources = r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//"""
    links = r"""<link(?![^>]*rel="canonical")[^>]*href=["']?(?:https?:)?//"""
    pattern = re.compile(f"{sources}|{links}")
    return [path.name for path in sorted(folder.rglob("*.html")) if pattern.search(path.read_text(encoding="utf-8"))]


def main() -> int:
    gather()
    shutil.rmtree(SITE, ignore_errors=True)
    # The builder leaves a work folder beside its output, so it builds inside _proc and the result is moved.
    built = PAGES / "_build" / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    status = subprocess.call([*command, "-d", str(PAGES / "_build" / "trees"), str(PAGES), str(built)], cwd=ROOT)
    if status == 0 and (pages := outside_requests(built)):
        print(f"these pages would ask another host: {pages}", file=sys.stderr)
        status = 1
    if status == 0:
        shutil.move(built, SITE)
        print(f"documentation: {SITE / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
