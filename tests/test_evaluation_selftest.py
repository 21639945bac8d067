"""The self-test passes what is as it was, and names what has changed since training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from patch_world import FORMAT, MODE, Patches, make_checkpoint

from llarva.episodes.records import encode_image
from llarva.evaluation import selftest
from llarva.evaluation.rollouts import evaluate, read_self_test
from llarva.evaluation.scenes import EvaluationConfig
from llarva.evaluation.selftest import SelfTestError, first_unlike, self_test
from llarva.instructions.dataset import write_rows
from llarva.models.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from llarva.training.kept_rows import KEPT_ROWS, keep_rows


def rows(count: int = 3) -> list[dict[str, Any]]:
    rng, made = np.random.default_rng(0), []
    for k in range(count):
        image = encode_image(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        prompt = FORMAT.prompt("go to patch A", rng.uniform(-1, 1, (1, 7)), MODE, True)
        answer = FORMAT.answer(rng.uniform(0, 64, (4, 2)), rng.uniform(-0.1, 0.1, (4, 7)), MODE)
        made.append({"id": f"e/{k}", "image": image, "prompt": prompt, "answer": answer, "episode_id": "e", "step": k,
                     "task": "one", "variation": 0, "template": FORMAT.template, "control_mode": MODE,
                     "object_names": [], "object_points": [], "segmentation": None})  # fmt: skip
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = make_checkpoint()
    folder = save_checkpoint(tmp_path / "checkpoint", made.model, made.processor, made.format, made.info)
    keep_rows(folder, rows())
    return folder


def test_it_passes_and_is_told(home: Path, tmp_path: Path) -> None:
    found = self_test(load_checkpoint(home))
    assert found.rows == 3 and found.tokens > 3 * 36 and "kept with the checkpoint" in str(found)
    config = EvaluationConfig(str(home), str(tmp_path / "out"), tasks=("one",), episodes=1)
    folder = evaluate(config, make_env=lambda *_: Patches(), progress=False)
    assert read_self_test(folder) == found
    write_rows(rows(9), FORMAT, tmp_path / "rows", {})
    assert self_test(make_checkpoint(3), str(tmp_path / "rows"), count=2).rows == 2
    assert self_test(make_checkpoint()).rows == 0 and "no self-test" in str(self_test(make_checkpoint()))


def change(home: Path, **columns: Any) -> None:
    table = pq.read_table(home / KEPT_ROWS)
    changed = [row | {name: make(row) for name, make in columns.items()} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(changed, table.schema), home / KEPT_ROWS)


def test_what_has_changed_is_named_before_any_rollout(home: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(home)
    checkpoint.processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(SelfTestError, match="Row e/0: at token .* the model says .* and said"):
        self_test(checkpoint)
    config = EvaluationConfig(str(home), str(tmp_path / "out"), tasks=("one",), episodes=1)
    with pytest.raises(SelfTestError):
        evaluate(config, checkpoint=checkpoint, make_env=lambda *_: Patches(), progress=False)
    assert not (tmp_path / "out" / "rows").exists()


def test_prompts_and_their_tokens_are_training_s(home: Path) -> None:
    change(home, prompt_ids=lambda row: row["prompt_ids"][:-1])
    with pytest.raises(SelfTestError, match="Tokenizer, processor or template"):
        self_test(load_checkpoint(home))
    change(home, prompt=lambda row: row["prompt"] + " ")
    with pytest.raises(SelfTestError, match="Row e/0: the template llarva-workbench-v1 cannot read its prompt"):
        self_test(load_checkpoint(home))


def test_a_decoder_that_errs_is_caught(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(home)
    generate = selftest.Policy(checkpoint, MODE).decoder.generate

    tokenizer = checkpoint.processor.tokenizer
    other = [*tokenizer.encode(rows()[0]["answer"], add_special_tokens=False), tokenizer.eos_token_id]

    def worse(self: Any, images: np.ndarray, prompts: list[str]) -> Any:
        return replace(generate(images, prompts), token_ids=[other])  # legal, but not what the model says

    monkeypatch.setattr("llarva.decoding.Decoder.generate", worse)
    with pytest.raises(SelfTestError, match="serving says .* where a plain forward of the model does not"):
        self_test(checkpoint)


def test_other_kinematics_and_damaged_rows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "reference_poses", lambda robot: {MODE: [[0.0] * 7] * 3})
    with pytest.raises(SelfTestError, match="kinematics of panda"):
        self_test(load_checkpoint(home))
    (home / KEPT_ROWS).write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match="cannot be read"):
        self_test(load_checkpoint(home))


def test_equally_likely_tokens_are_no_difference() -> None:
    logits = torch.tensor([[1.0, 1.0005, 0.0], [0.0, 5.0, 9.0]])
    assert first_unlike(logits, [0, 2], None, 1e-3) is None and first_unlike(logits, [2, 2], None, 1e-3) == 0
    assert first_unlike(logits, [0, 1], [[0], [0, 1]], 1e-3) is None, "what is not allowed does not count"


def test_a_median_is_held_against_the_median() -> None:
    logits = torch.tensor([[0.3, 0.29, 0.41], [0.3, 0.29, 0.41]]).log()
    assert first_unlike(logits, [1, 1], None, 1e-3, [0, 1, 2]) is None
    assert first_unlike(logits, [1, 2], None, 1e-3, [0, 1, 2]) == 1
    assert first_unlike(logits, [1, 2], [[0, 1, 2], [2]], 1e-3, [0, 1, 2]) is None, "only legal numbers count"
