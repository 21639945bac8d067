"""Original LLaVA folders: the same logits as plain torch on the original tensors, and every fault by its name."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import original_llava as original
import pytest
import torch
from tiny_backbones import llama_tokenizer
from torch import Tensor

from llarva.evaluation.players import fingerprint
from llarva.metrics import read_metrics
from llarva.models.backbones import BackboneError, load, load_model_folder
from llarva.models.checkpoints import CARD, load_checkpoint
from llarva.models.llava_folders import convert_llava
from llarva.models.llava_tensors import ConversionError, new_name
from llarva.models.released import ConvertConfig, convert_checkpoint, wording_losses
from llarva.policy import Policy
from llarva.robots import get_robot
from llarva.runs import run_notebook

Parts = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def parts() -> Parts:
    generator = torch.Generator().manual_seed(3)
    text = original.text_tensors(len(llama_tokenizer()), generator)
    return {"text": text, "clip": original.clip_tensors(generator), "lora": original.lora_tensors(generator, text),
            "projector": original.projector_tensors(generator)}


def write_lora(root: Path, parts: Parts, end: str = ".bin", base_end: str = ".bin") -> dict[str, Path]:
    """LLARVA's release: a LoRA and the projector, on a sharded Vicuna, beside a CLIP."""
    lora, base = root / "llava-lora", root / "vicuna"
    original.write_text_files(base, mm_projector_type=None)
    original.save(parts["text"], base, "pytorch_model" if base_end == ".bin" else "model", base_end, shards=3)
    original.write_text_files(lora)
    for file in lora.glob("tokenizer*"):
        file.unlink()
    original.save(parts["lora"], lora, "adapter_model", end)
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in parts["projector"].items()}
    original.save(prefixed, lora, "non_lora_trainables", end)
    (lora / "adapter_config.json").write_text(json.dumps({"r": original.RANK, "lora_alpha": original.ALPHA}))
    return {"folder": lora, "base": base, "vision": original.write_clip(root / "clip", parts["clip"])}


def write_merged(root: Path, parts: Parts, end: str, with_tower: bool) -> dict[str, Path]:
    """A merged model, the vision tower's tensors inside or only beside it."""
    folder, tensors = root / "llava", {**parts["text"], **parts["projector"]}
    if with_tower:
        prefix = "model.vision_tower.vision_tower."
        tensors |= {prefix + n: t for n, t in parts["clip"].items() if n.startswith("vision_model")}
    original.write_text_files(folder)
    original.save(tensors, folder, "pytorch_model" if end == ".bin" else "model", end, shards=2)
    clip = parts["clip"] if not with_tower else {n: torch.zeros_like(t) for n, t in parts["clip"].items()}
    return {"folder": folder, "vision": original.write_clip(root / "clip", clip, ".safetensors")}


def compare(out: Path, parts: Parts, lora: bool) -> None:
    """Ask both models about a wide picture."""
    backbone = load(out, (30, 60), dtype=torch.float32)
    picture = np.random.default_rng(5).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    ids = backbone.reader.encode_prompt("<image>\nYou are a Franka robot. Where to?")
    image = backbone.model.config.image_token_id
    pixels = backbone.reader.pixels(picture[None])
    with torch.no_grad():
        found = backbone.model(input_ids=torch.tensor([ids]), **pixels).logits[0]
    first, last = ids.index(image), len(ids) - ids[::-1].index(image)
    assert last - first == 9 and set(ids[first:last]) == {image}
    seen = original.see(pixels["pixel_values"][0], parts["clip"], parts["projector"])
    wanted = original.logits([*ids[:first], -200, *ids[last:]], seen, parts["text"], parts["lora"] if lora else None)
    vocabulary = wanted.shape[1]
    assert torch.allclose(found[:, :vocabulary], wanted, atol=2e-4), (found[:, :vocabulary] - wanted).abs().max()
    assert wanted.std() > 0.3 and found.shape[1] % 64 == 0
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))  # the rows that were added never win


@pytest.mark.parametrize(("end", "base_end"), [(".bin", ".bin"), (".safetensors", ".safetensors")])
def test_a_lora_and_its_projector(parts: Parts, tmp_path: Path, end: str, base_end: str) -> None:
    places = write_lora(tmp_path, parts, end, base_end)
    out = convert_llava(out=tmp_path / "out", shard_bytes=20_000, **places)
    assert len(list(out.glob("*.safetensors"))) > 3 and not list(out.glob("*.bin"))
    compare(out, parts, lora=True)
    with pytest.raises(AssertionError):
        compare(out, parts, lora=False)


@pytest.mark.parametrize("with_tower", [True, False])
@pytest.mark.parametrize("end", [".bin", ".safetensors"])
def test_a_merged_model(parts: Parts, tmp_path: Path, end: str, with_tower: bool) -> None:
    out = convert_llava(out=tmp_path / "out", **write_merged(tmp_path, parts, end, with_tower))
    compare(out, parts, lora=False)


def test_the_oldest_pickles_too(parts: Parts, tmp_path: Path) -> None:
    places = write_lora(tmp_path, parts)
    path = places["folder"] / "adapter_model.bin"
    torch.save(parts["lora"], path, _use_new_zipfile_serialization=False)
    compare(convert_llava(out=tmp_path / "out", **places), parts, lora=True)


def test_half_precision_is_kept_or_chosen(parts: Parts, tmp_path: Path) -> None:
    def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}

    halves = {kind: half(some) for kind, some in parts.items()}
    places = write_lora(tmp_path, halves)
    kept = load_model_folder(convert_llava(out=tmp_path / "kept", **places))
    chosen = load_model_folder(convert_llava(out=tmp_path / "chosen", dtype=torch.bfloat16, **places))
    assert {p.dtype for p in kept.parameters()} == {torch.float16}
    assert {p.dtype for p in chosen.parameters()} == {torch.bfloat16}


def test_frame_and_padding_are_those_of_training(parts: Parts, tmp_path: Path) -> None:
    places = write_lora(tmp_path, parts)
    reader = load(convert_llava(out=tmp_path / "out", **places), (30, 60)).reader
    text = reader.tokenizer.decode(reader.encode_prompt("<image>\nGo?"))
    assert "curious user" in text and text.rstrip().endswith("ASSISTANT:")
    assert reader.image_processor.do_pad and reader.tokenizer.padding_side == "right"
    assert reader.special.pad == 0 and reader.special.eos == 2
    other = load(convert_llava(out=tmp_path / "agent", chat="llava-v1", padding="crop", **places), (30, 60)).reader
    assert "curious human" in other.chat_template and not other.image_processor.do_pad


def damaged(places: dict[str, Path], fault: str, parts: Parts) -> dict[str, Any]:
    """The folders of `write_lora` with one thing wrong."""
    folder, base, vision = places["folder"], places["base"], places["vision"]
    given: dict[str, Any] = dict(places)
    if fault == "shard":
        (base / "pytorch_model-00002-of-00003.bin").unlink()
    elif fault == "no base":
        del given["base"]
    elif fault == "no projector":
        (folder / "non_lora_trainables.bin").unlink()
    elif fault == "unknown":
        more = {**parts["projector"], "model.mm_projector.4.bias": torch.ones(2)}
        torch.save(more, folder / "non_lora_trainables.bin")
    elif fault == "missing":
        path = base / "pytorch_model-00001-of-00003.bin"
        part = torch.load(path, weights_only=True)
        torch.save({n: t for n, t in part.items() if "embed_tokens" not in n}, path)
    elif fault == "shape":
        other = {**parts["projector"], "model.mm_projector.0.bias": torch.ones(7)}
        torch.save(other, folder / "non_lora_trainables.bin")
    elif fault == "lora shape":
        name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
        torch.save({**parts["lora"], name: torch.ones(5, original.RANK)}, folder / "adapter_model.bin")
    elif fault == "half":
        name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
        torch.save({n: t for n, t in parts["lora"].items() if n != name}, folder / "adapter_model.bin")
    elif fault == "projector type":
        original.write_text_files(folder, mm_projector_type="linear")
    elif fault == "start tokens":
        original.write_text_files(folder, mm_use_im_start_end=True)
    elif fault == "feature":
        original.write_text_files(folder, mm_vision_select_feature="cls")
    elif fault == "ratio":
        original.write_text_files(folder, image_aspect_ratio="anyres")
    elif fault == "tower":
        (vision / "pytorch_model.bin").unlink()
    elif fault == "config":
        (folder / "config.json").write_text("{")
    elif fault == "tokenizer":
        for file in base.glob("tokenizer*"):
            file.unlink()
    elif fault == "dora":
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_dora": True}))
    return given


@pytest.mark.parametrize(("fault", "says"), [
    ("shard", r"1 of 3 shards: pytorch_model-00002-of-00003\.bin"),
    ("no base", "holds a LoRA.*base"),
    ("no projector", "without non_lora_trainables"),
    ("unknown", r"1 tensors have no place.*mm_projector\.4\.bias"),
    ("missing", r"1 tensors are missing, such as model\.language_model\.embed_tokens\.weight"),
    ("shape", r"linear_1\.bias has the shape \[7\].*\[32\]"),
    ("lora shape", r"LoRA of model\.language_model\.layers\.1\.mlp\.up_proj\.weight.*\[5, 32\].*\[48, 32\]"),
    ("half", r"one half of the LoRA of .*layers\.1\.mlp\.up_proj"),
    ("projector type", "mm_projector_type.*'linear'.*mlp2x_gelu"),
    ("start tokens", "mm_use_im_start_end.*True.*False"),
    ("feature", "mm_vision_select_feature.*'cls'.*patch"),
    ("ratio", "image_aspect_ratio.*'anyres'.*pad"),
    ("tower", "clip holds no weights"),
    ("config", r"config\.json is not valid JSON"),
    ("tokenizer", r"No tokenizer\.json or tokenizer\.model"),
    ("dora", "use_dora = True"),
])  # fmt: skip
def test_faults_are_named_and_nothing_is_left(parts: Parts, tmp_path: Path, fault: str, says: str) -> None:
    given = damaged(write_lora(tmp_path, parts), fault, parts)
    with pytest.raises(ConversionError, match=says):
        convert_llava(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


class Trap:
    """Would create a file when unpickled the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_runs_nothing(parts: Parts, tmp_path: Path, zipped: bool) -> None:
    places, sprung = write_lora(tmp_path, parts), tmp_path / "sprung"
    path = places["folder"] / "non_lora_trainables.bin"
    if zipped:
        torch.save({**parts["projector"], "trap": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps({"trap": Trap(sprung)}))
    with pytest.raises(ConversionError, match="nothing else is accepted"):
        convert_llava(out=tmp_path / "out", **places)
    assert not sprung.exists()


def test_an_existing_folder_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    places = write_lora(tmp_path, parts)
    with pytest.raises(ConversionError, match="exists already"):
        convert_llava(out=places["base"], **places)
    with pytest.raises(ConversionError, match="needs no base"):
        convert_llava(out=tmp_path / "out", folder=places["base"], base=places["folder"], vision=places["vision"])


def test_names() -> None:
    assert new_name("model.layers.3.self_attn.rotary_emb.inv_freq") is None
    assert new_name("base_model.model.lm_head.weight") == "lm_head.weight"
    assert new_name("visual_projection.weight") is None


def test_a_converted_release_drives_and_can_be_asked_both_ways(parts: Parts, tmp_path: Path) -> None:
    places = {name: str(path) for name, path in write_lora(tmp_path, parts).items()}
    config = ConvertConfig(**places, out_dir=str(tmp_path / "run"), image_size=(30, 60), half=False)
    told = convert_checkpoint(config)
    assert convert_checkpoint(config) == told  # an interrupted conversion goes on
    with pytest.raises(ConversionError, match="another conversion; it differs in chat, half"):
        convert_checkpoint(replace(config, half=True, chat="llava-v1"))
    with pytest.raises(ConversionError, match="takes the folder of CLIP"):
        replace(config, vision=None)
    with pytest.raises(BackboneError, match="is an original LLaVA; convert it with the folder of its CLIP"):
        convert_checkpoint(replace(config, base=None, vision=None, out_dir=str(tmp_path / "second")))
    second = convert_checkpoint(replace(config, out_dir=str(tmp_path / "second")))  # who failed has converted nothing
    assert fingerprint(load_checkpoint(second["checkpoint"])) == fingerprint(load_checkpoint(told["checkpoint"]))
    card = tmp_path / "run" / "checkpoint" / CARD
    said = card.read_text()
    card.write_text(json.dumps(json.loads(said) | {"info": {}}))
    with pytest.raises(ConversionError, match="was not made by a conversion"):
        convert_checkpoint(config)
    card.write_text(said)
    read_otherwise = load_checkpoint(told["checkpoint"], template="llarva-v7")
    assert fingerprint(read_otherwise) == fingerprint(load_checkpoint(told["checkpoint"], template="llarva-v7"))
    other = replace(read_otherwise, processor=replace(read_otherwise.processor, chat_template="{{ messages }}"))
    assert fingerprint(other) != fingerprint(read_otherwise), "asked in another frame it answers otherwise"
    checkpoint = load_checkpoint(told["checkpoint"], template="llarva-v7")
    policy = Policy(checkpoint, "joint_velocity", with_trace=False)
    policy.reset(["push the button"])
    image = np.random.default_rng(1).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    state = np.array(get_robot("panda").home, np.float32)
    chunk = policy.act([{"image": image, "state": state, "gripper_open": np.ones(1)}])[0]
    assert chunk.actions.shape == (1, 8)
    question = {"instruction": "push", "states": np.zeros((1, 8)), "control_mode": "joint_velocity"}
    losses = wording_losses(checkpoint, image[None], [{**question, "with_trace": False}], [chunk.text])
    assert len(losses) == 4 == len(set(losses.values()))


def test_the_run_notebook(parts: Parts, tmp_path: Path) -> None:
    places = {name: str(path) for name, path in write_lora(tmp_path, parts).items()}
    run_notebook("convert", tmp_path / "run", {**places, "image_height": 30, "image_width": 60})
    saved = read_metrics(tmp_path / "run")
    assert saved["finished"] and saved["metrics"]["total"] > 10_000
    model = load_checkpoint(saved["metrics"]["checkpoint"]).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
