"""Baselines' words and networks: what is shown and asked reaches the answer, and every weight learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from baseline_sizes import KINDS, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.baselines.act import ACT, TemporalEnsemble, divergence
from llarva.baselines.checkpoints import SIZES, make_network, make_size
from llarva.baselines.networks import CnnSize, Shapes, spatial_softmax
from llarva.baselines.samples import Samples, Statistics
from llarva.baselines.words import BaselineError, Vocabulary, split_words

# ---- words


@given(st.lists(st.lists(st.sampled_from("push the red blue button then".split()), min_size=1, max_size=6), min_size=1))
def test_words_come_back_in_order(instructions: list[list[str]]) -> None:
    texts = [" ".join(words) for words in instructions]
    vocabulary = Vocabulary.of(texts)
    assert vocabulary == Vocabulary.of(reversed(texts))
    for text in texts:
        places = vocabulary.encode(text.upper() + ".")
        assert [vocabulary.words[place - 1] for place in places if place] == split_words(text)
        assert not places[len(split_words(text)) :].any()


@pytest.mark.parametrize("text,says", [
    ("push the violet button", r"'violet'.*button, push, red, the"), ("", "no words"), ("...", "no words"),
    ("push the red red red button", "6 words.*4 at most"),
])
def test_unknown_instructions_are_refused(text: str, says: str) -> None:
    with pytest.raises(BaselineError, match=says):
        Vocabulary.of(["push the red button"]).encode(text)


def test_a_vocabulary_needs_words() -> None:
    with pytest.raises(BaselineError, match="no words"):
        Vocabulary.of(["", "…"])


# ---- networks


def shapes(**changes: Any) -> Shapes:
    return replace(Shapes((32, 48), 2, 7, 3, 7, words=5, length=4), **changes)


def some(batch: int = 3, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return Samples(
        torch.randint(0, 256, (batch, 32, 48, 3), dtype=torch.uint8, generator=generator),
        torch.randn(batch, 2, 7, generator=generator), torch.randint(1, 6, (batch, 4), generator=generator),
        torch.rand(batch, 3, 7, generator=generator).round(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_everything_shown_reaches_the_answer(kind: str) -> None:
    network = make_network(SMALL[kind], shapes(), seed=1).eval()
    one, other = some(seed=0), some(seed=1)
    base = network.predict(one.images, one.states, one.words)
    assert base.shape == (3, 3, 7) and bool(((base[..., -1] >= 0) & (base[..., -1] <= 1)).all())
    for change in ((other.images, one.states, one.words), (one.images, other.states, one.words),
                   (one.images, one.states, other.words)):
        assert not torch.allclose(network.predict(*change), base)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind: str) -> None:
    network = make_network(SMALL[kind], shapes(), seed=1).train()
    sum(network.losses(some()).values(), torch.zeros(())).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def two_squares(count: int, rng: np.random.Generator) -> Samples:
    """A red and a green square, one in the left half and one in the right; the word says which one's place is asked."""
    images = np.full((count, 32, 32, 3), 110, np.uint8)
    actions, words = np.zeros((count, 1, 7), np.float32), rng.integers(1, 3, (count, 1))
    for k in range(count):
        places = np.stack([rng.permutation([0, 16]) + rng.integers(1, 11, 2), rng.integers(1, 27, 2)], axis=1)
        for colour, (x, y) in enumerate(places):
            images[k, y : y + 4, x : x + 4] = 20
            images[k, y : y + 4, x : x + 4, colour] = 230
        actions[k, 0, :2] = (places[words[k, 0] - 1] - 14) / 8
    states = np.zeros((count, 1, 7), np.float32)
    return Samples(*(torch.from_numpy(part) for part in (images, states, words, actions)))


def test_the_instruction_chooses_what_is_looked_at() -> None:
    network = make_network(CnnSize(width=32, blocks=1), Shapes((32, 32), 1, 7, 1, 7, 2, 1), seed=0).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    rng, errors = np.random.default_rng(0), []
    for _ in range(200):
        loss = network.losses(two_squares(32, rng))["action"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(3 * float(loss.detach()))
    assert np.mean(errors[:10]) > 0.7, "without looking"
    assert np.mean(errors[-10:]) < 0.4, "whoever sees both squares but not which is meant is wrong by 0.5"


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_in_units_and_a_perfect_one_costs_nothing(kind: str) -> None:
    network = make_network(SMALL[kind], shapes(), seed=0).eval()
    statistics = Statistics.of(np.random.default_rng(0).normal(3, 2, (50, 2, 7)),
                               np.random.default_rng(1).normal(0.5, 0.01, (50, 3, 7)))
    network.set_statistics(statistics)
    samples = some()
    said = network.predict(samples.images, samples.states, samples.words)
    assert float((said[..., :-1] - 0.5).abs().max()) < 0.2
    right = torch.cat([network.normal_actions(samples.actions)[..., :-1], samples.actions[..., -1:] * 200 - 100], -1)
    assert all(float(part) < 1e-4 for part in network.errors(right, samples.actions).values())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(0, 6))
def test_spatial_softmax_finds_the_peak(row: int, column: int) -> None:
    features = torch.zeros(1, 1, 5, 7)
    features[0, 0, row, column] = 100
    x, y = spatial_softmax(features)[0].tolist()
    assert (x, y) == pytest.approx((column / 3 - 1, row / 2 - 1), abs=1e-4)


def test_act_hides_the_answer_at_test_time() -> None:
    network = make_network(SMALL["act"], shapes(), seed=0)
    assert isinstance(network, ACT)
    samples = some()
    wrong = replace(samples, actions=1 - samples.actions)
    torch.manual_seed(0)
    first = network.train().losses(samples)
    torch.manual_seed(0)
    assert first["kl"] != network.losses(wrong)["kl"], "in training the posterior reads the actions"
    network.eval()
    assert "kl" not in network.losses(samples)
    assert float(divergence(torch.zeros(2, 3), torch.tensor([0.5]).log().expand(2, 3))) == pytest.approx(
        3 * 0.5 * (0.5 - 1 - np.log(0.5))
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.floats(0, 3))
def test_temporal_ensemble_is_the_weighted_mean(n: int, steps: int, decay: float) -> None:
    chunks = torch.rand(steps, n, 2, generator=torch.Generator().manual_seed(n * 10 + steps), dtype=torch.float64)
    ensemble = TemporalEnsemble(decay)
    for t in range(steps):
        action = ensemble.add(chunks[t])
        opinions = [chunks[s, t - s] for s in range(max(0, t - n + 1), t + 1)]  # oldest first
        weight = np.exp(-decay * np.arange(len(opinions)))
        wanted = sum(w * o for w, o in zip(weight / weight.sum(), opinions, strict=True))
        assert torch.allclose(action, torch.as_tensor(wanted))


def test_default_sizes_are_within_the_budget() -> None:
    for kind in SIZES:
        network = make_network(make_size(kind), Shapes((128, 128), 1, 7, 4, 7, 60, 16), seed=0)
        assert 1e6 < sum(p.numel() for p in network.parameters()) < 4.2e6
    with pytest.raises(BaselineError, match="'diffusion'.*act, bc_cnn, bc_vit"):
        make_size("diffusion")
    with pytest.raises(BaselineError, match="'layers'.*blocks, width"):
        make_size("bc_cnn", layers=3)
    with pytest.raises(BaselineError, match="multiples of 16"):
        shapes(image_size=(30, 48))
