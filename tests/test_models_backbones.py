"""Pre-trained families: loaded from folders, taught a little, saved, merged, and put to work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding_models import plain_answers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_backbones import PARTS, llava_parts, write_backbone
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llarva.decoding import Decoder
from llarva.errors import LlarvaError
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range
from llarva.models.backbones import (
    BackboneError,
    count_parameters,
    create,
    hidden_states,
    llava_images,
    load,
    load_model_folder,
    projectors,
    text_model,
    vision_model,
)
from llarva.models.chat import ChatError, conversation, conversation_name
from llarva.models.checkpoints import (
    CheckpointError,
    adopt_backbone,
    load_checkpoint,
    reworded,
    save_checkpoint,
)
from llarva.models.readers import Reader
from llarva.models.text import PROMPT, TEXT, Turn
from llarva.policy import Policy
from llarva.robots import get_robot
from llarva.runs import run_notebook

MODE, SIZE = "joint_velocity", (48, 64)
FORMAT = InstructionFormat("llarva-v7", DecimalNumbers(), "panda", 5, 1, 8, SIZE)
WORKBENCH = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 2, 1, 3, SIZE)
TURN = Turn("\nWhere is it?", "The next action step: [0.1, -2.0]")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    for family in PARTS:
        write_backbone(family, root / family, shard="40KB")
    return {family: root / family for family in PARTS}


def look(seed: int = 0) -> dict[str, Any]:
    image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return {"image": image, "state": np.array(get_robot("panda").home, np.float32), "gripper_open": np.ones(1)}


def batch(reader: Reader, turns: list[list[Turn]]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    rows = [reader.encode_row(some, range(0)) for some in turns]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [reader.special.pad] * (length - len(ids)) for ids, _ in rows])
    kinds = torch.tensor([kinds + [PROMPT] * (length - len(kinds)) for _, kinds in rows])
    pixels = reader.pixels(np.stack([look(k)["image"] for k in range(len(turns))]))
    return pixels, ids, kinds


@pytest.mark.parametrize("family", PARTS)
def test_sharded_folders_come_back(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    saved = write_backbone(family, tmp_path / family)
    backbone = load(folders[family], SIZE)
    assert len(list(folders[family].glob("*.safetensors"))) > 3
    for (name, one), two in zip(saved.state_dict().items(), backbone.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    counted = count_parameters(backbone.model)
    assert sum(n for part, n in counted.items() if part != "total") == counted["total"]
    assert projectors(backbone.model) and text_model(backbone.model) is not vision_model(backbone.model)


@pytest.mark.parametrize("family", PARTS)
def test_rows_begin_with_their_prompt_and_end_with_their_answer(folders: dict[str, Path], family: str) -> None:
    reader = load(folders[family], SIZE).reader
    ids, kinds = reader.encode_row([TURN], range(0))
    prompt = reader.encode_prompt("<image>" + TURN.prompt)
    assert ids[: len(prompt)] == prompt and set(kinds[: len(prompt)]) == {PROMPT}
    assert set(kinds[len(prompt) :]) == {TEXT} and ids[-1] == reader.special.eos
    texts = reader.vocabulary_texts()
    assert "".join(texts[k] for k in ids[len(prompt) : -1]) == reader.lead + TURN.answer
    assert ids.count(reader.special.image) == reader.picture.count


@pytest.mark.parametrize("family", PARTS)
@given(answers=st.lists(st.text("The next[]-.,: 0123456789", min_size=1).filter(lambda t: t.strip() == t), min_size=1,
                        max_size=3))
@settings(max_examples=25, deadline=None)
def test_every_answer_is_found_where_it_is(folders: dict[str, Path], family: str, answers: list[str]) -> None:
    if family not in READERS:
        READERS[family] = load(folders[family], SIZE).reader
    reader = READERS[family]
    answers = answers[:1] if reader.family.single_turn else answers
    ids, kinds = reader.encode_row([Turn("\nGo on: " + a, a) for a in answers], range(0))
    texts, found, current = reader.vocabulary_texts(), [], ""
    for token, kind, after in zip(ids, kinds, [*kinds[1:], PROMPT], strict=True):
        current += texts[token] if kind == TEXT else ""
        if kind == TEXT and after == PROMPT:
            found.append(current)
            current = ""
    assert found == [reader.lead + answer for answer in answers]


READERS: dict[str, Reader] = {}


@pytest.mark.parametrize("family", PARTS)
def test_padding_and_neighbours_change_nothing(folders: dict[str, Path], family: str) -> None:
    backbone = load(folders[family], SIZE)
    short, long = [TURN], [Turn(TURN.prompt + " Or is it there?", TURN.answer + ", [3.0, 4.0]")]
    with torch.no_grad():
        pixels, ids, kinds = batch(backbone.reader, [long, short])
        together = hidden_states(backbone.model, pixels, ids, kinds)[1]
        one = [torch.tensor([row]) for row in backbone.reader.encode_row(short, range(0))]
        alone = hidden_states(backbone.model, backbone.reader.pixels(look(1)["image"][None]), *one)[0]
    assert torch.allclose(together[: len(alone)], alone, atol=1e-4)


def teach(model: Any, reader: Reader, steps: int = 5, rate: float = 3e-3) -> list[float]:
    """A few steps on two rows; returns the losses."""
    pixels, ids, kinds = batch(reader, [[TURN], [Turn("\nAnd now?", "The next action step: [0.5, 1.0]")]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    losses = []
    for _ in range(steps):
        logits = inner.get_output_embeddings()(hidden_states(inner, pixels, ids, kinds))
        labels = torch.where(kinds != PROMPT, ids, -100)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("family", PARTS)
def test_a_checkpoint_is_taught_saved_loaded_and_drives(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    folder = adopt_backbone(folders[family], tmp_path / "checkpoint", FORMAT)
    checkpoint = load_checkpoint(folder)
    assert isinstance(checkpoint.processor, Reader) and checkpoint.info["backbone"]
    losses = teach(checkpoint.model.train(), checkpoint.processor)
    assert losses[-1] < losses[0]
    saved = save_checkpoint(tmp_path / "taught", checkpoint.model.eval(), checkpoint.processor, FORMAT, {"steps": 5})
    again = load_checkpoint(saved, template="llarva-v7")
    policies = [Policy(c, MODE, with_trace=False) for c in (checkpoint, again)]
    for policy in policies:
        policy.reset(["push the button"])
    first, second = (policy.act([look()])[0] for policy in policies)
    assert first.text == second.text and first.actions.shape == (1, 8)
    assert first.text.startswith("The next action step: [")


@pytest.mark.parametrize("family", PARTS)
def test_the_convert_run_takes_folders_of_transformers(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    asked = {"template": "llarva-workbench-v1", "history": 1, "n": 4, "trace_points": 8}
    run_notebook("convert", tmp_path / "run", {"folder": str(folders[family]), **asked})
    made = load_checkpoint(tmp_path / "run" / "checkpoint", template="llarva-workbench-v1")
    before = load_model_folder(folders[family]).state_dict()
    after = made.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert made.info["conversion"]["folder"] == str(folders[family]) and Policy(made, MODE).execute == 4


@pytest.mark.parametrize("family", PARTS)
def test_the_decoder_says_what_the_library_says(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(adopt_backbone(folders[family], tmp_path / "checkpoint", WORKBENCH))
    for runner in ("library", "auto"):
        decoder = Decoder(checkpoint, MODE, runner=runner)
        states = np.zeros((2, 8), np.float32)
        prompts = [WORKBENCH.prompt(text, states, MODE) for text in ("go", "push the very red button")]
        images = np.stack([look(k)["image"] for k in range(2)])
        decoded = decoder.generate(images, prompts)
        assert decoded.token_ids == plain_answers(checkpoint, decoder, images, prompts)
        for row in range(2):
            answer = WORKBENCH.parse(decoded.texts[row], MODE)
            assert answer.trace is not None and answer.trace.shape == (3, 2)


def test_numbers_become_tokens_of_a_backbone(folders: dict[str, Path], tmp_path: Path) -> None:
    ranges = {"trace": Range((0.0,) * 2, (64.0, 48.0)), f"state:{MODE}": Range((-3.0,) * 8, (3.0,) * 8),
              f"action:{MODE}": Range((-1.0,) * 8, (1.0,) * 8)}
    bins = replace(WORKBENCH, numbers=BinNumbers(32, ranges))
    for family in ("llava", "smolvlm"):
        checkpoint = load_checkpoint(adopt_backbone(folders[family], tmp_path / family, bins))
        tokenizer = checkpoint.processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids(list(bins.number_tokens()))
        assert ids == list(range(ids[0], ids[0] + 32))
        assert checkpoint.model.get_output_embeddings().weight.shape[0] >= len(tokenizer)
        policy = Policy(checkpoint, MODE)
        policy.reset(["go"])
        assert policy.act([look()])[0].actions.shape == (1, 8)
    with pytest.raises(CheckpointError, match="number tokens already"):
        adopt_backbone(tmp_path / "llava", tmp_path / "twice", bins)


def test_a_processor_of_transformers_reads_the_same(folders: dict[str, Path]) -> None:
    reader = load(folders["llava"], SIZE).reader
    library = LlavaProcessor(reader.image_processor, reader.tokenizer, patch_size=14,
                             vision_feature_select_strategy="default", num_additional_image_tokens=1)
    picture = look(3)["image"]
    theirs = library(images=[picture], text="<image>\npush", return_tensors="pt")
    assert torch.equal(theirs["pixel_values"], reader.pixels(picture[None])["pixel_values"])
    assert int((theirs["input_ids"] == reader.special.image).sum()) == reader.picture.count


def test_padding_is_a_choice(folders: dict[str, Path]) -> None:
    white = np.full((1, *SIZE, 3), 255, np.uint8)
    found = {padding: load(folders["llava"], SIZE, padding=padding).reader.pixels(white)["pixel_values"][0]
             for padding in ("mean", "crop", "stretch")}  # fmt: skip
    assert all(pixels.shape == (3, 42, 42) for pixels in found.values())
    assert found["mean"][:, 0].abs().max() < 0.02 and found["mean"][:, 21].min() > 1.5
    assert found["crop"].min() > 1.5 and found["stretch"].min() > 1.5
    with pytest.raises(BackboneError, match="'black'.*crop, mean, stretch"):
        llava_images(42, "black")
    with pytest.raises(BackboneError, match="padding='mean' is for LLaVA"):
        load(folders["qwen-vl"], SIZE, padding="mean")


def test_the_seed_decides_the_weights() -> None:
    config, _, _ = llava_parts()
    one, two, other = (create(config, seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    empty = create(config, device="meta")
    assert isinstance(empty, LlavaForConditionalGeneration) and empty.device.type == "meta"


def break_folder(folder: Path, fault: str) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    config = json.loads((folder / "config.json").read_text())
    if fault == "shard":
        shards[1].unlink()
    elif fault == "cut":
        shards[1].write_bytes(shards[1].read_bytes()[:-40])
    elif fault == "bin":
        for shard in shards:
            shard.unlink()
        index.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif fault == "missing":
        table = json.loads(index.read_text())
        table["weight_map"] = {n: f for n, f in table["weight_map"].items() if "lm_head" not in n}
        index.write_text(json.dumps(table))
        for shard in shards:
            kept = {name: tensor for name, tensor in load_file(shard).items() if "lm_head" not in name}
            save_file(kept, shard, metadata={"format": "pt"})
    elif fault == "type":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    elif fault == "none":
        (folder / "config.json").unlink()
    elif fault == "original":
        (folder / "config.json").write_text(json.dumps({"model_type": "llava_llama", "hidden_size": 8}))


@pytest.mark.parametrize(("fault", "says"), [
    ("shard", "model-00002"), ("cut", "cannot be loaded"), ("bin", r"pytorch_model\.bin.*safetensors"),
    ("missing", "1 missing keys, such as lm_head"), ("type", "'bert'"), ("none", r"no config\.json"),
    ("original", "original LLaVA; convert"),
])  # fmt: skip
def test_broken_folders_are_named(folders: dict[str, Path], tmp_path: Path, fault: str, says: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders["llava"], folder)
    break_folder(folder, fault)
    with pytest.raises(BackboneError, match=says):
        load_model_folder(folder)


def test_nothing_of_a_folder_is_executed(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    shutil.copytree(folders["llava"], folder)
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Evil: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "modeling_evil.Evil", "AutoModelForImageTextToText": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert isinstance(load(folder, SIZE).model, LlavaForConditionalGeneration)
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LlarvaError, match="'evil'"):
        load(folder, SIZE)
    assert not (tmp_path / "sprung").exists()


def test_the_frames_of_training_and_evaluation(folders: dict[str, Path], tmp_path: Path) -> None:
    trained = load_checkpoint(adopt_backbone(folders["llava"], tmp_path / "c", FORMAT, chat="vicuna-v1"))
    asked = reworded(trained, template="llarva-v9", chat="llava-v1")
    assert conversation_name(asked.processor.chat_template) == "llava-v1" and asked.format.template == "llarva-v9"
    states = np.zeros((1, 8), np.float32)
    texts = []
    for checkpoint in (trained, asked):
        prompt = checkpoint.format.prompt("push", states, MODE, with_trace=False)
        ids = [k for k in checkpoint.processor.encode_prompt(prompt) if k != checkpoint.processor.special.image]
        texts.append(checkpoint.processor.tokenizer.decode(ids))
    assert "curious user" in texts[0] and "steps are [[" in texts[0] and ". Can you predict" in texts[0]
    assert "curious human" in texts[1] and "steps is [[" in texts[1] and ", can you predict" in texts[1]
    assert (trained.format.template, load_checkpoint(tmp_path / "c").format.template) == ("llarva-v7",) * 2
    with pytest.raises(ChatError, match="'vicuna'.*vicuna-v1"):
        reworded(trained, chat="vicuna")


def test_a_template_that_cannot_ask_is_refused(folders: dict[str, Path]) -> None:
    reader = load(folders["llava"], SIZE).reader
    broken = {
        "no picture": "{% for m in messages %}{{ m['content'][-1]['text'] }}{{ eos_token }}{% endfor %}",
        "other prompt": conversation("vicuna-v1").replace("ASSISTANT:{% endif %}", "BOT:{% endif %}"),
    }
    with pytest.raises(ChatError, match="must place one picture"):
        replace(reader, chat_template=broken["no picture"]).encode_prompt("<image>\nGo?")
    with pytest.raises(ChatError, match="must be the beginning"):
        _ = replace(reader, chat_template=broken["other prompt"]).lead
    single = load(folders["paligemma"], SIZE).reader
    with pytest.raises(ChatError, match="one question"):
        single.encode_row([TURN, TURN], range(0))
