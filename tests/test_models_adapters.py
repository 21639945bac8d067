"""LoRA and QLoRA: what they touch, and that merging changes no answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_models_backbones import FORMAT, MODE, TURN, batch, folders, look, teach  # noqa: F401
from tiny_backbones import PARTS

from llarva.decoding import Decoder, plain_generate
from llarva.errors import LlarvaError
from llarva.models.adapters import LLARVA_LORA, LoraSettings, add_lora
from llarva.models.backbones import (
    hidden_states,
    load_model_folder,
    projectors,
    text_model,
    vision_model,
)
from llarva.models.checkpoints import (
    CheckpointError,
    adopt_backbone,
    load_checkpoint,
    save_checkpoint,
)
from llarva.models.pretrained import pretrained


def trained_names(model: Any) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("family", PARTS)
def test_llarvas_lora_adapts_text_and_projector_only(folders: dict[str, Path], family: str) -> None:  # noqa: F811
    model = load_model_folder(folders[family])
    adapted = add_lora(model, replace(LLARVA_LORA, rank=2, alpha=4), seed=0)
    base = adapted.get_base_model()
    inside = {id(p) for p in text_model(base).parameters()}
    linears = sum(isinstance(m, torch.nn.Linear) for m in text_model(load_model_folder(folders[family])).modules())
    named = dict(adapted.named_parameters())
    lora = [name for name in trained_names(adapted) if "lora_" in name]
    assert len(lora) == 2 * linears and all(id(named[name]) in inside for name in lora)
    rest = [name for name in trained_names(adapted) if "lora_" not in name]
    between = [name.split(".")[-1] for name in projectors(load_model_folder(folders[family]))]
    assert rest and all(any(f".{part}." in name for part in between) for name in rest)
    with_vision = add_lora(load_model_folder(folders[family]), LoraSettings(2, 4, vision=True), seed=0)
    tower = {id(p) for p in vision_model(with_vision.get_base_model()).parameters()}
    assert any(id(p) in tower for name, p in with_vision.named_parameters() if "lora_" in name)
    assert (LLARVA_LORA.rank, LLARVA_LORA.alpha, LLARVA_LORA.dropout) == (128, 256, 0.05)


@pytest.mark.parametrize("family", PARTS)
def test_merging_keeps_every_greedy_token(folders: dict[str, Path], family: str, tmp_path: Path) -> None:  # noqa: F811
    base = adopt_backbone(folders[family], tmp_path / "base", FORMAT)
    checkpoint = load_checkpoint(base)
    before = {n: t.clone() for n, t in checkpoint.model.state_dict().items()}
    adapted = add_lora(checkpoint.model, LoraSettings(4, 8, 0.0, projector=True), seed=0).train()
    assert teach(adapted, checkpoint.processor, rate=2e-2)[-1] > 0
    adapted.eval()
    save_checkpoint(tmp_path / "adapter", adapted, checkpoint.processor, FORMAT, {"base": str(base)})
    pixels, ids, kinds = batch(checkpoint.processor, [[TURN]])
    inner = adapted.get_base_model()
    with torch.no_grad():
        wanted = inner.get_output_embeddings()(hidden_states(inner, pixels, ids, kinds))
    merged = load_checkpoint(tmp_path / "adapter")
    with torch.no_grad():
        found = merged.model.get_output_embeddings()(hidden_states(merged.model, pixels, ids, kinds))
    assert torch.allclose(found, wanted, atol=1e-4)
    changed = {n for n, t in merged.model.state_dict().items() if not torch.equal(t, before[n])}
    tower = {id(p) for p in vision_model(merged.model).parameters()}
    between = {id(p) for n in projectors(merged.model) for p in merged.model.get_submodule(n).parameters()}
    moved = {id(p) for n, p in merged.model.named_parameters() if n in changed}
    assert moved and not (moved & tower) - between and moved & between
    prompt = FORMAT.prompt("push", np.zeros((1, 8), np.float32), MODE, with_trace=False)
    decoder = Decoder(merged, MODE, with_trace=False)
    wrapped = replace(checkpoint, model=inner)  # the adapter's layers at work, not merged
    for k in range(3):
        image = look(k)["image"]
        assert decoder.generate(image[None], [prompt]).token_ids[0] == plain_generate(
            wrapped, decoder.grammar, image, prompt, numbers=decoder.numbers
        )


@pytest.mark.parametrize("family", PARTS)
def test_four_bits_are_for_the_layers_of_the_text_model(folders: dict[str, Path], family: str, tmp_path: Path) -> None:  # noqa: F811
    kernels = pytest.importorskip("bitsandbytes")
    base = adopt_backbone(folders[family], tmp_path / "base", FORMAT)
    model = load_checkpoint(base, four_bit=True).model
    held = {name for name, module in model.named_modules() if isinstance(module, kernels.nn.Linear4bit)}
    plain = load_checkpoint(base).model
    inside = {id(module) for module in text_model(plain).modules()}
    linears = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and id(m) in inside}
    assert held == linears and len(held) > 4


def test_four_bits_that_cannot_be_had_are_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    with pytest.raises(CheckpointError, match="tiny model"):
        load_checkpoint(pretrained("tabletop"), four_bit=True)
    base = adopt_backbone(folders["llava"], tmp_path / "base", FORMAT)
    checkpoint = load_checkpoint(base)
    save_checkpoint(tmp_path / "adapter", add_lora(checkpoint.model, LoraSettings(2, 4), seed=0),
                    checkpoint.processor, FORMAT, {"base": str(base)})  # fmt: skip
    with pytest.raises(CheckpointError, match="is an adapter"):
        load_checkpoint(tmp_path / "adapter", four_bit=True)
    monkeypatch.setattr("llarva.models.adapters.find_spec", lambda name: None)
    with pytest.raises(LlarvaError, match=r"llarva\[qlora\]"):
        load_checkpoint(base, four_bit=True)
