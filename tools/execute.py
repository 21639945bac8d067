"""Run library notebooks from top to bottom and save what their cells show.

Usage: python tools/execute.py [notebook …]     (default: every numbered notebook in nbs/)

Cells marked `#| eval: false` keep the outputs they have. Widget state is never saved: one explorer's is 5 MB.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


class Client(NotebookClient):
    """A notebook client that leaves out the cells that are not to be evaluated."""

    async def async_execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        if any(line.replace(" ", "") == "#|eval:false" for line in cell.source.splitlines()):
            return cell
        return await super().async_execute_cell(cell, cell_index, **options)


def execute(path: Path) -> bool:
    """Run one notebook and save it, unless it was edited meanwhile; its time of change is kept (see tidy.py)."""
    before = path.stat()
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        timeout=600,
        kernel_name="python3",
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Warnings and progress bars tell of the machine, not of the subject.
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    if path.stat().st_mtime_ns != before.st_mtime_ns:
        return False
    nbformat.write(notebook, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return True


if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    for path in paths:
        started = time.monotonic()
        what = f"{path.stat().st_size / 1000:.0f} kB" if execute(path) else "edited meanwhile, not saved"
        print(f"{path.name}: {time.monotonic() - started:.0f} s, {what}", flush=True)
