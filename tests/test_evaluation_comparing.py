"""Two policies, several checkpoints, the literature: what stops early stays honest, and what is chosen is on record."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_world import Patches, make_checkpoint
from scipy.special import betaln

from llarva.evaluation.choosing import choose, exact_success
from llarva.evaluation.comparing import compare_checkpoints, looks_of, task_tests
from llarva.evaluation.literature import comparison_page, literature
from llarva.evaluation.players import fingerprint, load_either
from llarva.evaluation.published import SPLITS, hold_against_list, published_scenes
from llarva.evaluation.rows import EvaluationError, part_path
from llarva.evaluation.scenes import VALIDATION_SEEDS, EvaluationConfig, scenes_of
from llarva.evaluation.sequential import SPREAD, SequentialTest, log_capital
from llarva.evaluation.statistics import StatisticsError, bootstrap_difference, holm, mcnemar
from llarva.models.checkpoints import save_checkpoint
from llarva.suites import RLBENCH_18

# ---- the sequential test

COUNTS = st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))


@settings(deadline=None)
@given(COUNTS)
def test_capital_against_equality_is_the_sign_test_of_discordant_pairs(counts: tuple[int, int, int]) -> None:
    a, b, neither = counts
    closed = (a + b) * np.log(2) + betaln(SPREAD + a, SPREAD + b) - betaln(SPREAD, SPREAD)
    assert np.isclose(log_capital(a, b, neither, np.zeros(1))[0], closed, rtol=1e-9, atol=1e-9)
    mirrored = log_capital(b, a, neither, np.array([-0.3, 0.3]))[::-1]
    assert np.allclose(log_capital(a, b, neither, np.array([-0.3, 0.3])), mirrored)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(-0.9, 0.9))
def test_every_bet_is_fair(plus: float, minus: float, stake: float) -> None:
    # The expected capital after one pair is 1 at the true difference, whatever the shares of the three outcomes.
    difference, ends = plus - minus, ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    grown = np.exp([log_capital(*end, np.array([difference]))[0] for end in ends])
    assert np.isclose(grown @ [plus, minus, 1 - plus - minus], 1.0)


def test_equal_policies_are_seldom_called_different_at_any_look() -> None:
    wrong, covered, runs = 0, 0, 60
    for run in range(runs):
        rng, test = np.random.default_rng(run), SequentialTest()
        for _ in range(30):
            test.add({task: [(bool(rng.random() < rate), bool(rng.random() < rate))] for task, rate in
                      (("a", 0.8), ("b", 0.5), ("c", 0.2))})
        wrong += test.verdict is not None
        covered += all(one.low <= 0 <= one.high for one in test.looks)
    assert wrong <= 8 and covered >= runs - 8  # 5 % of 60 is 3


def test_verdicts() -> None:
    better, worse, alike = SequentialTest(), SequentialTest(), SequentialTest(margin=0.3)
    better.add({"t": [(True, False)] * 20})
    worse.add({"t": [(False, True)] * 20})
    alike.add({"t": [(True, True)] * 40})
    assert (better.verdict, worse.verdict, alike.verdict) == ("a", "b", "alike") and SequentialTest().verdict is None
    assert better.looks[0].low > 0 and alike.looks[0].difference == 0
    better.add({"t": [(False, True)] * 20})
    assert better.looks[1].p_value == better.looks[0].p_value, "evidence that was there is not lost"
    with pytest.raises(StatisticsError, match="equally many scenes"):
        SequentialTest().add({"t": [(True, True)], "u": []})
    with pytest.raises(StatisticsError, match="same tasks"):
        better.add({"u": [(True, True)]})
    for wrong in ({"alpha": 0.0}, {"margin": 1.0}):
        with pytest.raises(StatisticsError, match="strictly between"):
            SequentialTest(**wrong)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_differences_and_adjustments(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = bootstrap_difference({"x": (a, b)}, np.random.default_rng(0), draws=200)
    assert found.estimate == pytest.approx(np.mean(a) - np.mean(b)) and -1 <= found.low <= found.high <= 1
    p = mcnemar(a, b).p_value
    assert holm({"x": p, "y": 1.0})["x"] == pytest.approx(min(1.0, 2 * p)) and holm({"x": p}) == {"x": p}


# ---- two checkpoints, several checkpoints


class Kind(Patches):
    """Lets a policy succeed at once, or never."""

    wins = True

    def step(self, action: Any) -> Any:
        seen, reward, _, _, info = super().step(action)
        return seen, reward, self.wins, not self.wins, info | {"success": self.wins, "failure": "no"}


class Unkind(Kind):
    wins = False


def kinds(task: str, config: EvaluationConfig, size: int) -> Patches:
    return Unkind() if Path(config.out_dir).name == "b" else Kind()


def test_a_comparison_stops_early_and_goes_on(tmp_path: Path) -> None:
    config = EvaluationConfig("x", str(tmp_path), tasks=("one", "two"), episodes=12, batch=2, videos=0)
    assert looks_of(config)[1] == [1, 7] and {scenes_of(config)[k][0].task for k in (1, 7)} == {"one", "two"}
    two = make_checkpoint(0), make_checkpoint(1)
    found = compare_checkpoints(config, "y", SequentialTest(), checkpoints=two, make_env=kinds, progress=False)
    assert found.verdict == "a" and found.looks[-1].pairs < found.most == 24 and "a is better" in str(found)
    played = [k for k in range(12) if part_path(tmp_path / "b", k).is_file()]
    assert len(played) == 2 * len(found.looks)
    with pytest.raises(EvaluationError, match="stopped after"):
        task_tests(found)
    strict = compare_checkpoints(config, "y", SequentialTest(alpha=1e-9), checkpoints=two, make_env=kinds,
                                 progress=False)  # fmt: skip
    same = [one.capital for one in strict.looks[: len(found.looks)]] == [one.capital for one in found.looks]
    assert strict.verdict is None and same
    mean, tests = task_tests(strict)
    assert mean.estimate == 1.0 and [row["only a"] for row in tests] == [12, 12]
    assert json.loads((tmp_path / "comparison.json").read_text())["verdict"] is None


def test_equal_means_are_equal_whatever_the_order_of_the_tasks() -> None:
    def rows(*successes: int) -> list[dict[str, Any]]:
        return [{"task": str(task), "success": k < n} for task, n in enumerate(successes) for k in range(25)]

    assert exact_success(rows(1, 1, 12)) == exact_success(rows(12, 1, 1)) < exact_success(rows(1, 2, 12))


def test_a_choice_is_made_on_validation_scenes_and_kept(tmp_path: Path) -> None:
    homes = []
    for k in (0, 1):
        made = make_checkpoint(k)
        homes.append(str(save_checkpoint(tmp_path / f"c{k}", made.model, made.processor, made.format, made.info)))
    best = fingerprint(load_either(homes[1]))

    def only_second(task: str, config: EvaluationConfig, size: int) -> Patches:
        return Kind() if best.startswith(Path(config.out_dir).name) else Unkind()

    config = EvaluationConfig("", str(tmp_path / "choice"), tasks=("one",), episodes=2, batch=2, videos=0)
    with pytest.raises(EvaluationError, match="validation scenes"):
        choose(homes, config, make_env=only_second, progress=False)
    config = replace(config, seed=VALIDATION_SEEDS.start)
    choice = choose(homes, config, make_env=only_second, progress=False)
    assert choice.fingerprint == best and [one.success for one in choice.candidates] == [0.0, 1.0]
    assert fingerprint(load_either(tmp_path / "choice")) == best
    with pytest.raises(EvaluationError, match="once"):
        choose([homes[0], homes[0]], config, progress=False)


# ---- the published


def test_the_list_of_scenes() -> None:
    for split, seeds in SPLITS.items():
        for task in RLBENCH_18:
            assert [scene.seed for scene in published_scenes(split)[task]] == list(seeds)
    scene = published_scenes()["close_jar"][3]
    row = {"env": "llarva/close_jar-v0", "task": "close_jar", "seed": scene.seed, "variation": scene.variation,
           "asked_variation": scene.variation, "instruction": scene.instruction}
    assert hold_against_list([row]).rows == 1 and not hold_against_list([row]).changed
    assert hold_against_list([row | {"env": "llarva-rlbench/close_jar-v0"}]).rows == 0
    assert "another scene now" in str(hold_against_list([row | {"instruction": "dance"}]))


def test_the_literature_beside_own_rows() -> None:
    rows = [{"env": f"llarva/{task}-v0", "task": task, "variation": 0, "seed": k, "success": k < 2, "steps": 9,
             "failure": None if k < 2 else "x", "trace_error_px": None, "decode_ms_p50": None, "control": "none"}
            for task in RLBENCH_18 for k in range(4)]
    page = comparison_page(rows)
    assert "two benchmarks with the same task names" in page and "| **mean** | **50.0**" in page
    assert all(one["name"] in page and one["source"] in page for one in literature()["methods"])
    assert "| **mean** | – |" in comparison_page(rows[:4]), "no mean over tasks that were not evaluated"
    real = comparison_page([row | {"env": "llarva-rlbench/x"} for row in rows])
    assert "two benchmarks" not in real and "CoppeliaSim | RLBench on CoppeliaSim" in real
    with pytest.raises(EvaluationError, match="control"):
        comparison_page([rows[0] | {"control": "blank_image"}])
