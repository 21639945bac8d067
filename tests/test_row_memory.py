"""Memory of a row store of any size: what is used grows by some tens of bytes a row, never by the rows themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from big_rows import PHASES, write_big

FEW, SOME, MANY = 20_000, 200_000, 2_000_000
NOISE = 6_000_000  # bytes by which two runs of the same thing may differ
# What grows with the store, bytes a row: an index of its files; where training also draws rows, their numbers by task
# and the notes of what is mapped; with passes, an order of all rows and a shuffled one besides.
GROWTH = {"opening": 2, "iterating": 2, "sampling": 60, "passes": 80}


def peak(phase: str, folder: Path) -> int:
    """The most memory of its own, in bytes, that a fresh process needed for a phase of `big_rows`."""
    command = [sys.executable, str(Path(__file__).parent / "big_rows.py"), phase, str(folder)]
    environment = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.split()[0])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("few")
    return folder, write_big(folder, FEW)


def check(phase: str, small: tuple[Path, int], large: tuple[Path, int]) -> None:
    grown = peak(phase, large[0]) - peak(phase, small[0])
    assert grown <= NOISE + GROWTH[phase] * (large[1] - small[1]), f"{grown / (large[1] - small[1]):.0f} bytes a row"


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("some")
    return folder, write_big(folder, SOME)


def test_rows_are_drawn_in_little_memory(few: tuple[Path, int], some: tuple[Path, int]) -> None:
    check("sampling", few, some)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("many")
    return folder, write_big(folder, MANY)


@pytest.mark.slow
@pytest.mark.parametrize("phase", sorted(PHASES))
def test_two_million_rows_in_little_memory(few: tuple[Path, int], many: tuple[Path, int], phase: str) -> None:
    check(phase, few, many)
    assert peak(phase, many[0]) <= 600_000_000  # of which the imports take more than half
