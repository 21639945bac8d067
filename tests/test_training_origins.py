"""A training knows where it came from, and its states survive kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import configure, rows, trained  # noqa: F401

from llarva.models.adapters import LoraSettings
from llarva.training.loop import train
from llarva.training.origins import ORIGINS, checkpoint_fingerprint
from llarva.training.sampling import TrainingError
from llarva.training.state import load_state, newest_state, save_state


def test_another_base_is_refused(rows: Path, trained: Path, tmp_path: Path) -> None:  # noqa: F811
    base = tmp_path / "base"
    shutil.copytree(trained, base)
    print_of_base = checkpoint_fingerprint(base)
    assert print_of_base == checkpoint_fingerprint(trained)
    tune = {"base": str(base), "steps": 2, "lora": LoraSettings(rank=2, alpha=4)}
    for wrong in ("0" * 16, print_of_base[:4]):
        with pytest.raises(TrainingError, match=print_of_base):
            train(configure(rows, tmp_path / "out", base_fingerprint=wrong, **tune))
    done = train(configure(rows, tmp_path / "out", base_fingerprint=print_of_base[:8], **tune))
    assert json.loads((tmp_path / "out" / ORIGINS).read_text())["base_fingerprint"] == print_of_base
    other = train(configure(rows, tmp_path / "other", seed=5, steps=1)).checkpoint
    shutil.copy(other / "model.safetensors", base / "model.safetensors")
    with pytest.raises(TrainingError, match="began from"):
        train(configure(rows, tmp_path / "out", **tune))
    assert done.checkpoint.is_dir()


def test_other_rows_and_results_are_refused(rows: Path, trained: Path, tmp_path: Path) -> None:  # noqa: F811
    moved = tmp_path / "rows"
    shutil.copytree(rows, moved)
    train(configure(moved, tmp_path / "out", steps=1))
    card = json.loads((moved / "store.json").read_text())
    card["config"]["note"] = "built again"
    (moved / "store.json").write_text(json.dumps(card))
    with pytest.raises(TrainingError, match="other rows"):
        train(configure(moved, tmp_path / "out", steps=1))
    shutil.copytree(trained, tmp_path / "taken" / "checkpoint")
    with pytest.raises(TrainingError, match="another training"):
        train(configure(rows, tmp_path / "taken", steps=1))


def save_forever(folder: Path, tell: int) -> None:
    """Go on from the newest state and save one after the other, telling each step once its state is there."""
    layer = torch.nn.Linear(400, 400)
    adam = torch.optim.AdamW(layer.parameters())
    newest = newest_state(folder)
    done = load_state(newest, layer, [adam], "p") if newest else 0
    for step in range(done + 1, 10**6):
        with torch.no_grad():
            layer.weight.fill_(step)
        layer(torch.ones(1, 400)).sum().backward()
        adam.step()
        with torch.no_grad():
            layer.weight.fill_(step)
        save_state(folder, step, layer, [adam], "p")
        os.write(tell, f"{step}\n".encode())


def test_states_survive_kills_while_they_are_written(tmp_path: Path) -> None:
    moments, step = np.random.default_rng(), 0
    torch.set_num_threads(1)
    for _ in range(12):
        listen, tell = os.pipe()
        child = os.fork()
        if child == 0:
            save_forever(tmp_path, tell)
        os.close(tell)
        with open(listen) as heard:
            told = int(heard.readline())
            assert told == step + 1
            time.sleep(float(moments.uniform(0, 0.1)))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told = max([told, *map(int, heard.read().split())])
        layer, newest = torch.nn.Linear(400, 400), newest_state(tmp_path)
        assert newest is not None
        step = load_state(newest, layer, [torch.optim.AdamW(layer.parameters())], "p")
        # what was told is there, and what is there is whole
        assert step >= told and bool((layer.weight == step).all())
    save_state(tmp_path, step + 1, layer, [], "p")
    assert not list(tmp_path.glob("*.partial")) and len(list(tmp_path.glob("step-*"))) == 2
