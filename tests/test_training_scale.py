"""Training at scale: one loss however the rows are spread, over however many processes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from forking import fork_each
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import SMALL, configure, rows, trained  # noqa: F401
from torch.nn import functional as F

from llarva.models.adapters import LoraSettings
from llarva.models.checkpoints import Checkpoint, load_checkpoint
from llarva.models.text import IMAGE, PROMPT, TEXT, pixel_values, special_ids
from llarva.models.tiny import make_tiny
from llarva.runs import check_parameters, find_notebook, notebook_parameters
from llarva.training import kept_rows
from llarva.training.batches import BatchMaker
from llarva.training.config import TrainConfig
from llarva.training.features import FeatureStore, compute_features
from llarva.training.kept_rows import keep_rows
from llarva.training.launch import PATIENCE, free_port
from llarva.training.layout import Batch, Row, arrange, attention_mask, fill_bins, grid, pack, with_layout
from llarva.training.loop import StepBatches, pass_shares, run_share, train
from llarva.training.losses import PARTS, LossWeights, answer_losses
from llarva.training.module import TrainingModule, object_names, set_speed
from llarva.training.passes import PassSampler
from llarva.training.sampling import RowSampler, Sampling, TrainingError, open_rows
from llarva.training.state import newest_state

PLAIN = LossWeights(text=0.3)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


class Bench:
    """A step's batch, and the loss and gradient that a module gives for it, however it is arranged."""

    def __init__(self, rows: Path, checkpoint: Path, cache: Path, **changes: object) -> None:  # noqa: F811
        self.config = configure(rows, cache, sampling=Sampling(batch_size=6, points=2), weights=PLAIN, **changes)
        self.rows, self.checkpoint = rows, load_checkpoint(checkpoint)
        table, names = open_rows([rows], cache), object_names([str(rows)])
        self.names = names
        self.maker = BatchMaker(table, self.checkpoint.format, self.checkpoint.processor, names, 32)
        self.sampler = RowSampler(table["task"], table["step"], self.config.sampling, 0)
        self.pad = special_ids(self.checkpoint.processor).pad

    def batch(self, apart: bool = False, step: int = 0):
        sampling = replace(self.config.sampling, apart=apart)
        return StepBatches(replace(self.config, sampling=sampling), self.maker, self.sampler)[step]

    def module(self, **changes: object) -> TrainingModule:
        torch.manual_seed(0)
        fresh = load_checkpoint(self.checkpoint.folder).model
        module = TrainingModule(fresh, self.maker.numbers, PLAIN, len(self.names), 32).train()
        set_speed(module, replace(self.config, **changes))  # type: ignore[arg-type]
        return module

    def loss(self, module: TrainingModule, passes, accelerator: Accelerator) -> tuple[dict[str, float], torch.Tensor]:
        module.zero_grad()
        total = dict.fromkeys((*PARTS, "loss"), 0.0)
        for batch, shares in zip(passes, pass_shares(accelerator, passes), strict=True):
            parts = module(batch.pixels, batch.ids, batch.kinds, batch.dense, batch.layout, batch.features, shares)
            parts["loss"].backward()
            total = {name: total[name] + float(parts.get(name, torch.zeros(())).detach()) for name in total}
        grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return total, torch.cat(grads)


@pytest.fixture(scope="module")
def bench(rows: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:  # noqa: F811
    return Bench(rows, trained, tmp_path_factory.mktemp("bench"))


def same(one: tuple[dict[str, float], torch.Tensor], two: tuple[dict[str, float], torch.Tensor]) -> None:
    assert one[0] == pytest.approx(two[0], rel=2e-5, abs=1e-6)
    torch.testing.assert_close(one[1], two[1], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("arrangement", "micro_batch"), [("drawn", 4), ("length", 2), ("packed", None), ("packed", 3)])
def test_arrangements_change_no_loss(
    bench: Bench, accelerator: Accelerator, arrangement: str, micro_batch: int | None, apart: bool
) -> None:
    batch, module = bench.batch(apart), bench.module()
    reference = bench.loss(module, [batch], accelerator)
    passes = arrange(batch, arrangement, micro_batch, 400, bench.pad)
    assert len(passes) == -(-6 // (micro_batch or 6))
    assert sum(int((p.kinds != PROMPT).sum()) for p in passes) == int((batch.kinds != PROMPT).sum())
    same(bench.loss(module, passes, accelerator), reference)


def test_questions_apart_are_questions_alone(bench: Bench, accelerator: Accelerator) -> None:
    module, apart = bench.module(), bench.batch(apart=True)
    alone = grid([Row(*row) for row in separate(apart)], bench.pad)
    # the images once for every question, as one sample a row would have them
    owner = [k for k, row in enumerate(apart.layout) for _ in range(int(row[:, 1].max()))]
    spread = replace(apart, pixels=apart.pixels[owner], dense=apart.dense[owner],
                     ids=alone[0], kinds=alone[1], layout=None)  # fmt: skip
    module.dense = None  # the same image three times is not the same dense loss
    same(bench.loss(module, [apart], accelerator), bench.loss(module, [spread], accelerator))
    assert spread.ids.numel() > 2 * apart.ids.numel()


def separate(batch) -> list[tuple[list[int], list[int], list[int], list[int]]]:
    """The questions of a batch as rows of their own."""
    found = []
    for ids, kinds, layout in zip(batch.ids, batch.kinds, batch.layout, strict=True):
        for turn in range(1, int(layout[:, 1].max()) + 1):
            mine = (layout[:, 0] >= 0) & ((layout[:, 1] == 0) | (layout[:, 1] == turn))
            length = int(mine.sum())
            found.append((ids[mine].tolist(), kinds[mine].tolist(), [0] * length, list(range(length))))
    return found


def test_layout_alone_changes_no_loss(bench: Bench, accelerator: Accelerator) -> None:
    batch, module = bench.batch(), bench.module()
    same(bench.loss(module, [with_layout(batch, bench.pad)], accelerator), bench.loss(module, [batch], accelerator))


@pytest.mark.parametrize("changes", [{"attention": "sdpa"}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("apart", [False, True])
def test_faster_and_smaller_steps_change_no_loss(
    bench: Bench, accelerator: Accelerator, changes: dict[str, object], apart: bool
) -> None:
    batch = bench.batch(apart)
    reference = bench.loss(bench.module(), [batch], accelerator)
    same(bench.loss(bench.module(**changes), [batch], accelerator), reference)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_change_no_loss(bench: Bench, accelerator: Accelerator) -> None:
    compiled, plain = bench.module(compile=True), bench.module()
    for step in (0, 1):
        batch = bench.batch(apart=bool(step), step=step)
        same(bench.loss(compiled, [batch], accelerator), bench.loss(plain, [batch], accelerator))


def test_losses_need_no_full_logits(bench: Bench) -> None:
    hidden, batch = torch.randn(*bench.batch().ids.shape, 32), bench.batch()
    head = bench.checkpoint.model.lm_head
    called = []
    handle = head.register_forward_hook(lambda _, inputs, output: called.append(output.shape))
    parts = answer_losses(head, hidden, batch.ids, batch.kinds, bench.maker.numbers, bell=0.0)
    handle.remove()
    wanted = batch.kinds[:, 1:] != PROMPT
    assert called == [(int(wanted.sum()), head.out_features)]
    full = head(hidden)[:, :-1]
    target = torch.where(batch.kinds[:, 1:] == TEXT, batch.ids[:, 1:], -100)
    torch.testing.assert_close(parts["text"], F.cross_entropy(full.flatten(0, 1), target.flatten(), ignore_index=-100))


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 100))
def test_bins_hold_everything_once(sizes: list[int], room: int) -> None:
    bins = fill_bins(sizes, room)
    assert sorted(k for some in bins for k in some) == list(range(len(sizes)))
    assert all(sum(sizes[k] for k in some) <= room or len(some) == 1 for some in bins)


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(1, 4), st.sampled_from(["drawn", "length", "packed"]))
def test_packed_tokens_see_what_they_saw(sizes: list[int], micro: int, arrangement: str) -> None:
    made = [Row([k + 1] * n, [PROMPT] * n, [int(i > 1) for i in range(n)], list(range(n))) for k, n in enumerate(sizes)]
    ids, kinds, layout = grid(made, pad=0)
    images = torch.arange(1.0, len(sizes) + 1).view(-1, 1, 1, 1)
    batch = Batch(images, ids, kinds, images[:, 0].long(), layout)
    seen = {}
    for part in arrange(batch, arrangement, micro, 50, pad=0):
        mask = attention_mask(part.layout)[:, 0]
        order = [int(row[0]) for row in part.layout.flatten(0, 1).unique_consecutive(dim=0)[:, :1] if row[0] >= 0]
        assert part.pixels.flatten().tolist() == [k + 1 for k in dict.fromkeys(order)]
        for s, row in enumerate(part.ids.tolist()):
            for place, token in enumerate(row):
                if part.layout[s, place, 0] >= 0:
                    looked = part.ids[s][mask[s, place]]
                    assert set(looked.tolist()) == {token}
                    seen[token, int(part.layout[s, place, 2])] = len(looked)
    assert seen == {(k + 1, i): i + 1 for k, n in enumerate(sizes) for i in range(n)}


def test_pack_keeps_long_rows() -> None:
    made = [Row([1] * n, [PROMPT] * n, [0] * n, list(range(n))) for n in (30, 10)]
    batch = Batch(torch.zeros(2, 1), *grid(made, 0)[:2], torch.zeros(2, 1))
    assert pack(batch, 8, 0).ids.shape == (2, 30)


def test_frozen_features_are_computed_once(rows: Path, trained: Path, tmp_path: Path) -> None:  # noqa: F811
    adapter = LoraSettings(rank=2, alpha=4, dropout=0.0)
    lora = {"base": str(trained), "lora": adapter, "weights": replace(PLAIN, dense=0)}
    plain = train(configure(rows, tmp_path / "plain", steps=4, **lora))
    cached = train(configure(rows, tmp_path / "cached", steps=4, cache_features=True, **lora))
    assert [row["loss"] for row in cached.log] == pytest.approx([row["loss"] for row in plain.log], abs=2e-5)
    files = sorted((tmp_path / "cached" / "cache").rglob("features-*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    shutil.rmtree(tmp_path / "cached" / "state")
    train(configure(rows, tmp_path / "cached", steps=4, cache_features=True, **lora))
    assert files and before == [file.stat().st_mtime_ns for file in files]


def test_processes_compute_their_own_features_while_others_write(
    bench: Bench, trained: Path, tmp_path: Path  # noqa: F811
) -> None:
    store, model = FeatureStore(tmp_path, len(bench.maker.rows), chunk=2), load_checkpoint(trained).model
    count = len(store.missing())
    shares = [compute_features(store, model, bench.maker.rows, lambda images: pixel_values(
        images, bench.checkpoint.processor), (rank, 2)) for rank in range(2)]  # fmt: skip
    assert count > 3 and shares == [-(-count // 2), count // 2] and store.missing() == []


def test_rows_are_kept_where_training_ran(
    rows: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    asked = []

    def look(checkpoint: Checkpoint, image: np.ndarray, ids: list[int], count: int) -> torch.Tensor:
        asked.append(str(checkpoint.model.device))
        return torch.zeros(count, 2)

    monkeypatch.setattr(kept_rows, "plain_logits", look)
    shutil.copytree(trained, tmp_path / "it")
    keep_rows(tmp_path / "it", open_rows([rows], tmp_path), device="meta")
    assert set(asked) == {"meta"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arrangement": "sorted"}, "drawn, length, packed"),
        ({"attention": "fast"}, "flash_attention_2"),
        ({"micro_batch": 0}, "at least 1"),
        ({"cache_features": True}, "dense = 0"),
        ({"cache_features": True, "weights": LossWeights(dense=0)}, "frozen"),
        ({"attention": "flash_attention_2", "arrangement": "packed"}, "sdpa"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        TrainConfig(rows=("rows",), out_dir=str(tmp_path), steps=2, **changes)  # type: ignore[arg-type]


def test_speed_is_not_identity() -> None:
    plan = TrainConfig(rows=("rows",), out_dir="out", steps=10)
    for changes in ({"processes": 2}, {"arrangement": "packed"}, {"compile": True}, {"micro_batch": 4}):
        assert replace(plan, **changes).identity() == plan.identity()  # type: ignore[arg-type]
    for changes in ({"betas": (0.9, 0.999)}, {"projector_learning_rate": 1e-5}, {"sampling": Sampling(apart=True)}):
        assert replace(plan, **changes).identity() != plan.identity()  # type: ignore[arg-type]


def test_identities_of_old_adapters_stay_what_they_were() -> None:
    plan = TrainConfig(rows=("rows",), out_dir="out", steps=1000, base="base", lora=LoraSettings(8, 16))
    assert plan.identity() == "a6a232ebc9c1a7f6"
    assert replace(plan, lora=LoraSettings(8, 16, projector=True)).identity() != plan.identity()


def losses(log) -> list[float]:
    return [row["loss"] for row in log]


def test_more_or_fewer_processes_go_on(rows: Path, tmp_path: Path) -> None:  # noqa: F811
    straight = train(configure(rows, tmp_path / "one", steps=6))
    both = configure(rows, tmp_path / "both", steps=6, save_every=3, processes=2)
    log, port = tmp_path / "both" / "log.jsonl", free_port()

    def train_share(rank: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, of one process
        run_share(rank, both, port)
        # the others wait while one process converts rows or writes the result, which may take longer than ten minutes
        assert torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout == PATIENCE

    assert fork_each(2, train_share) == [0, 0]
    shared = [json.loads(line) for line in log.read_text().splitlines()]
    assert losses(shared) == pytest.approx(losses(straight.log), abs=2e-4)
    newest_state(tmp_path / "both" / "state").unlink()
    shutil.rmtree(tmp_path / "both" / "checkpoint")
    resumed = train(replace(both, processes=1, arrangement="packed", micro_batch=2))
    assert losses(resumed.log) == pytest.approx(losses(straight.log), abs=2e-4)


REPOSITORY = Path(__file__).parent.parent
PRESETS = sorted((REPOSITORY / "nbs" / "runs" / "presets").glob("*.yaml"))
LAUNCH = sorted((REPOSITORY / "nbs" / "runs" / "launch").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_parameters_of_the_run(path: Path) -> None:
    given = yaml.safe_load(path.read_text())
    values = check_parameters(notebook_parameters(find_notebook("train")), given)
    wanted = {"oxe-pretrain": (1, 5e-5, 0.03), "rlbench-tune": (4, 1e-4, 0.0)}[path.stem]
    assert (values["epochs"], values["learning_rate"], values["warmup_share"]) == wanted
    assert (values["lora_rank"], values["lora_alpha"], values["batch_size"]) == (128, 256, 128)
    Sampling(batch_size=128, first_frame_share=values["first_frame_share"], order=values["order"])


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_launch_files_are_what_accelerate_reads(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_machines == 1 and config.mixed_precision in ("bf16", "no")
    if path.stem == "fsdp":
        names = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
        layers = names.pop("transformer_layer_cls_to_wrap").split(",")
        known = {"version": "fsdp_version", "offload_params": "cpu_offload"}
        known |= {"auto_wrap_policy": "auto_wrap_policy", "state_dict_type": "state_dict_type"}
        plugin = FullyShardedDataParallelPlugin(
            transformer_cls_names_to_wrap=layers, **{known.get(name, name): value for name, value in names.items()}
        )
        assert plugin.fsdp_version == 2
        tree = make_tiny(SMALL, 300, IMAGE, [], seed=0)
        assert set(layers) <= {type(module).__name__ for module in tree.modules()}
    if path.stem == "zero3":
        pytest.importorskip("deepspeed")
        assert DeepSpeedPlugin(zero_stage=config.deepspeed_config["zero_stage"]).zero_stage == 3


def test_passes_see_every_row_once() -> None:
    tasks = ["a"] * 30 + ["b"] * 10 + ["a"] * 10
    plain = Sampling(batch_size=10, first_frame_share=0.0, order="passes")
    sampler = PassSampler(tasks, [1] * 50, plain, 0)
    assert sorted(np.concatenate([sampler.draw(step) for step in range(5)])) == list(range(50))
    mixed = replace(plain, dataset_weights={"x": 1, "y": 1}, task_weights={"a": 3, "b": 1})
    stores = {"x": 40, "y": 10}
    straight = PassSampler(tasks, [1] * 50, mixed, 0, stores)
    drawn = np.concatenate([straight.draw(step) for step in range(200)])
    counts = np.bincount(drawn, minlength=50)
    for pool in (slice(0, 30), slice(30, 40), slice(40, 50)):
        assert counts[pool].max() - counts[pool].min() <= 1
    assert counts[40:].sum() == pytest.approx(1000, rel=0.1)
    late = PassSampler(tasks, [1] * 50, mixed, 0, stores)
    assert np.array_equal(late.draw(150), drawn[1500:1510]) and np.array_equal(late.draw(3), drawn[30:40])
    with pytest.raises(TrainingError, match="first_frame_share"):
        Sampling(order="passes")
    with pytest.raises(TrainingError, match="draws, passes"):
        Sampling(order="epochs")
