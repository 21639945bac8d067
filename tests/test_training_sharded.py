"""Weights shared out by FSDP and ZeRO-3: the launch files train, save and go on as one process does."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from test_training import configure, rows  # noqa: F401
from torch import nn

import llarva.training.loop as loop
from llarva.training.config import TrainConfig
from llarva.training.state import newest_state

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
    plain, port, children = loop.one_step, loop.free_port(), []

    def step(config: TrainConfig, accelerator: Accelerator, module: nn.Module, *others):
        parameters = [p for p in module.parameters() if p.requires_grad]
        spread = [hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in parameters]
        assert accelerator.num_processes == 2 and all(spread)
        return plain(config, accelerator, module, *others)

    for rank in range(config.processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                AcceleratorState._reset_state(reset_partial_state=True)
                os.environ.update(environment(kind))
                loop.Accelerator, loop.one_step = on_cpu(kind), step
                loop.run_share(rank, config, port)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * config.processes


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
