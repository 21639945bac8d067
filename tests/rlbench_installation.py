"""Installations of the stand-in for RLBench: a fork, its tasks, a CoppeliaSim that is an empty file, an X server."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llarva.suites import RLBENCH_18

STANDIN = Path(__file__).parent / "standin_rlbench"
STOCK_NAMES = {"sweep_to_dustpan_of_size": "sweep_to_dustpan", "slide_block_to_color_target": "slide_block_to_target",
               "place_wine_at_rack_location": "stack_wine"}  # fmt: skip
XVFB = """#!{python}
import os, sys, time
from pathlib import Path
Path({pids!r}, str(os.getpid())).touch()
os.write(int(sys.argv[sys.argv.index("-displayfd") + 1]), b"77\\n")
time.sleep(1000)
"""


def install(folder: Path, fork: str = "stock", tasks: Sequence[str] = RLBENCH_18) -> dict[str, str]:
    """Make an installation in an empty `folder`; returns the variables under which it is found."""
    site = folder / "site"
    shutil.copytree(STANDIN, site, ignore=shutil.ignore_patterns("__pycache__", "README.md"))
    for name in ("tasks", "task_ttms"):
        (site / "rlbench" / name).mkdir()
    (site / "rlbench" / "tasks" / "__init__.py").touch()
    for task in tasks:
        name = STOCK_NAMES.get(task, task) if fork == "stock" else task
        kind = "".join(part.capitalize() for part in name.split("_"))
        source = f"from rlbench.backend.task import Task\n\n\nclass {kind}(Task):\n    pass\n"
        (site / "rlbench" / "tasks" / f"{name}.py").write_text(source)
        (site / "rlbench" / "task_ttms" / f"{name}.ttm").touch()
    for name in ("CoppeliaSim", "bin", "faults", "xvfb"):
        (folder / name).mkdir()
    (folder / "CoppeliaSim" / "libcoppeliaSim.so.1").touch()
    server = folder / "bin" / "Xvfb"
    server.write_text(XVFB.format(python=sys.executable, pids=str(folder / "xvfb")))
    server.chmod(0o755)
    return {
        "COPPELIASIM_ROOT": str(folder / "CoppeliaSim"), "STANDIN_FORK": fork, "STANDIN_FAULTS": str(folder / "faults"),
        "PYTHONPATH": str(site),
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]), "DISPLAY": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@contextmanager
def installed(folder: Path, fork: str = "stock", tasks: Sequence[str] = RLBENCH_18) -> Iterator[Path]:
    """Have an installation of the stand-in in force; yields its folder of faults."""
    before = dict(os.environ)
    os.environ.update(install(Path(folder), fork, tasks))
    try:
        yield Path(folder) / "faults"
    finally:
        os.environ.clear()
        os.environ.update(before)
