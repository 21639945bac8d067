"""Weights shared out by FSDP and ZeRO-3: the launch files train, save and go on as one process does."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from forking import fork_each, fork_group
from test_training import configure, rows  # noqa: F401
from torch import nn
from torch.distributed.fsdp import fully_shard

import llarva.training.launch as launch
import llarva.training.loop as loop
from llarva.models.adapters import LoraSettings
from llarva.training.config import TrainConfig
from llarva.training.losses import LossWeights
from llarva.training.state import load_state, newest_state, save_state

LAUNCH = Path(__file__).parent.parent / "nbs" / "runs" / "launch"
NAMES = {"FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP": "FSDP_TRANSFORMER_CLS_TO_WRAP"}


def environment(kind: str) -> dict[str, str]:
    """What accelerate's launcher tells the processes about a launch file."""
    config = yaml.safe_load((LAUNCH / f"{kind}.yaml").read_text())
    if kind == "fsdp":
        told = {NAMES.get(name.upper(), name.upper()): value for name, value in config["fsdp_config"].items()}
        return {"ACCELERATE_USE_FSDP": "true", **{name: str(value) for name, value in told.items()}}
    prefix = {"gradient_accumulation_steps": "ACCELERATE_", "gradient_clipping": "ACCELERATE_"}
    told = {prefix.get(n, "ACCELERATE_DEEPSPEED_") + n.upper(): v for n, v in config["deepspeed_config"].items()}
    told["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = told.pop("ACCELERATE_DEEPSPEED_ZERO3_INIT_FLAG")
    env = {name: str(value).lower() for name, value in told.items()}
    return {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", **env}


def on_cpu(kind: str):
    """accelerate shares weights out on GPUs only; this has it do so between processes of a CPU."""

    def make(cpu: bool, **options: object) -> Accelerator:
        PartialState(cpu=True)
        if kind == "fsdp":
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return Accelerator(cpu=False, **options)

    return make


def shared(kind: str, config: TrainConfig) -> None:
    """Train in processes that share the weights out."""
    plain, port = loop.one_step, launch.free_port()

    def step(config: TrainConfig, accelerator: Accelerator, module: nn.Module, *others):
        parameters = [p for p in module.parameters() if p.requires_grad]
        spread = [hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in parameters]
        assert accelerator.num_processes == 2 and all(spread)
        angles = [buffer.dtype for name, buffer in module.named_buffers() if name.endswith("inv_freq")]
        assert set(angles) == {torch.float32}
        return plain(config, accelerator, module, *others)

    def train_share(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.update(environment(kind))
        launch.Accelerator, loop.one_step = on_cpu(kind), step
        loop.run_share(rank, config, port)

    assert fork_each(config.processes, train_share) == [0] * config.processes


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_shared_weights_train_as_one_process(rows: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    if kind == "zero3":
        pytest.importorskip("deepspeed")
    straight = configure(rows, tmp_path / "one", steps=6)
    loop.train(straight)
    both = configure(rows, tmp_path / "both", steps=6, save_every=3, processes=2)
    shared(kind, both)
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
    newest_state(tmp_path / "both" / "state").unlink()
    shutil.rmtree(tmp_path / "both" / "checkpoint")
    shutil.copytree(tmp_path / "both", tmp_path / "alone")
    shared(kind, replace(both, micro_batch=1))
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)
    loop.train(replace(both, out_dir=str(tmp_path / "alone"), processes=1))
    assert losses(tmp_path / "alone") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)


# one process and FSDP round the same numbers; ZeRO also adds up in bfloat16, whose numbers are 1/128 apart
ROUNDING = {"fsdp": 5e-5, "zero3": 2e-3}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_bfloat16_differs_by_its_rounding_only(rows: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    if kind == "zero3":
        pytest.importorskip("deepspeed")
    straight = configure(rows, tmp_path / "one", steps=6, precision="bf16")
    loop.train(straight)
    shared(kind, replace(straight, out_dir=str(tmp_path / "both"), processes=2))
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=ROUNDING[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_features_of_shared_weights_are_those_of_one_process(
    rows: Path, tmp_path: Path, kind: str  # noqa: F811
) -> None:
    if kind == "zero3":
        pytest.importorskip("deepspeed")
    base = loop.train(configure(rows, tmp_path / "base", steps=1)).checkpoint
    straight = configure(
        rows, tmp_path / "one", steps=4, base=str(base), lora=LoraSettings(2, 4, 0.0), cache_features=True,
        weights=LossWeights(dense=0.0),
    )  # fmt: skip
    loop.train(straight)
    shared(kind, replace(straight, out_dir=str(tmp_path / "both"), processes=2))
    names = [{path.relative_to(tmp_path / out) for path in (tmp_path / out / "cache").rglob("features-*.safetensors")}
             for out in ("one", "both")]  # fmt: skip
    assert names[0] == names[1] != set()
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)


def small_net() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    net[2].bias.requires_grad_(False)
    return net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)


def sharded_net() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    net, _ = small_net()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in (net[0], net[2], net):
        fully_shard(part, mesh=mesh)
    return net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)


def steps_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()


def test_states_of_shared_weights_fit_any_number_of_processes(tmp_path: Path) -> None:
    straight, adam = small_net()
    steps_of(straight, adam, range(6))

    def begin(rank: int) -> None:
        net, optimizer = sharded_net()
        steps_of(net, optimizer, range(2))
        save_state(tmp_path, 2, net, [optimizer], "p", write=rank == 0)

    def go_on(rank: int) -> None:
        net, optimizer = sharded_net()
        assert load_state(tmp_path / "step-00000002.safetensors", net, [optimizer], "p") == 2
        steps_of(net, optimizer, range(2, 4))
        save_state(tmp_path, 4, net, [optimizer], "p", write=rank == 0)

    assert fork_group(2, begin) == [0, 0]
    assert fork_group(3, go_on) == [0, 0, 0]
    last, optimizer = small_net()
    assert load_state(tmp_path / "step-00000004.safetensors", last, [optimizer], "p") == 4
    steps_of(last, optimizer, range(4, 6))
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(last.state_dict()[name], value, rtol=1e-4, atol=1e-5)
