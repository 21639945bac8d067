"""Baselines: learn from the language model's rows, continue to the bit, refuse the unknown, drive as it does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baseline_sizes import KINDS, SMALL
from safetensors.torch import load_file

from llarva.baselines.checkpoints import BASELINE_CARD, Baseline, load_baseline, save_baseline
from llarva.baselines.policy import BaselinePolicy
from llarva.baselines.samples import SPREAD_FLOOR, Statistics, read_prompt
from llarva.baselines.training import BaselineConfig, start_baseline, train_baseline
from llarva.baselines.words import BaselineError
from llarva.decoding import untrained_checkpoint
from llarva.episodes.store import EpisodeStore
from llarva.evaluation.players import fingerprint, load_either, make_policy
from llarva.evaluation.rollouts import evaluate
from llarva.evaluation.rows import EvaluationError, read_rows
from llarva.evaluation.scenes import EvaluationConfig
from llarva.instructions.dataset import build_rows, fit_numbers
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.rows import BuildConfig
from llarva.models.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from llarva.models.tiny import TinySize
from llarva.policy import PolicyError
from llarva.robots import get_robot
from llarva.tabletop.demos import DemoConfig
from llarva.tabletop.recording import record_demos
from llarva.training.sampling import TrainingError, open_rows
from llarva.training.state import newest_state

MODES = {"end_effector_delta": 0.5, "joint_velocity": 0.5}
MODE = "end_effector_delta"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a few real demonstrations, in both control modes."""
    folder = tmp_path_factory.mktemp("rows")
    demos = record_demos(DemoConfig("push_buttons", 6, str(folder / "demos"), variations=(0, 1), frames_per_episode=4))
    store = EpisodeStore(demos.store)
    numbers = fit_numbers(store, list(MODES), (128, 128))
    form = InstructionFormat("llarva-workbench-v1", numbers, "panda", 2, 3, 4, (128, 128))
    config = BuildConfig(format=form, control_modes=MODES, trace_share=0.5, phrasings="first")
    build_rows(store, config, folder / "rows")
    return folder / "rows"


def configure(rows: Path, out: Path, **changes: Any) -> BaselineConfig:
    config = BaselineConfig(
        (str(rows),), str(out), steps=4, size=SMALL["act"], batch_size=4, warmup_steps=1, save_every=2, log_every=1,
        threads=1,
    )  # fmt: skip
    return replace(config, **changes)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished training of ACT."""
    return train_baseline(configure(rows, tmp_path_factory.mktemp("trained"))).checkpoint


# ---- samples


def test_samples_are_what_the_rows_say(rows: Path, tmp_path: Path) -> None:
    table = open_rows([rows], tmp_path)
    baseline, batches = start_baseline(configure(rows, tmp_path, batch_size=16), table)
    assert {table[int(i)]["control_mode"] for i in batches.indices} == {MODE}
    samples = batches[0]
    for k, index in enumerate(batches.indices[batches.sampler.draw(0)]):
        row = table[int(index)]
        prompt = baseline.format.parse_prompt(row["prompt"])
        answer = baseline.format.parse(row["answer"], MODE, prompt.with_trace)
        assert np.array_equal(samples.states[k], prompt.states) and np.array_equal(samples.actions[k], answer.actions)
        assert np.array_equal(samples.words[k], baseline.vocabulary.encode(prompt.instruction))
    assert samples.images.dtype == torch.uint8 and samples.images.shape == (16, 128, 128, 3)


def test_statistics_make_numbers_of_about_one(rows: Path, tmp_path: Path) -> None:
    baseline, batches = start_baseline(configure(rows, tmp_path, batch_size=64), open_rows([rows], tmp_path))
    normal = baseline.model.normal_actions(batches[0].actions)
    assert float(normal[..., :-1].abs().max()) < 10 and 0.3 < float(normal[..., :-1].std()) < 2
    assert torch.equal(normal[..., -1], batches[0].actions[..., -1])
    still = Statistics.of(np.ones((5, 2, 3)), np.zeros((5, 4, 3)))
    assert np.allclose(still.action_std, SPREAD_FLOOR) and len(still.action_std) == 2 and len(still.state_std) == 3


def test_short_histories_begin_with_their_oldest() -> None:
    llarva = InstructionFormat("llarva-v7", DecimalNumbers(), "panda", 5, 1, 100, (128, 128))
    state = np.linspace(0, 0.7, 8)[None]
    _, states, _ = read_prompt(llarva, llarva.prompt("go", state, "joint_velocity", False))
    assert states.shape[0] == 5 and np.allclose(states, states[-1])


def test_wrong_modes_and_tasks_are_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="'joint_position'.*end_effector_delta, joint_velocity"):
        train_baseline(configure(rows, tmp_path, control_mode="joint_position"))
    with pytest.raises(BaselineError, match="'push_button'.*push_buttons"):
        train_baseline(configure(rows, tmp_path, task_weights={"push_button": 1.0}))
    with pytest.raises(TrainingError, match="No rows"):
        train_baseline(configure(tmp_path / "nowhere", tmp_path))


# ---- training


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls(rows: Path, tmp_path: Path, kind: str) -> None:
    config = configure(rows, tmp_path, size=SMALL[kind], steps=60, batch_size=16, learning_rate=5e-3, log_every=15)
    log = train_baseline(config).log
    assert log[-1]["action"] < 0.9 * log[0]["action"]
    assert ("kl" in log[0]) == (kind == "act")


def test_same_seed_same_bytes(rows: Path, trained: Path, tmp_path: Path) -> None:
    again = train_baseline(configure(rows, tmp_path / "a", loaders=1)).checkpoint
    assert (again / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    other = weights(train_baseline(configure(rows, tmp_path / "b", seed=1)).checkpoint)
    assert not all(torch.equal(tensor, other[name]) for name, tensor in weights(trained).items())


RUN = """
from llarva.baselines.act import ActSize
from llarva.baselines.training import BaselineConfig, train_baseline
train_baseline({config!r})
"""


def test_killed_training_continues_to_the_bit(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    code = RUN.format(config=configure(rows, out, steps=30, save_every=3))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        newest = newest_state(out / "state")
        if newest is not None and int(newest.stem.split("-")[1]) >= 6:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest_state(out / "state") is not None and process.returncode == -signal.SIGKILL

    straight = train_baseline(configure(rows, tmp_path / "straight", steps=30, save_every=400))
    resumed = train_baseline(configure(rows, out, steps=30, save_every=3))
    assert [row["loss"] for row in resumed.log] == [row["loss"] for row in straight.log]
    before, after = weights(straight.checkpoint), weights(resumed.checkpoint)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_other_parameters_are_refused(rows: Path, tmp_path: Path) -> None:
    train_baseline(configure(rows, tmp_path, steps=2))
    with pytest.raises(TrainingError, match="other parameters"):
        train_baseline(configure(rows, tmp_path, steps=2, kl_weight=1.0))
    assert train_baseline(configure(rows, tmp_path, steps=2, log_every=2)).steps == 2


@pytest.mark.parametrize("changes,says", [
    ({"steps": 0}, "at least 1"), ({"loaders": -1}, "loaders"), ({"threads": 0}, "threads"),
    ({"kl_weight": -1.0}, "kl_weight"),
])
def test_bad_parameters(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        configure(tmp_path, tmp_path, **changes)


# ---- checkpoints


def test_checkpoints_come_back_whole(trained: Path, tmp_path: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {"baseline.json", "model.safetensors"}
    loaded = load_baseline(trained)
    again = load_baseline(save_baseline(tmp_path / "again", loaded))
    assert fingerprint(again) == fingerprint(loaded) and again.card() == loaded.card()
    assert not loaded.model.training and loaded.info["training"]["kind"] == "act"
    other = replace(loaded, vocabulary=replace(loaded.vocabulary, words=("x",) * len(loaded.vocabulary.words)))
    assert fingerprint(other) != fingerprint(loaded)


def test_damaged_checkpoints(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_baseline(tmp_path)
    card = json.loads((trained / BASELINE_CARD).read_text())

    def broken(name: str, card: dict[str, Any], content: bytes | None = None) -> Path:
        folder = save_baseline(tmp_path / name, load_baseline(trained))
        (folder / BASELINE_CARD).write_text(json.dumps(card))
        if content is not None:
            (folder / "model.safetensors").write_bytes(content)
        return folder

    for name, bad, says in (
        ("kind", card | {"kind": "diffusion"}, "'diffusion'.*bc_cnn"),
        ("size", card | {"size": {"depth": 3}}, "'depth'"),
        ("words", card | {"words": card["words"][1:]}, "cannot be loaded"),
        ("missing", {k: v for k, v in card.items() if k != "words"}, r"lacks \['words'\]"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load_baseline(broken(name, bad))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_baseline(broken("short", card, b"short"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="left as it is"):
        save_baseline(tmp_path / "notes", load_baseline(trained))


# ---- driving


PANDA = get_robot("panda")


def look(seed: int) -> dict[str, Any]:
    image = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return {"image": image, "state": np.array(PANDA.home, np.float32), "gripper_open": np.ones(1, np.float32)}


def test_robots_in_a_batch_are_apart(trained: Path) -> None:
    baseline = load_baseline(trained)
    words = json.loads((trained / BASELINE_CARD).read_text())["words"]
    asked = [words[0], words[1], words[2]]
    for changes in ({"execute": 2}, {"ensemble": 0.01}, {}):
        together = BaselinePolicy(baseline, MODE, 3, **changes)  # type: ignore[arg-type]
        alone = BaselinePolicy(baseline, MODE, 1, **changes)  # type: ignore[arg-type]
        together.reset(asked)
        alone.reset(asked[1:2])
        for step in range(5):
            actions, _ = together.step([look(step), look(10 + step), look(20 + step)])
            assert np.array_equal(actions[1], alone.step([look(10 + step)])[0][0])
            assert actions[0].dtype == np.float32 and actions[0][-1] in (0.0, 1.0)
        together.reset(asked[1:2], [2])
        alone.reset(asked[1:2])
        assert np.array_equal(together.step([look(7)], [2])[0][0], alone.step([look(7)])[0][0]), "nothing is left over"


def test_what_is_asked_of_the_network_is_what_rows_say(trained: Path, rows: Path, tmp_path: Path) -> None:
    baseline = load_baseline(trained)
    policy = BaselinePolicy(baseline, MODE)
    policy.reset([baseline.vocabulary.words[0]])
    asked: list[torch.Tensor] = []
    real = policy.baseline.model.predict
    policy.baseline.model.predict = lambda *a: asked.extend(a) or real(*a)  # type: ignore
    policy.act([look(0)])
    prompt = baseline.format.prompt(baseline.vocabulary.words[0], np.stack(policy._history[0]), MODE, False)
    assert np.array_equal(asked[1][0], read_prompt(baseline.format, prompt)[1])
    assert asked[1].shape == (1, 2, 7), "a short history is padded"


def test_wrong_requests_are_refused(trained: Path) -> None:
    baseline = load_baseline(trained)
    with pytest.raises(PolicyError, match="'joint_velocity'.*end_effector_delta"):
        BaselinePolicy(baseline, "joint_velocity")
    for changes in ({"execute": 4}, {"execute": 0}, {"batch": 0}, {"ensemble": -1.0}, {"ensemble": 0.1, "execute": 2}):
        with pytest.raises(PolicyError):
            BaselinePolicy(baseline, MODE, **changes)  # type: ignore[arg-type]
    policy = BaselinePolicy(baseline, MODE)
    with pytest.raises(PolicyError, match="reset first"):
        policy.step([look(0)])
    with pytest.raises(BaselineError, match="'violet'"):
        policy.reset(["violet"])


@pytest.mark.parametrize("ensemble", [None, 0.01])
def test_evaluations_take_baselines(trained: Path, tmp_path: Path, ensemble: float | None) -> None:
    config = EvaluationConfig(
        str(trained), str(tmp_path / "a"), episodes=2, batch=2, videos=1, max_steps=5, variations=(0, 1),
        ensemble=ensemble,
    )  # fmt: skip
    done = read_rows(evaluate(config, progress=False))
    assert [row["steps"] for row in done] == [5, 5] and all(row["trace_error_px"] is None for row in done)
    assert all(row["decode_ms_p50"] > 0 for row in done)
    again = read_rows(evaluate(replace(config, out_dir=str(tmp_path / "b"), batch=1), progress=False))
    assert [row["action_sha256"] for row in again] == [row["action_sha256"] for row in done]


def test_the_card_decides_who_drives(trained: Path, tmp_path: Path) -> None:
    size = TinySize(width=64, mlp_width=96, heads=4, vision_layers=1, text_layers=2)
    made = untrained_checkpoint(load_baseline(trained).format, ["go"], 0, size)
    folder = save_checkpoint(tmp_path / "llava", made.model, made.processor, made.format, {})
    config = EvaluationConfig(str(folder), "unused")
    assert isinstance(load_either(trained), Baseline) and not isinstance(load_either(folder), Baseline)
    assert isinstance(make_policy(load_either(trained), config), BaselinePolicy)
    assert not isinstance(make_policy(load_checkpoint(folder), config), BaselinePolicy)
    with pytest.raises(EvaluationError, match="for baselines"):
        make_policy(load_checkpoint(folder), replace(config, ensemble=0.01))
    for changes in ({"runner": "static"}, {"weights": "int8"}, {"number_choice": "median"}):
        with pytest.raises(EvaluationError, match="is for language-model policies|has no medians"):
            make_policy(load_baseline(trained), replace(config, **changes))  # type: ignore[arg-type]
    assert isinstance(make_policy(load_baseline(trained), replace(config, number_choice="likeliest")), BaselinePolicy)
    with pytest.raises(CheckpointError, match=r"no llarva\.json"):
        load_either(tmp_path)
