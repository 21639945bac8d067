"""Decisions on episodes: a file that people read, honoured by whoever builds rows; the report and the browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.episodes.records import Episode
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.instructions.dataset import RowStore, build_rows, fit_numbers
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.rows import BuildConfig, RowError
from llarva.plots.audit import finding_picture, write_audit_report
from llarva.tabletop.demos import DemoConfig, episodes
from llarva.traces.audit_findings import make_view
from llarva.traces.audit_table import audit_store
from llarva.traces.decisions import (
    DECISIONS,
    Decision,
    DecisionError,
    decide,
    read_decisions,
    reject_all,
    rejected,
    write_decisions,
)
from llarva.traces.detection_model import detector_mark
from llarva.widgets.audit import AuditBrowser, review_list

FORM = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 1, 2, 4, (64, 64))
NOTEBOOK = Path(__file__).parent.parent / "nbs" / "explore" / "audit.ipynb"


@pytest.fixture(scope="module")
def demo() -> Episode:
    return next(episodes(DemoConfig("push_buttons", 1, "", frames_per_episode=4, image_size=64), range(1)))[0]


@pytest.fixture
def store(demo: Episode, tmp_path: Path) -> EpisodeStore:
    """Five episodes; `b` is told nothing, and the actions of `d` are ten times too large."""
    large = tuple(
        replace(step, action=None if step.action is None else step.action * np.float32([10] * 6 + [1]))
        for step in demo.steps
    )
    changes: dict[str, dict] = {"a": {}, "b": {"instructions": ("n/a",)}, "c": {}}
    changes |= {"d": {"steps": large}, "e": {"task": "<script>x</script>"}}
    with EpisodeWriter(tmp_path / "store", "tabletop", episodes_per_shard=2) as writer:
        for name, change in changes.items():
            writer.write(replace(demo, episode_id=name, **change))
    return EpisodeStore(tmp_path / "store")


# ---------------------------------------------------------------- the file

names = st.text(min_size=1, max_size=20)
decisions = st.builds(Decision, names, st.sampled_from(["accept", "reject"]), st.text(max_size=40), names)


@settings(deadline=None, max_examples=50)
@given(st.lists(decisions, max_size=8))
def test_files_read_back(many: list[Decision]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_decisions(folder, many)
        lines = (Path(folder) / DECISIONS).read_text(encoding="utf-8").split("\n")
        assert len(lines) == len(many) + 1 and all(json.loads(line) for line in lines[:-1])
        assert read_decisions(folder) == {one.episode_id: one for one in many}


@pytest.mark.parametrize(
    "line", ["{", "[]", '"reject"', '{"episode_id": "a"}', '{"episode_id": "a", "verdict": "maybe"}',
             '{"episode_id": 3, "verdict": "reject"}', '{"episode_id": "a", "verdict": "reject", "step": 3}']
)  # fmt: skip
def test_damaged_lines_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / DECISIONS).write_text('{"episode_id": "x", "verdict": "accept"}\n\n' + line + "\n")
    with pytest.raises(DecisionError, match=rf"{DECISIONS}, line 3"):
        read_decisions(tmp_path)


def test_people_overrule_the_audit(tmp_path: Path) -> None:
    decide(tmp_path, "a", "accept", "looked at it")
    assert reject_all(tmp_path, {"a": "jitter", "b": "teleport"}) == ("b",)
    assert rejected(tmp_path, "abc") == {"b"} and read_decisions(tmp_path)["b"].by == "audit"
    decide(tmp_path, "b", None)
    assert rejected(tmp_path, "abc") == frozenset()
    with pytest.raises(DecisionError, match="'a', which the store does not hold"):
        rejected(tmp_path, "bc")


# ---------------------------------------------------------------- the builder


def test_rejected_episodes_make_no_rows(store: EpisodeStore, tmp_path: Path) -> None:
    config = BuildConfig(FORM, episodes_per_shard=2)
    before = build_rows(store, config, tmp_path / "all")
    assert (before.episodes, before.rejected) == (5, 0) and "rejected" not in before.report()
    decide(store.folder, "b", "reject")
    decide(store.folder, "c", "accept")
    decide(store.folder, "d", "reject")
    after = build_rows(store, config, tmp_path / "chosen")
    assert (after.episodes, after.rejected) == (3, 2) and "2 rejected episodes were left out" in after.report()
    rows = RowStore(tmp_path / "chosen")
    assert {row["episode_id"] for row in rows} == {"a", "c", "e"} and rows.summary.rejected == 2
    # another decision is another store of rows, and an interrupted build goes on with the same episodes
    (tmp_path / "chosen" / "data" / "part-00001.parquet").unlink()
    assert build_rows(store, config, tmp_path / "chosen").shards_written == 1
    assert RowStore(tmp_path / "chosen").fingerprint() == rows.fingerprint()
    for folder in ("all", "chosen"):
        decide(store.folder, "e", "reject")
        with pytest.raises(RowError, match="another set of episodes"):
            build_rows(store, config, tmp_path / folder)
    for name in "abce":
        decide(store.folder, name, "reject")
    with pytest.raises(RowError, match="All 5 episodes are rejected"):
        build_rows(store, config, tmp_path / "none")


def test_rejected_episodes_make_no_ranges(store: EpisodeStore) -> None:
    modes = ("end_effector_delta",)
    wide = fit_numbers(store, modes, (64, 64))
    decide(store.folder, "d", "reject")
    narrow = fit_numbers(store, modes, (64, 64))
    action = np.float32([[0.1, 0.1, 0.1, 0, 0, 0, 1]])
    assert narrow.clipped(action, "action:end_effector_delta") > wide.clipped(action, "action:end_effector_delta")


# ---------------------------------------------------------------- report and browser


def test_report_needs_nothing_else(store: EpisodeStore, tmp_path: Path) -> None:
    audit = audit_store(store, tmp_path / "audit")
    decide(store.folder, "b", "reject")
    page = write_audit_report(audit, store, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)=(?!"data:)', page) and "http" not in page and "<script" not in page
    assert page.count("data:image/png") == len(list(audit.findings())) > 2
    assert "Worst first: language" in page and "Worst first: consistency" in page


def test_pictures_mark_the_finding(demo: Episode) -> None:
    view = make_view(demo)
    plain, bare = finding_picture(demo, view.trace), finding_picture(demo, None)
    assert plain.dtype == np.uint8 and plain.shape == bare.shape == (320, 320, 3) and (plain != bare).any()


def test_browser_writes_what_is_decided(store: EpisodeStore, tmp_path: Path) -> None:
    audit = audit_store(store, tmp_path / "audit")
    browser = AuditBrowser(audit, store)
    shown = [name for name, _ in browser.entries]
    assert set(shown) == {"b", "d"} and browser.episode_id == shown[0] and browser.scene is not None
    browser.controls["reason"].value = "no words"
    browser.controls["reject"].click()
    assert read_decisions(store.folder)[shown[0]] == Decision(shown[0], "reject", "no words")
    assert browser.episode_id == shown[1] and "1 rejected" in browser.count.value
    browser.controls["slider"].value = 5
    browser.controls["accept"].click()
    assert browser.episode_id is None and browser.controls["reject"].disabled
    browser.controls["reject"].click()
    assert len(read_decisions(store.folder)) == 2
    browser.controls["back"].click()
    browser.controls["back"].click()
    assert read_decisions(store.folder) == {} and len(browser.entries) == 2
    assert [name for name, _ in review_list(audit, store, "language")] == ["b"]


def test_taking_back_brings_the_decision_before(store: EpisodeStore, tmp_path: Path) -> None:
    before = Decision("b", "reject", "the audit's word", "audit")
    reject_all(store.folder, {"b": before.reason})
    browser = AuditBrowser(audit_store(store, tmp_path / "audit"), store)
    browser.controls["decided"].value = True
    browser.controls["episode"].value = [name for name, _ in browser.entries].index("b")
    browser.controls["accept"].click()
    assert read_decisions(store.folder)["b"] == Decision("b", "accept")
    browser.controls["back"].click()
    assert read_decisions(store.folder) == {"b": before}
    browser.controls["back"].click()
    assert read_decisions(store.folder) == {"b": before}, "nothing else was decided here"


def test_browser_tells_what_cannot_be_shown(store: EpisodeStore, tmp_path: Path) -> None:
    blind = tuple(replace(step, image=None) for step in store[1].steps)
    with EpisodeWriter(tmp_path / "blind", "tabletop") as writer:
        writer.write(replace(store[1], steps=blind))
    dark = EpisodeStore(tmp_path / "blind")
    browser = AuditBrowser(audit_store(dark, tmp_path / "audit"), dark)
    assert browser.episode_id == "b" and "no image" in browser.problem.value
    browser.controls["reject"].click()
    assert rejected(dark.folder, dark.ids) == {"b"}


@pytest.mark.parametrize("detector", [None, "shipped"])
def test_explore_notebook_runs(store: EpisodeStore, detector: str | None) -> None:
    scope: dict = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).replace('["../../runs"]', f"[{str(store.folder.parent)!r}]")
        source = source.replace("detector = None", f"detector = {detector!r}")
        source = source.replace("../../data_cards", str(NOTEBOOK.parents[2] / "data_cards"))
        source = source.replace("AuditBrowser(", "browser = AuditBrowser(")
        if cell["cell_type"] == "code":
            exec(compile(source, str(NOTEBOOK), "exec"), scope)
    audit = scope["audit"]
    assert {one.episode_id for one in audit.findings("language")} == {"b"}
    assert audit.info["traces"] == (f"detector shipped ({detector_mark()})" if detector else "projection")
    assert {row["trace_source"] for row in audit.episodes()} == {"detection" if detector else "projection"}
    assert scope["browser"].scene.trace.source == ("detection" if detector else "projection")
    assert audit.counts()["disagreement"][1] > 0 or not detector, "both exist, so they are compared"
