"""Ablations: one study in miniature from recordings to its page, fair by construction, continued to the same rows."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baseline_sizes import SMALL as SMALL_NETWORKS
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.ablations.cells import Cell
from llarva.ablations.config import StudyConfig
from llarva.ablations.page import study_figure, study_markdown
from llarva.ablations.statistics import difference, holm, outcomes_of, paired_test, stratified_auc, success
from llarva.ablations.study import collect, make_cells, run_study
from llarva.ablations.table import StudyResults, compare_variants, follow_variant, read_results
from llarva.ablations.variants import CLAIMS, LLAVA, REFERENCE, VARIANTS, AblationError, Variant, make_variant
from llarva.evaluation.rows import TIMINGS
from llarva.instructions.dataset import RowStore
from llarva.instructions.numbers import DecimalNumbers
from llarva.metrics import read_metrics
from llarva.models.checkpoints import CheckpointError, load_checkpoint, read_card, refitted
from llarva.models.tiny import TinySize
from llarva.runs import run_notebook

TINY = {"width": 32, "vision_layers": 1, "text_layers": 1}
PAIR = ("no_trace", "pretrained")
SMALL: dict[str, Any] = {
    "tasks": {"push_buttons": [0]}, "demonstrations": 2, "pretrain_tasks": {"turn_tap": [0]}, "steps": 2,
    "pretrain_demonstrations": 1, "frames_per_episode": 4, "perception_steps": 2, "pretrain_steps": 2,
    "variants": list(PAIR), "seeds": [0], "batch_size": 4, "episodes": 2, "max_steps": 6, "workers": 1,
}  # fmt: skip


def configure(out: Path, **changes: Any) -> StudyConfig:
    """The study that `SMALL` describes."""
    plain = SMALL | {"tasks": {"push_buttons": (0,)}, "pretrain_tasks": {"turn_tap": (0,)}, "seeds": (0,)}
    size = TinySize(**TINY, mlp_width=8 * 32 // 3)
    return StudyConfig(**{**plain, "out_dir": str(out), "variants": PAIR, "size": size, **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two variants, made by the run notebook."""
    return run_notebook("ablations", tmp_path_factory.mktemp("study") / "study", SMALL | TINY)


def facts(results: StudyResults) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in results.rows]


# ---- the study


def test_the_run_makes_rows_and_a_page(study: Path) -> None:
    results = read_results(study / "results")
    scenes = [(name, 0, 1_800_000 + k) for name in PAIR for k in range(2)]
    assert [(row["variant"], row["train_seed"], row["seed"]) for row in results.rows] == scenes
    page = (study / "results" / "page.md").read_text()
    assert page == study_markdown(results) and all(f"| {name} |" in page for name in PAIR)
    saved = read_metrics(study)
    assert saved["finished"] and [row["variant"] for row in saved["metrics"]["table"]] == list(PAIR)
    assert not list(study.rglob("cells/*/cache")) and not list(study.rglob("cells/*/state"))


def test_policies_are_asked_as_they_were_trained(study: Path) -> None:
    plain, tuned = (RowStore(study / "rows" / make_variant(name).rows_key) for name in PAIR)
    assert all("trace" not in row["prompt"] + row["answer"] for row in plain)
    assert all("trace" in row["prompt"] and "trace" in row["answer"] for row in tuned)
    assert [row["image"] for row in plain] == [row["image"] for row in tuned]
    results = read_results(study / "results")
    for row in results.rows_of("no_trace"):
        assert row["following_px"] == [] and row["trace_error_px"] is None
    for row in results.rows_of("pretrained"):
        # Six steps in answers of four, all executed.
        assert len(row["following_px"]) == len(row["moved_px"]) == 2 and row["trace_error_px"] > 0
    played = [json.loads(path.read_text()) for path in study.glob("cells/*/rollouts/*/evaluation.json")]
    assert played and not any("number_choice" in one for one in played), "LLARVA's numbers are the likeliest tokens"


def test_tuning_starts_from_the_pretrained_weights(study: Path) -> None:
    base = next((study / "pretrained").iterdir()) / "checkpoint"
    trained = read_card(study / "cells" / "pretrained-0" / "checkpoint")["info"]["training"]
    start = study / "starts" / f"{make_variant('pretrained').rows_key}-0"
    assert trained["base"] == str(base) and read_card(base)["info"]["training"]["base"] == str(start)
    assert {row["control_mode"] for row in RowStore(study / "pretrain_rows" / make_variant(REFERENCE).rows_key)} == {
        "joint_velocity"
    }
    assert load_checkpoint(base).format == load_checkpoint(study / "cells" / "pretrained-0" / "checkpoint").format


def test_variants_start_from_the_same_weights(study: Path) -> None:
    plain, traced = (load_checkpoint(study / "starts" / f"{make_variant(name).rows_key}-0") for name in PAIR)
    assert plain.format == traced.format
    longer = Variant(n=16, history=5)
    rows = RowStore(study / "rows" / Variant().rows_key)
    wanted = replace(rows.format, n=longer.n, history=longer.history)
    seen = load_checkpoint(study / "perception" / "0" / "checkpoint")
    before = {name: tensor.clone() for name, tensor in seen.model.state_dict().items()}
    old, refit = len(seen.processor.tokenizer), refitted(seen, wanted, seed=0)
    assert refit.format == wanted and len(refit.processor.tokenizer) > old
    for name, tensor in refit.model.state_dict().items():
        assert torch.equal(tensor[: len(before[name])], before[name]), name
    for phrase in wanted.phrases():
        assert len(refit.processor.tokenizer.encode(phrase, add_special_tokens=False)) == 1
    with pytest.raises(CheckpointError, match="other numbers"):
        refitted(seen, replace(wanted, numbers=DecimalNumbers()), seed=0)


def test_what_is_lost_is_made_again_to_the_same_rows(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study, copy)
    before = read_results(copy / "results")
    cell = copy / "cells" / "no_trace-0"
    shutil.rmtree(copy / "results")
    shutil.rmtree(cell)
    kept = (copy / "cells" / "pretrained-0" / "cell.json").stat().st_mtime_ns
    # A study may grow; what it has stays as it is.
    grown = configure(copy, variants=(*PAIR, "action_first"))
    after = read_results(run_study(grown))
    assert facts(after)[:4] == facts(before) and {row["variant"] for row in after.rows[4:]} == {"action_first"}
    assert (copy / "cells" / "pretrained-0" / "cell.json").stat().st_mtime_ns == kept
    assert all(row["following_px"] for row in after.rows_of("action_first"))
    answer = next(iter(RowStore(copy / "rows" / make_variant("action_first").rows_key)))["answer"]
    assert answer.index("next action") < answer.index("visual trace")


def test_a_folder_belongs_to_one_study(study: Path) -> None:
    with pytest.raises(AblationError, match="differs in batch_size, steps"):
        run_study(configure(study, steps=3, batch_size=8))


def test_a_cell_knows_what_it_was(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(study / "cells", tmp_path / "cells")
    cell = make_cells(configure(tmp_path))[0]
    assert cell.record() is not None
    monkeypatch.setitem(VARIANTS, "no_trace", {"with_trace": False, "n": 2})  # type: ignore[misc]
    with pytest.raises(AblationError, match="another variant 'no_trace'"):
        cell.record()


def test_results_are_gathered_from_whole_cells_only(study: Path, tmp_path: Path) -> None:
    with pytest.raises(AblationError, match="holds no results"):
        read_results(tmp_path)
    shutil.copytree(study, tmp_path / "study")
    config = configure(tmp_path / "study")
    (config.folder("cells", "pretrained-0", "cell.json")).unlink()
    with pytest.raises(AblationError, match="pretrained-0 is not finished"):
        collect(config, make_cells(config))


@pytest.mark.slow
def test_all_variants_whatever_the_number_of_workers(tmp_path: Path) -> None:
    everything = {"variants": tuple(VARIANTS), "baseline_sizes": SMALL_NETWORKS}
    one, two = (run_study(configure(tmp_path / str(n), workers=n, **everything)) for n in (1, 2))
    assert facts(read_results(one)) == facts(read_results(two))
    results = read_results(two)
    assert len(results.rows) == len(VARIANTS) * 2 and len(compare_variants(results)) == 11
    assert study_markdown(results).count("## ") == 4 and len(study_figure(results).data) == 1 + len(VARIANTS) + 11


# ---- fairness


def test_trainings_differ_in_the_variant_only(tmp_path: Path) -> None:
    cells = make_cells(configure(tmp_path, variants=tuple(VARIANTS), seeds=(7,)))
    budgets = {(c.variant.network == LLAVA, c.training().steps, c.training().seed) for c in cells}
    assert budgets == {(True, 2, 7), (False, 4, 7)} and {c.training().sampling.batch_size for c in cells} == {4}
    free = {"rows", "out_dir", "base"}
    recipes = [
        {name: value for name, value in asdict(cell.training()).items() if name not in free}
        for cell in cells
        if cell.variant.network == LLAVA
    ]
    assert len(recipes) == 9 and all(recipe == recipes[0] for recipe in recipes)
    rivals = [cell for cell in cells if cell.variant.network != LLAVA]
    assert {cell.rows for cell in rivals} == {cells[0].rows} and cells[0].name == REFERENCE


@pytest.mark.parametrize(
    "changes,says",
    [
        ({"seeds": (0, 0)}, "none twice"),
        ({"variants": ()}, "at least one"),
        ({"variants": ("trace",)}, "Unknown variant 'trace'.*no_trace"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"evaluation_seed": 999_999}, "may have been demonstrated"),
        ({"evaluation_seed": 1_999_999}, "may have been demonstrated"),
        ({"pretrain_tasks": {"push_buttons": None}}, "both have push_buttons"),
        ({"pretrain_tasks": {}}, "needs pretrain_tasks"),
    ],
)
def test_unfair_studies_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AblationError, match=says):
        configure(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_claims_compare_one_thing_at_a_time() -> None:
    for claim in CLAIMS.values():
        for one, other in claim.pairs:
            a, b = asdict(make_variant(one)), asdict(make_variant(other))
            assert sum(a[name] != b[name] for name in a) == 1


# ---- statistics

TABLES = st.integers(1, 3).flatmap(
    lambda s: st.integers(2, 6).flatmap(
        lambda e: st.lists(st.lists(st.booleans(), min_size=e, max_size=e), min_size=s, max_size=s)
    )
)


@settings(deadline=None, max_examples=30)
@given(TABLES)
def test_intervals_hold_their_estimates(table: list[list[bool]]) -> None:
    outcomes = {"task": np.array(table)}
    interval, none = success(outcomes, draws=200), difference(outcomes, outcomes, draws=200)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1 and interval.estimate == np.mean(table)
    assert none.low <= none.estimate == 0 <= none.high and paired_test(outcomes, outcomes).p_value == 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_correction_only_raises_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_differences_of_known_studies() -> None:
    a = {"x": np.ones((3, 40), bool), "y": np.arange(120).reshape(3, 40) % 2 == 0}
    b = {"x": np.zeros((3, 40), bool), "y": np.arange(120).reshape(3, 40) % 2 == 0}
    found, back = difference(a, b), difference(b, a)
    assert found.estimate == 0.5 == -back.estimate and found.low > 0.3 and back.high < -0.3
    test = paired_test(a, b)
    assert (test.pairs, test.only_a, test.only_b) == (240, 120, 0) and test.p_value < 1e-30
    with pytest.raises(AblationError, match="different scenes"):
        difference(a, {"x": b["x"]})
    with pytest.raises(AblationError, match="same training seeds"):
        paired_test(a, {name: table[:2] for name, table in b.items()})


def test_trainings_are_part_of_the_luck() -> None:
    rng = np.random.default_rng(0)
    alike = {"x": rng.random((3, 200)) < 0.5}
    apart = {"x": np.stack([rng.random(200) < rate for rate in (0.1, 0.5, 0.9)])}
    widths = [one.high - one.low for one in (success(alike), success(apart))]
    assert widths[1] > 2 * widths[0]


def test_missing_rollouts_are_noticed() -> None:
    rows = [
        {"task": "x", "train_seed": seed, "variation": 0, "seed": scene, "success": True}
        for seed in range(2)
        for scene in range(3)
    ]
    assert outcomes_of(rows)["x"].shape == (2, 3)
    for damaged in (rows[:-1], [*rows, rows[0]], []):
        with pytest.raises(AblationError):
            outcomes_of(damaged)


def test_errors_are_compared_within_their_stratum() -> None:
    # Between the strata the larger error goes with success; within each, with failure.
    errors, failed = [1.0, 2.0, 11.0, 12.0], [False, True, False, True]
    found = stratified_auc(errors, failed, ["a", "a", "b", "b"], [0, 1, 2, 3])
    assert found is not None and found.estimate == 1.0
    assert stratified_auc(errors, failed, ["a"] * 4, [0, 1, 2, 3]).estimate == 0.75  # type: ignore[union-attr]
    assert stratified_auc(errors, [False, False, True, True], ["a", "a", "b", "b"], [0, 1, 2, 3]) is None
    assert stratified_auc([1.0] * 4, failed, ["a"] * 4, range(4)).estimate == 0.5  # type: ignore[union-attr]


# ---- the page


def invented(rates: dict[str, float], seeds: int = 3, scenes: int = 30) -> StudyResults:
    """A study whose rollouts succeed by chance, with errors that know the outcome."""
    rng = np.random.default_rng(0)
    cells, rows = [], []
    for name, rate in rates.items():
        for seed in range(seeds):
            given = {"variant": name, "train_seed": seed}
            counts = {"parameters": 10, "rows": {"acting": 8}, "milliseconds": 8.0}
            cells.append(given | counts | {"settings": asdict(Variant())})
            for scene in range(scenes):
                won = bool(rng.random() < rate)
                found = {"task": "push_buttons", "variation": 0, "seed": scene, "success": won}
                error = float(rng.random() + (not won))
                rows.append(given | found | {"following_px": [error] * 9, "moved_px": [2.0] * 9, "trace_error_px": 1.0})
    study = {"perception_steps": 1, "steps": 2, "batch_size": 4, "episodes": scenes, "tasks": {"push_buttons": None}}
    return StudyResults(rows, cells, study | {"pretrain_tasks": {}, "pretrain_control_modes": {}})


def test_verdicts_say_what_is_known() -> None:
    results = invented({"reference": 0.9, "no_trace": 0.1, "history_3": 0.9, "action_first": 1.0})
    verdicts = {(one.one, one.other): one.verdict for one in compare_variants(results)}
    assert verdicts[REFERENCE, "no_trace"] == "better" and verdicts["history_3", REFERENCE] == "undecided"
    assert all(one.adjusted_p >= one.test.p_value for one in compare_variants(results))
    turned = invented({"reference": 0.1, "no_trace": 0.9})
    assert compare_variants(turned)[0].verdict == "worse"


def test_following_finds_what_predicts() -> None:
    found = follow_variant(invented({"reference": 0.5}), "reference")
    assert found is not None and found.early is not None and found.first_trace is not None
    assert found.early.estimate == 1.0 and found.first_trace.estimate == 0.5
    assert found.answers == 3 * 30 * 9 and 0 < found.share < 1
    always = follow_variant(invented({"reference": 1.0}), "reference")
    assert always is not None and always.early is None
    assert "all alike" in study_markdown(invented({"reference": 1.0}))


def test_pages_and_figures_of_any_part_of_a_study() -> None:
    for rates in ({"reference": 0.5}, {"no_trace": 0.2, "act": 0.4}, dict.fromkeys(VARIANTS, 0.5)):
        results = invented(rates, seeds=1)
        page = study_markdown(results)
        assert all(f"| {name} |" in page for name in rates) and page.endswith("\n")
        for block in page.split("\n\n"):
            if block.startswith("|"):
                assert len({line.count("|") for line in block.splitlines()}) == 1
        assert len(study_figure(results).data) == 1 + len(rates) + len(compare_variants(results))


def test_unknown_variants_are_named() -> None:
    with pytest.raises(AblationError, match="Unknown variant of the study 'act'.*reference"):
        invented({"reference": 0.5}).rows_of("act")


def test_baseline_sizes_reach_the_networks(tmp_path: Path) -> None:
    config = replace(configure(tmp_path), baseline_sizes=SMALL_NETWORKS)
    training = Cell(config, "act", 0, tmp_path).training()
    assert training.size == SMALL_NETWORKS["act"]  # type: ignore[union-attr]


def test_the_published_page_is_that_of_the_published_rows() -> None:
    root = Path(__file__).parent.parent
    page = (root / "docs" / "pages" / "ablations.md").read_text(encoding="utf-8")
    assert page.endswith("\n\n" + study_markdown(read_results(root / "nbs" / "runs" / "benchmark" / "ablations")))
