"""Training: refuses what does not fit, learns, continues to the bit after a kill, shares work between processes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llarva.episodes.store import EpisodeStore
from llarva.instructions.dataset import RowStore, build_rows, fit_numbers
from llarva.instructions.format import InstructionFormat
from llarva.instructions.rows import BuildConfig
from llarva.models.adapters import LoraSettings, add_lora
from llarva.models.checkpoints import CheckpointError, load_checkpoint, read_card, save_checkpoint
from llarva.models.pretrained import pretrained
from llarva.models.text import ACTION_NUMBER, EOS, IMAGE, POINT_NUMBER, PROMPT, TRACE_NUMBER
from llarva.models.tiny import TinySize, make_tiny
from llarva.tabletop.demos import DemoConfig
from llarva.tabletop.recording import record_demos
from llarva.training.batches import BatchMaker, number_kinds
from llarva.training.config import TrainConfig
from llarva.training.loop import StepBatches, train
from llarva.training.losses import LossWeights
from llarva.training.module import TrainingModule, object_names
from llarva.training.optimizers import schedule
from llarva.training.sampling import (
    RowSampler,
    Sampling,
    TrainingError,
    count_rows,
    dataset_shares,
    open_rows,
    read_format,
)
from llarva.training.state import newest_state

SMALL = TinySize(width=32, mlp_width=48, heads=2, vision_layers=1, text_layers=1)
MODES = {"end_effector_delta": 0.5, "joint_velocity": 0.5}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a few real demonstrations."""
    folder = tmp_path_factory.mktemp("rows")
    demos = record_demos(DemoConfig("push_buttons", 6, str(folder / "demos"), frames_per_episode=4, kicks=1))
    store = EpisodeStore(demos.store)
    numbers = fit_numbers(store, list(MODES), (128, 128))
    form = InstructionFormat("llarva-workbench-v1", numbers, "panda", 1, 2, 4, (128, 128))
    build_rows(store, BuildConfig(format=form, control_modes=MODES), folder / "rows")
    return folder / "rows"


def configure(rows: Path, out: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        rows=(str(rows),), out_dir=str(out), steps=6, size=SMALL, sampling=Sampling(batch_size=4, points=1),
        warmup_steps=1, save_every=2, log_every=1, precision="no", threads=1,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished training."""
    return train(configure(rows, tmp_path_factory.mktemp("trained"))).checkpoint


def test_loss_falls(rows: Path, tmp_path: Path) -> None:
    log = train(configure(rows, tmp_path, steps=30, learning_rate=5e-3, log_every=10)).log
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[-1]["text"] < log[0]["text"]


def test_same_seed_same_bytes(rows: Path, trained: Path, tmp_path: Path) -> None:
    again = weights(train(configure(rows, tmp_path)).checkpoint)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(trained).items())
    other = weights(train(configure(rows, tmp_path / "other", seed=1)).checkpoint)
    assert not all(torch.equal(tensor, other[name]) for name, tensor in weights(trained).items())


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import configure
from llarva.training.loop import train
train(configure(Path({rows!r}), Path({out!r}), steps=60, save_every=3, matrix_learning_rate=1e-2))
"""


def test_killed_training_continues_to_the_bit(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    code = RUN.format(tests=str(Path(__file__).parent), rows=str(rows), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted, deadline = 7 + int(np.random.default_rng().integers(8)), time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        newest = newest_state(out / "state")
        if newest is not None and int(newest.stem.split("-")[1]) >= wanted:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = newest_state(out / "state")
    assert newest is not None and process.returncode == -signal.SIGKILL

    straight = train(configure(rows, tmp_path / "straight", steps=60, save_every=400, matrix_learning_rate=1e-2))
    resumed = train(configure(rows, out, steps=60, save_every=3, matrix_learning_rate=1e-2))
    assert [row["loss"] for row in resumed.log] == [row["loss"] for row in straight.log]
    before, after = weights(straight.checkpoint), weights(resumed.checkpoint)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_finished_training_does_nothing_twice(rows: Path, tmp_path: Path) -> None:
    first = train(configure(rows, tmp_path))
    changed = (first.checkpoint / "model.safetensors").read_bytes()
    again = train(configure(rows, tmp_path))
    assert len(again.log) == len(first.log)
    assert (again.checkpoint / "model.safetensors").read_bytes() == changed


def test_other_parameters_are_refused(rows: Path, tmp_path: Path) -> None:
    train(configure(rows, tmp_path, steps=2))
    with pytest.raises(TrainingError, match="other parameters"):
        train(configure(rows, tmp_path, steps=2, learning_rate=1e-2))
    assert train(configure(rows, tmp_path, steps=2, log_every=2)).steps == 2  # how often to log is free


def test_two_processes_train_as_one(rows: Path, trained: Path, tmp_path: Path) -> None:
    shared = train(configure(rows, tmp_path, processes=2))
    one, two = weights(trained), weights(shared.checkpoint)
    for name, tensor in one.items():
        # each process averages over its own answers, so the weights agree closely, not to the bit
        torch.testing.assert_close(two[name], tensor, rtol=0.2, atol=0.02)
    assert [row["step"] for row in shared.log] == [1, 2, 3, 4, 5, 6]


def test_lora_trains_the_language_model_only(rows: Path, trained: Path, tmp_path: Path) -> None:
    tuned = train(configure(rows, tmp_path, base=str(trained), lora=LoraSettings(rank=2, alpha=4), learning_rate=1e-2))
    before, after = weights(trained), weights(tuned.checkpoint)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("language_model" in name and ".layers." in name for name in changed)
    assert load_checkpoint(tuned.checkpoint).format == load_checkpoint(trained).format


def test_adapter_checkpoint_loads_onto_its_base(rows: Path, trained: Path, tmp_path: Path) -> None:
    base = load_checkpoint(trained)
    adapted = add_lora(base.model, LoraSettings(rank=2, alpha=4), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    with pytest.raises(CheckpointError, match="base"):
        save_checkpoint(tmp_path / "adapter", adapted, base.processor, base.format, {})
    save_checkpoint(tmp_path / "adapter", adapted, base.processor, base.format, {"base": str(trained)})
    loaded = load_checkpoint(tmp_path / "adapter").model.state_dict()
    merged = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(loaded[name], tensor, atol=1e-6) for name, tensor in merged.items())


def test_rows_of_another_format_are_refused(rows: Path, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "rows"
    (other / "data").mkdir(parents=True)
    for file in (rows / "data").glob("*.parquet"):
        (other / "data" / file.name).write_bytes(file.read_bytes())
    card = json.loads((rows / "store.json").read_text())
    card["format"]["n"] = 3
    (other / "store.json").write_text(json.dumps(card))
    with pytest.raises(TrainingError, match="another instruction format"):
        train(configure(other, tmp_path / "out", base=str(trained)))
    with pytest.raises(TrainingError, match="different instruction formats"):
        train(replace(configure(rows, tmp_path / "out"), rows=(str(rows), str(other))))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "at least 1"),
        ({"precision": "fp8"}, "Unknown precision .fp8.. Valid choices: bf16, no"),
        ({"processes": 3}, "evenly"),
    ],
)
def test_bad_parameters(rows: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        configure(rows, tmp_path, **changes)


def test_missing_rows_and_tasks(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No rows"):
        open_rows([tmp_path / "nothing"], tmp_path)
    with pytest.raises(TrainingError, match="push_buttons"):
        RowSampler(["push_buttons"], [0], Sampling(task_weights={"push_button": 1.0}), seed=0)


def draws(sampling: Sampling, **stores: int) -> np.ndarray:
    """Fifty steps over three tasks in two row stores, `x` and `y`, that both know tasks a and b."""
    made = np.random.default_rng(3)
    tasks = [["b", "a", "c"][k] for k in made.integers(3, size=500)]
    tasks[200:] = [task.replace("c", "a") for task in tasks[200:]]
    frames = made.integers(6, size=500).tolist()
    sampler = RowSampler(tasks, frames, sampling, 5, stores or None)
    return np.concatenate([sampler.draw(step) for step in range(50)])


def test_draws_of_old_trainings_stay_what_they_were() -> None:
    for sampling, wanted in [
        (Sampling(64), "0df1e0439b64ae50"),
        (Sampling(32, 0.5, 1, {"a": 3, "c": 1}), "98fe9389448f98fb"),
    ]:
        assert hashlib.sha256(draws(sampling).astype(np.int64).tobytes()).hexdigest()[:16] == wanted
    assert TrainConfig(rows=("rows",), out_dir="out", steps=1000).identity() == "e466eb0b47874e05"


def test_dataset_weights_are_shares_of_the_batch() -> None:
    mixed = draws(Sampling(200, dataset_weights={"x": 1, "y": 3}), x=200, y=300)
    assert np.mean(mixed < 200) == pytest.approx(0.25, abs=0.02)
    within = draws(Sampling(200, dataset_weights={"x": 1, "y": 3}, task_weights={"c": 1, "a": 1}), x=200, y=300)
    assert np.mean(within < 200) == pytest.approx(0.25, abs=0.02)  # tasks share within their own data set only
    assert set(draws(Sampling(50, dataset_weights={"x": 0, "y": 2}), x=200, y=300) < 200) == {False}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"x": 1, "z": 1}, "x, y"),
        ({"x": 1}, "nothing about .'y'."),
        ({"x": 0, "y": 0}, "nothing to draw"),
        ({"x": -1, "y": 2}, "at least 0"),
        ({"x": float("nan"), "y": 2}, "at least 0"),
    ],
)
def test_bad_dataset_weights(weights: dict[str, float], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        draws(Sampling(8, dataset_weights=weights), x=200, y=300)


def test_dataset_weights_need_to_know_the_stores(rows: Path) -> None:
    with pytest.raises(TrainingError, match="row counts"):
        draws(Sampling(8, dataset_weights={"x": 1}))
    with pytest.raises(TrainingError, match="whole folders"):
        dataset_shares({"rows": 1.0}, ["a/rows", "b/rows"])
    with pytest.raises(TrainingError, match="nothing to draw of"):
        draws(Sampling(8, dataset_weights={"x": 1, "y": 1}, task_weights={"c": 1}), x=200, y=300)
    with pytest.raises(TrainingError, match="given twice"):
        count_rows([rows, rows])
    assert count_rows([rows]) == {str(rows): len(RowStore(rows))}


def test_lora_needs_a_base(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="base checkpoint"):
        train(configure(rows, tmp_path, lora=LoraSettings()))


def test_batches_depend_on_the_step_only(rows: Path, trained: Path, tmp_path: Path) -> None:
    config = configure(rows, tmp_path, sampling=Sampling(batch_size=8, points=2))
    checkpoint, table = load_checkpoint(trained), open_rows([rows], tmp_path)
    maker = BatchMaker(table, checkpoint.format, checkpoint.processor, object_names([str(rows)]), 32)
    sampler = RowSampler(table["task"], table["step"], config.sampling, config.seed)
    whole = StepBatches(config, maker, sampler)[5]
    halves = [StepBatches(config, maker, sampler, rank, 2)[5] for rank in (0, 1)]
    assert torch.equal(whole.pixels[0::2], halves[0].pixels) and torch.equal(whole.pixels[1::2], halves[1].pixels)
    assert int((whole.ids == IMAGE).sum()) == 8 * 64
    kinds = whole.kinds
    assert int((kinds == TRACE_NUMBER).sum()) == 8 * 2 * checkpoint.format.trace_points
    assert int((kinds == POINT_NUMBER).sum()) == 8 * 2 * 2
    assert set(kinds[whole.ids == 0].tolist()) <= {PROMPT}
    assert int((kinds == ACTION_NUMBER).sum()) in range(8 * 14, 8 * 16 + 1)
    assert bool((whole.ids[kinds != PROMPT] == EOS).any())
    named = {name for row in table["object_names"] for name in row}
    assert whole.dense.max() <= len(named) and bool((whole.dense > 0).any())


@pytest.mark.parametrize("template", ["llarva-workbench-v1", "llarva-workbench-v1-action-first"])
def test_kinds_of_numbers_follow_the_answer(rows: Path, template: str) -> None:
    form = replace(read_format([rows]), template=template)
    kinds = number_kinds(form, "joint_velocity")
    action, trace = (ACTION_NUMBER,) * 8 * form.n, (TRACE_NUMBER,) * 2 * form.trace_points
    assert kinds == {16: action, 24: action + trace if template.endswith("action-first") else trace + action}
    maker = BatchMaker([], form, load_checkpoint(pretrained("tabletop")).processor, [], 8)  # type: ignore[arg-type]
    for with_trace in (False, True):
        answer = form.answer(np.zeros((4, 2)) if with_trace else None, np.zeros((2, 8)), "joint_velocity")
        row = {"id": "a/0", "answer": answer, "control_mode": "joint_velocity"}
        assert maker.kinds(row) == kinds[24 if with_trace else 16]
    with pytest.raises(TrainingError, match="holds 1 numbers; .* has 16 or 24"):
        maker.kinds({"id": "a/0", "answer": "<n000>", "control_mode": "joint_velocity"})


def test_loaders_change_no_batch(rows: Path, trained: Path, tmp_path: Path) -> None:
    config = configure(rows, tmp_path, sampling=Sampling(batch_size=4), loaders=2)
    checkpoint, table = load_checkpoint(trained), open_rows([rows], tmp_path)
    maker = BatchMaker(table, checkpoint.format, checkpoint.processor, object_names([str(rows)]), 32)
    batches = StepBatches(config, maker, RowSampler(table["task"], table["step"], config.sampling, 0))
    for step, batch in zip(range(3, config.steps), batches.loader(3), strict=True):
        assert torch.equal(batch.ids, batches[step].ids) and torch.equal(batch.pixels, batches[step].pixels)


def test_padding_changes_no_loss(rows: Path, trained: Path, tmp_path: Path) -> None:
    config = configure(rows, tmp_path, sampling=Sampling(batch_size=2, points=1))
    checkpoint, table = load_checkpoint(trained), open_rows([rows], tmp_path)
    maker = BatchMaker(table, checkpoint.format, checkpoint.processor, object_names([str(rows)]), 32)
    batch = StepBatches(config, maker, RowSampler(table["task"], table["step"], config.sampling, 0))[0]
    module = TrainingModule(checkpoint.model, maker.numbers, LossWeights(dense=0), 0, 32).eval()
    pad = torch.zeros(2, 9, dtype=torch.long)
    with torch.no_grad():
        plain = module(batch.pixels, batch.ids, batch.kinds, batch.dense)
        padded = module(batch.pixels, torch.cat([batch.ids, pad], 1), torch.cat([batch.kinds, pad], 1), batch.dense)
    torch.testing.assert_close(plain["loss"], padded["loss"], rtol=1e-5, atol=1e-5)


def test_dense_and_positions_reach_their_modules() -> None:
    model = make_tiny(SMALL, 300, IMAGE, list(range(4, 260)), seed=0)
    with torch.no_grad():
        features = model.get_image_features(torch.zeros(1, 3, 128, 128), return_dict=True).pooler_output[0]
    # a blank image says the same everywhere; what differs between patches are the positions
    assert float((features[0] - features[9]).abs().max()) > 0.1


def test_learning_rate_ends_at_zero() -> None:
    shares = [schedule(step, steps=100, warmup_steps=10, decay_share=0.5) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[50] == 1.0 and shares[99] < 0.01
    assert schedule(99, steps=100, warmup_steps=10, decay_share=0.0) == 1.0


def test_damaged_checkpoints(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in trained.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="llarva-v7"):
        load_checkpoint(broken, template="llarva-v7")
    (broken / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(broken)
    (broken / "llarva.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_card(broken)


def test_interrupted_save_leaves_the_old_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(trained)
    folder = save_checkpoint(tmp_path / "kept", loaded.model, loaded.processor, loaded.format, {"which": "old"})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, loaded.model, loaded.processor, loaded.format, {"which": "new"})
    monkeypatch.undo()
    assert load_checkpoint(folder).info["which"] == "old"


def test_saving_replaces_checkpoints_only(trained: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(trained)
    (tmp_path / "notes").write_text("mine")
    for target in (tmp_path, tmp_path / "notes"):
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            save_checkpoint(target, loaded.model, loaded.processor, loaded.format, {})
    assert (tmp_path / "notes").read_text() == "mine"


def test_shipped_checkpoint_is_small_and_whole() -> None:
    folder = pretrained("tabletop")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 30e6
    checkpoint = load_checkpoint(folder)
    assert checkpoint.format.template == "llarva-workbench-v1"
    assert not [file for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pkl"}]
