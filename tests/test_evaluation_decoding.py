"""How answers are decoded is chosen by name, recorded with the rows, and changes none unless it says so."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding_models import make_checkpoint, pictures, plain_answers
from patch_world import FORMAT, Patches

from llarva.decoding import Decoded, Decoder
from llarva.evaluation import rollouts, selftest
from llarva.evaluation.players import find_device, make_policy, placed
from llarva.evaluation.rollouts import answers_of, evaluate
from llarva.evaluation.rows import TIMINGS, EvaluationError, format_summary, read_rows
from llarva.evaluation.scenes import EvaluationConfig
from llarva.evaluation.selftest import SelfTest
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.reader import InstructionError
from llarva.int8 import Int8Linear
from llarva.models.checkpoints import Checkpoint
from llarva.policy import Policy
from llarva.text_runners import LibraryRunner, StaticRunner
from llarva.token_choice import NumberChoiceError

CONFIG = EvaluationConfig("none", "", tasks=("one", "two"), episodes=3, batch=2, videos=0)


class Kaleidoscope(Patches):
    """Patches that show another picture at every step: answers should differ, else comparing them tests little."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seed = seed or 0
        return super().reset(seed=seed, options=options)

    def picture(self, paint: Sequence[int] = range(3)) -> np.ndarray:
        return pictures(np.random.default_rng([self.seed, self.steps]), 1)[0]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return make_checkpoint(FORMAT)


def play(folder: Path, checkpoint: Checkpoint, **changes: Any) -> list[dict[str, Any]]:
    config = replace(CONFIG, out_dir=str(folder), **changes)
    evaluate(config, checkpoint=checkpoint, make_env=lambda *_: Kaleidoscope(), progress=False)
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_rows(folder)]


def identity(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def plainly(self: Decoder, images: np.ndarray, prompts: list[str], likely: Any = None) -> Decoded:
    ids = plain_answers(self._checkpoint, self, images, prompts)
    texts = ["".join(self.vocabulary[token] for token in row[:-1]) for row in ids]
    return Decoded(texts, ids, 0.0, sum(map(len, ids)), 0)


def test_every_runner_plays_the_rows_of_plain_generation(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "generate", plainly)
        expected = play(tmp_path / "plain", checkpoint)
    assert len({row["action_sha256"] for row in expected}) == 3
    for runner in ("auto", "lean", "library", "static"):
        for batch in (1, 2):
            rows = play(tmp_path / f"{runner}-{batch}", checkpoint, runner=runner, batch=batch)
            assert rows == expected, runner


def test_the_runner_that_was_asked_for_is_taken(checkpoint: Checkpoint) -> None:
    for runner, kind in (("static", StaticRunner), ("library", LibraryRunner)):
        policy = make_policy(checkpoint, replace(CONFIG, runner=runner))
        assert isinstance(policy, Policy) and isinstance(policy.decoder.runner, kind)


def test_numbers_are_chosen_as_was_asked(checkpoint: Checkpoint) -> None:
    for choice, medians in (("auto", True), ("median", True), ("likeliest", False)):
        policy = make_policy(checkpoint, replace(CONFIG, number_choice=choice))
        assert isinstance(policy, Policy) and (policy.decoder.numbers is not None) == medians


def test_rows_of_medians_are_marked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By what was chosen and not by what was asked: "auto" may come to mean something else."""
    rows = play(tmp_path / "auto", checkpoint, episodes=1)
    assert play(tmp_path / "median", checkpoint, episodes=1, number_choice="median") == rows
    play(tmp_path / "likeliest", checkpoint, episodes=1, number_choice="likeliest")
    assert identity(tmp_path / "auto") == identity(tmp_path / "median") | {"number_choice": "median"}
    assert "medians" in (tmp_path / "auto" / "summary.txt").read_text().splitlines()[0]
    assert "medians" not in (tmp_path / "likeliest" / "summary.txt").read_text()
    spelled = make_checkpoint(replace(FORMAT, numbers=DecimalNumbers()))
    play(tmp_path / "digits", spelled, episodes=1, max_steps=2)
    assert "number_choice" not in identity(tmp_path / "digits"), "a folder from before there was a choice goes on"
    with pytest.raises(NumberChoiceError, match="spelled in digits"):
        play(tmp_path / "none", spelled, number_choice="median")


def test_rows_of_int8_are_marked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = replace(CONFIG, weights="int8")
    policy = make_policy(checkpoint, config)
    assert isinstance(policy, Policy) and any(isinstance(m, Int8Linear) for m in policy.decoder.model.modules())
    rows = play(tmp_path / "rough", checkpoint, weights="int8")
    exact = play(tmp_path / "exact", checkpoint)
    assert [row["seed"] for row in rows] == [row["seed"] for row in exact] and rows != exact
    assert identity(tmp_path / "rough") == identity(tmp_path / "exact") | {"weights": "int8"}
    told = (tmp_path / "rough" / "summary.txt").read_text().strip().splitlines()
    assert told[0] == "answers " + answers_of(tmp_path / "rough")
    assert told[1:] == format_summary(read_rows(tmp_path / "rough")).splitlines()
    assert "int8" in told[0] and "int8" not in (tmp_path / "exact" / "summary.txt").read_text()
    for folder, weights in (("rough", "exact"), ("exact", "int8")):
        with pytest.raises(EvaluationError, match="differs in weights"):
            play(tmp_path / folder, checkpoint, weights=weights)
    with pytest.raises(EvaluationError, match="differs in runner"):
        play(tmp_path / "exact", checkpoint, runner="library")


def test_rows_of_half_precision_are_marked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    halved = make_checkpoint(FORMAT)
    halved.model.to(torch.bfloat16)
    play(tmp_path / "half", halved, episodes=1)
    play(tmp_path / "full", checkpoint, episodes=1)
    assert identity(tmp_path / "half")["precision"] == "bfloat16" and "precision" not in identity(tmp_path / "full")
    assert "bfloat16" in (tmp_path / "half" / "summary.txt").read_text().splitlines()[0]
    assert "float" not in (tmp_path / "full" / "summary.txt").read_text()


def test_folders_from_before_there_was_a_choice_go_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = play(tmp_path, checkpoint, number_choice="likeliest")
    assert not {"runner", "weights", "number_choice"} & identity(tmp_path).keys()
    (tmp_path / "rows" / "part-00001.parquet").unlink()
    assert play(tmp_path, checkpoint, number_choice="likeliest") == rows
    with pytest.raises(EvaluationError, match="differs in number_choice"):
        play(tmp_path, checkpoint)


@pytest.mark.parametrize("changes,says", [
    ({"runner": "fast"}, "Unknown runner 'fast'.*auto, lean, library, static"),
    ({"weights": "int4"}, "Unknown weights 'int4'.*exact, int8"),
    ({"number_choice": "mean"}, "Unknown number_choice 'mean'.*auto, likeliest, median"),
    ({"runner": "lean", "weights": "int8"}, "auto, library, static"),
])
def test_what_there_is_to_choose(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        replace(CONFIG, **changes)


def test_the_self_test_runs_the_runner_and_the_checkpoint_s_own_weights(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def test(checkpoint: Checkpoint, rows: str | None, runner: str, number_choice: str) -> SelfTest:
        asked.append((runner, number_choice))
        return SelfTest(0, 0, "told")

    monkeypatch.setattr(rollouts, "self_test", test)
    play(tmp_path, checkpoint, runner="static", weights="int8", number_choice="likeliest", episodes=1)
    assert asked == [("static", "likeliest")]
    replay = selftest.Replay(checkpoint, CONFIG.control_mode, True, "static", "likeliest")
    assert replay.decoder.numbers is None
    assert isinstance(replay.decoder.runner, StaticRunner)
    assert not any(isinstance(m, Int8Linear) for m in replay.decoder.model.modules())


def test_a_wording_without_a_trace_is_played_without(tmp_path: Path) -> None:
    plain = make_checkpoint(replace(FORMAT, template="llarva-v7", numbers=DecimalNumbers(), n=1, history=5))
    assert not make_policy(plain, CONFIG).with_trace
    rows = play(tmp_path, plain, episodes=1, max_steps=2)
    assert len(rows) == 2 and all(row["trace_error_px"] is None for row in rows)
    with pytest.raises(InstructionError, match="no answer with a trace"):
        make_policy(plain, replace(CONFIG, with_trace=True))
    # Folders from before there was a None called it True.
    assert CONFIG.identity()["with_trace"] is True and replace(CONFIG, with_trace=False).identity() != CONFIG.identity()


def test_answers_are_computed_where_it_was_asked(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="Unknown device 'cuda:7'.*auto"):
        find_device("cuda:7")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [str(find_device("auto", worker)) for worker in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert str(find_device("cpu", 1)) == "cpu" and str(find_device("cuda:1")) == "cuda:1"
    moved: list[str] = []
    monkeypatch.setattr(checkpoint.model, "to", lambda device: moved.append(str(device)))
    assert placed(checkpoint, "auto", 1) is checkpoint and moved == ["cuda:1"]
    assert replace(CONFIG, device="cuda").identity() == CONFIG.identity()
