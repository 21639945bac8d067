"""The explorers run from top to bottom in an empty place, and again with what the first time left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import papermill
import pytest

from llarva.episodes.store import EpisodeStore

ROOT = Path(__file__).parents[1]


def outputs(notebook: object) -> str:
    """All that an executed notebook has printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]  # type: ignore[attr-defined]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("audit", "explore_audit", ("1 data sets", "language")),
        ("annotate", "explore_annotate", ("1 data sets", "0 frames annotated")),
    ],
)
def test_an_explorer_runs(name: str, made: str, said: tuple[str, ...], tmp_path: Path) -> None:
    place = tmp_path / "nbs" / "explore"
    place.mkdir(parents=True)
    shutil.copytree(ROOT / "data_cards", tmp_path / "data_cards")
    source = ROOT / "nbs" / "explore" / f"{name}.ipynb"
    for attempt in range(2):
        done = papermill.execute_notebook(
            source, tmp_path / f"{attempt}.ipynb", kernel_name="python3", language="python", cwd=place,
            progress_bar=False,
        )  # fmt: skip
        told = outputs(done)
        assert all(words in told for words in said), told
    assert len(EpisodeStore(tmp_path / "runs" / made)) in (4, 6)
