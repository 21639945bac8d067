"""Write README.md from nbs/index.ipynb; with --check only say whether it is current (exit 1 where it is not)."""

import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Made from nbs/index.ipynb by `make export`; edit the notebook. -->\n\n"


def readme(notebook: Path) -> str:
    """Return the README's text: the notebook without hidden cells, its relative links seen from the root."""
    index = nbformat.read(notebook, as_version=4)
    index.cells = [cell for cell in index.cells if not cell.source.startswith("#| hide")]
    text, _ = MarkdownExporter().from_notebook_node(index)
    return NOTICE + text.replace("](../", "](").replace('src="../', 'src="').strip() + "\n"


def main(check: bool) -> int:
    target = ROOT / "README.md"
    text = readme(ROOT / "nbs" / "index.ipynb")
    if check:
        current = target.exists() and target.read_text(encoding="utf-8") == text
        print("README.md is current" if current else "README.md differs from nbs/index.ipynb: run `make export`")
        return 0 if current else 1
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
