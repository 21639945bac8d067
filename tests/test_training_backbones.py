"""The training loop on pre-trained families: LoRA with its projector, all weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_backbones import PARTS, write_backbone

from llarva.episodes.store import EpisodeStore
from llarva.evaluation.selftest import self_test
from llarva.instructions.dataset import RowStore, build_rows, write_rows
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.rows import BuildConfig
from llarva.models.adapters import LoraSettings
from llarva.models.backbones import projectors, vision_model
from llarva.models.checkpoints import CheckpointError, adopt_backbone, half_size, load_checkpoint, speaking_for
from llarva.policy import Policy
from llarva.robots import ControlMode, get_robot
from llarva.tabletop.demos import DemoConfig
from llarva.tabletop.recording import record_demos
from llarva.training.config import TrainConfig
from llarva.training.loop import train
from llarva.training.losses import LossWeights
from llarva.training.optimizers import make_optimizers
from llarva.training.sampling import Sampling, TrainingError
from llarva.training.state import newest_state

MODE = "joint_velocity"
FORMAT = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 1, 1, 3, (128, 128))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a few real demonstrations."""
    folder = tmp_path_factory.mktemp("rows")
    demos = record_demos(DemoConfig("push_buttons", 2, str(folder / "demos"), frames_per_episode=3, kicks=0))
    build_rows(EpisodeStore(demos.store), BuildConfig(format=FORMAT, control_modes={MODE: 1.0}), folder / "rows")
    return folder / "rows"


def base(family: str, folder: Path) -> Path:
    write_backbone(family, folder / family, shard="40KB")
    return adopt_backbone(folder / family, folder / "base", FORMAT)


def configure(rows: Path, out: Path, base: Path) -> TrainConfig:
    return TrainConfig(
        rows=(str(rows),), out_dir=str(out), steps=3, base=str(base), sampling=Sampling(batch_size=2, points=0),
        weights=LossWeights(dense=0.0), learning_rate=1e-2, warmup_steps=1, save_every=3, log_every=1, precision="no",
        threads=1,
    )  # fmt: skip


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("family", PARTS)
def test_a_backbone_goes_through_the_training_loop(family: str, four_bit: bool, rows: Path, tmp_path: Path) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    start = base(family, tmp_path)
    lora = LoraSettings(rank=4, alpha=8, dropout=0.0, projector=True, four_bit=four_bit)
    config = replace(configure(rows, tmp_path / "out", start), lora=lora)
    result = train(config)
    before, after = load_checkpoint(start).model, load_checkpoint(result.checkpoint)
    old = before.state_dict()
    moved = {name for name, tensor in after.model.state_dict().items() if not torch.equal(tensor, old[name])}
    between = tuple(f"{name}." for name in projectors(before))
    tower = next(name for name, module in before.named_modules() if module is vision_model(before)) + "."
    assert any(name.startswith(between) for name in moved) and not any("embed" in name for name in moved)
    assert not [name for name in moved if name.startswith(tower) and not name.startswith(between)]
    assert any("self_attn.q_proj" in name for name in moved)
    policy = Policy(after, MODE)
    policy.reset(["push the red button"])
    look = {"image": np.zeros((128, 128, 3), np.uint8), "state": np.array(get_robot("panda").home, np.float32),
            "gripper_open": np.ones(1)}  # fmt: skip
    assert policy.act([look])[0].actions.shape == (1, 8)


def test_all_weights_learn_and_the_same_seed_gives_the_same_bytes(rows: Path, tmp_path: Path) -> None:
    start = base("llava", tmp_path)
    config = replace(configure(rows, tmp_path / "one", start), steps=6, learning_rate=3e-3)
    one, two = train(config), train(replace(config, out_dir=str(tmp_path / "two")))
    assert one.log[-1]["loss"] < one.log[0]["loss"]
    files = [sorted(result.checkpoint.glob("*.safetensors")) for result in (one, two)]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


WITH_PROJECTOR = LoraSettings(4, 8, 0.0, projector=True)


@pytest.mark.parametrize("family", PARTS)
def test_the_projector_has_a_rate_of_its_own(family: str, rows: Path, tmp_path: Path) -> None:
    start = base(family, tmp_path)
    model = load_checkpoint(start).model
    old, between = model.state_dict(), f"{projectors(model)[0]}."
    config = replace(configure(rows, tmp_path / "out", start), lora=WITH_PROJECTOR, steps=1)
    moves = {}
    for rate in (1e-6, 1e-2):
        out = replace(config, out_dir=str(tmp_path / str(rate)), projector_learning_rate=rate)
        new = load_checkpoint(train(out).checkpoint).model.state_dict()
        moves[rate] = [max(float((new[n] - old[n]).abs().max()) for n in old if part in n)
                       for part in (between, "q_proj")]  # fmt: skip
    assert 0 < moves[1e-6][0] < 1e-5 < 1e-3 < moves[1e-2][0]
    assert moves[1e-6][1] == pytest.approx(moves[1e-2][1], rel=1e-3)


def test_a_rate_for_a_projector_that_is_not_trained_is_refused() -> None:
    with pytest.raises(TrainingError, match="no projector is trained .projectors: model.connector"):
        make_optimizers(torch.nn.Linear(2, 2), 1e-3, 0.0, None, 1e-4, projectors=["model.connector"])


@pytest.mark.parametrize(
    ("family", "lora", "precision"),
    [*((family, WITH_PROJECTOR, "bf16") for family in PARTS), ("llava", None, "bf16"), ("llava", None, "no"),
     ("llava", WITH_PROJECTOR, "no")],
)  # fmt: skip
def test_small_steps_of_a_bfloat16_base_are_kept(
    family: str, lora: LoraSettings | None, precision: str, rows: Path, tmp_path: Path
) -> None:
    start = half_size(base(family, tmp_path), tmp_path / "half")
    config = replace(configure(rows, tmp_path / "out", start), lora=lora, learning_rate=2e-5, precision=precision)
    result = train(config)
    old = load_checkpoint(start).model
    between = tuple(f"{name}." for name in projectors(old))
    with safe_open(newest_state(tmp_path / "out" / "state"), framework="pt") as file:
        kept = {name.removeprefix("model.model."): file.get_tensor(name) for name in file.keys() if "model." in name}
    trained = {name: kept[name] for name in old.state_dict() if name in kept}
    if lora is not None:
        adapted = {name.replace("modules_to_save.default.", ""): tensor for name, tensor in kept.items()}
        trained = {n: adapted[f"base_model.model.{n}"] for n in old.state_dict() if n.startswith(between)}
    assert trained and all(tensor.dtype == torch.float32 for tensor in trained.values())
    moved = [(tensor != old.state_dict()[name].float()).flatten() for name, tensor in trained.items()
             if name.startswith(between)]  # fmt: skip
    # a bias before a softmax and the like have no gradient; the rest must not stay where bfloat16 would round it back
    assert float(torch.cat(moved).float().mean()) > 0.9
    assert {tensor.dtype for tensor in load_checkpoint(result.checkpoint).model.parameters()} == {torch.bfloat16}


def test_features_of_a_frozen_tower_change_no_loss(rows: Path, tmp_path: Path) -> None:
    config = replace(configure(rows, tmp_path / "plain", base("llava", tmp_path)), lora=WITH_PROJECTOR)
    plain, kept = train(config), train(replace(config, out_dir=str(tmp_path / "kept"), cache_features=True))
    assert [row["loss"] for row in kept.log] == pytest.approx([row["loss"] for row in plain.log], abs=2e-5)
    other = replace(config, base=str(base("qwen-vl", tmp_path / "other")), out_dir=str(tmp_path / "refused"))
    with pytest.raises(TrainingError, match="cache_features is for LLaVA"):
        train(replace(other, cache_features=True))


@pytest.mark.parametrize("arrangement", ["length", "packed"])
def test_a_closing_token_that_also_pads_is_learnt(arrangement: str, rows: Path, tmp_path: Path) -> None:
    start = base("llava", tmp_path)
    tokenizer = load_checkpoint(start).processor.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(start)
    special = load_checkpoint(start).processor.special
    assert special.pad == special.eos
    config = replace(configure(rows, tmp_path / "drawn", start), sampling=Sampling(batch_size=4, points=1))
    drawn = train(config).log
    arranged = train(replace(config, out_dir=str(tmp_path / "out"), arrangement=arrangement, micro_batch=2)).log
    assert [row["loss"] for row in arranged] == pytest.approx([row["loss"] for row in drawn], abs=2e-5)


def test_what_only_a_tiny_model_learns_is_refused(rows: Path, tmp_path: Path) -> None:
    config = replace(configure(rows, tmp_path / "out", base("llava", tmp_path)), weights=LossWeights(dense=1.0))
    with pytest.raises(TrainingError, match="LlavaForConditionalGeneration set weights.dense = 0"):
        train(config)


def test_rows_of_two_robots_are_learnt_together(rows: Path, tmp_path: Path) -> None:
    lift = ControlMode("end_effector_motion", "end effector control", ("up", "gripper"), ("m", "1 = open"),
                       ("height", "force"), own_state=True)  # fmt: skip
    other = FORMAT.for_robot("ur5", (lift,))
    image = next(iter(RowStore(rows)))["image"]

    def lids(form: InstructionFormat) -> list[dict[str, object]]:
        return [
            {"id": f"lid/{k:05d}", "image": image, "episode_id": "lid", "step": k, "task": "lift_lid", "variation": 0,
             "template": form.template, "control_mode": lift.name, "object_names": [], "object_points": [],
             "segmentation": None, "prompt": form.prompt("lift the lid", [[0.2, k]], lift.name),
             "answer": form.answer([[1, 2], [3, 4], [5, 6]], [[0.1, 1.0]] * form.n, lift.name)}
            for k in range(4)
        ]  # fmt: skip

    write_rows(lids(other), other, tmp_path / "lids", {"made by": "hand"})
    start = base("llava", tmp_path)
    config = configure(rows, tmp_path / "out", start)
    both = replace(config, rows=(str(rows), str(tmp_path / "lids")), lora=LoraSettings(4, 8, 0.0))
    trained = load_checkpoint(train(both).checkpoint)
    assert trained.format == FORMAT and speaking_for(trained, "ur5").format == other
    assert self_test(trained).rows == 4
    with pytest.raises(CheckpointError, match="Unknown robot.*'sawyer'.*panda, ur5"):
        speaking_for(trained, "sawyer")
    # A base that was asked about one robot learns another one's.
    alone = train(replace(config, rows=(str(tmp_path / "lids"),), out_dir=str(tmp_path / "alone"))).checkpoint
    assert load_checkpoint(alone).format == other and "formats" not in load_checkpoint(alone).info
    longer = replace(other, n=2)
    write_rows(lids(longer), longer, tmp_path / "longer", {"made by": "hand"})
    with pytest.raises(TrainingError, match="different instruction formats"):
        train(replace(both, rows=(str(rows), str(tmp_path / "longer")), out_dir=str(tmp_path / "neither")))
