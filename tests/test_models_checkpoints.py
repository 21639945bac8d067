"""Checkpoints: what is passed on at half the size answers as before."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from llarva.models.checkpoints import half_size, load_checkpoint
from llarva.models.pretrained import pretrained


def test_half_size_rounds_the_weights_and_nothing_else(tmp_path: Path) -> None:
    whole = load_checkpoint(pretrained())
    folder = half_size(pretrained(), tmp_path / "half")
    half = load_checkpoint(folder)
    assert (half.format, half.info) == (whole.format, whole.info)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    parameters = sum(tensor.numel() for tensor in whole.model.state_dict().values())
    assert (folder / "model.safetensors").stat().st_size < 2.1 * parameters
    for (name, fine), rounded in zip(whole.model.state_dict().items(), half.model.state_dict().values(), strict=True):
        assert rounded.dtype == fine.dtype, name
        if fine.is_floating_point():
            assert torch.equal(rounded, fine.to(torch.bfloat16).to(fine.dtype)), name
    before = (folder / "model.safetensors").read_bytes()
    assert (half_size(folder, folder) / "model.safetensors").read_bytes() == before
