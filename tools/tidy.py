"""Give every notebook the same small metadata: the kernel that opens it, and nothing of the editor that wrote it."""

import os
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
METADATA = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def tidy(path: Path) -> bool:
    """Tidy one notebook, keeping its time of change (paired texts are synchronised by it); tell whether it changed."""
    notebook = nbformat.read(path, as_version=4)
    if dict(notebook.metadata) == METADATA:
        return False
    times = path.stat()
    notebook.metadata = nbformat.from_dict(METADATA)
    text = nbformat.writes(notebook)
    path.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    for path in chosen:
        if ".ipynb_checkpoints" not in path.parts and tidy(path):
            print(f"tidied {path.name}")
