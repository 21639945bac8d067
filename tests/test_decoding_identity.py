"""Answers must be the library's own, token by token, however they are decoded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decoding_models import DECIMAL, FORMAT, MODE, RUNNERS, Asker, make_checkpoint, plain_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.decoding import Decoder, DecodingError
from llarva.drafting import LAST_ANSWER
from llarva.instructions.format import InstructionFormat
from llarva.int8 import Int8Linear, agreement
from llarva.policy import Policy
from llarva.robots import get_robot
from llarva.text_cache import RunnerError
from llarva.text_runners import StaticRunner


@pytest.fixture(scope="module")
def askers() -> list[Asker]:
    return [Asker(FORMAT, 0), Asker(DECIMAL, 3), Asker(replace(DECIMAL, n=1, trace_points=4), 4)]


@settings(max_examples=25, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 11), min_size=1, max_size=4), runner=st.sampled_from(RUNNERS),
    draft=st.booleans(), with_trace=st.booleans(), likely=st.none() | st.integers(0, 120), which=st.integers(0, 2),
)
def test_however_it_is_decoded(askers: list[Asker], which: int, numbers: list[int], **way: object) -> None:
    askers[which].check(numbers, **way)


@pytest.mark.slow
def test_thousands_of_prompts() -> None:
    rng = np.random.default_rng(0)
    for seed in range(8):
        asker = Asker([FORMAT, DECIMAL][seed % 2], seed)
        for block in range(64):
            numbers = [int(number) for number in rng.integers(0, 1000, rng.choice([1, 1, 2, 8]))]
            likely = int(rng.integers(0, 120)) if rng.random() < 0.7 else None
            for runner in RUNNERS:
                asker.check(numbers, runner, bool(block % 4), bool(block % 3), likely)


def test_a_second_question_about_an_image_reads_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(FORMAT, 0)
    decoder = asker.decoder("lean", False, True)
    widths: list[int] = []
    feed = decoder.runner.feed

    def watch(block: torch.Tensor, *more: object) -> torch.Tensor:
        widths.append(block.shape[1])
        return feed(block, *more)

    monkeypatch.setattr(decoder.runner, "feed", watch)
    asker.check([0], "lean", False, True, None)
    first = widths[0]
    widths.clear()
    asker.check([1], "lean", False, True, None)  # the same image
    assert widths[0] < first - 16, "16 image tokens need not be read again"
    widths.clear()
    asker.check([2, 3, 3, 2], "lean", False, True, None)  # one image for four rows: read once, then the words
    assert widths[0] == 17, "opening and image, once for all rows"
    for again in ("one more time", "after a reset"):
        asker.check([1], "lean", False, True, None)
        widths.clear()
        decoder.reset() if again == "after a reset" else None
        asker.check([1], "lean", False, True, None)
        assert (widths[0] > first - 16) == (again == "after a reset")


@pytest.mark.parametrize("runner", ("lean", "static"))
def test_after_a_reset_nothing_is_left_of_longer_answers(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: a wider cache sums in another order."""
    asker = Asker(DECIMAL, 0)
    decoder = asker.decoder(runner, False, True)
    said: list[torch.Tensor] = []
    feed = decoder.runner.feed

    def listen(*block: object) -> torch.Tensor:
        said.append(feed(*block))
        return said[-1]

    monkeypatch.setattr(decoder.runner, "feed", listen)
    image, prompt = asker.question(0)
    longer = asker.checkpoint.format.prompt("go on " * 300, np.zeros((1, 7)), MODE)
    decoder.generate(image[None], [prompt])
    first, room = said.copy(), slots(decoder)
    decoder.generate(image[None], [longer])
    assert slots(decoder) > room
    decoder.reset()
    said.clear()
    decoder.generate(image[None], [prompt])
    assert len(said) == len(first) and all(map(torch.equal, said, first)) and slots(decoder) == room


def slots(decoder: Decoder) -> int:
    """How many slots the runner's cache has."""
    runner = decoder.runner
    return int(runner.shape[1] if isinstance(runner, StaticRunner) else runner.keys.shape[3])


def test_another_image_is_never_taken_for_the_last_one() -> None:
    asker = Asker(FORMAT, 0)
    decoder = asker.decoder("lean", False, True)
    (image, prompt), (other, _) = asker.question(0, True), asker.question(2, True)
    one = image.copy()
    one[0, 0, 0] ^= 1
    for picture in (image, other, one, image):
        expected = plain_answers(asker.checkpoint, decoder, picture[None], [prompt])
        assert decoder.generate(picture[None], [prompt]).token_ids == expected


@pytest.mark.parametrize("format", [FORMAT, DECIMAL])
def test_the_last_answer_saves_most_forwards(format: InstructionFormat) -> None:
    asker = Asker(format, 3)
    image, prompt = asker.question(0, True)
    decoder = asker.decoder("lean", True, True)
    alone = asker.decoder("lean", False, True).generate(image[None], [prompt])
    guessed = decoder.generate(image[None], [prompt], alone.texts)
    assert guessed.token_ids == alone.token_ids and guessed.forwards * 3 < alone.forwards
    for nonsense in ("", "no answer", "The"):
        assert decoder.generate(image[None], [prompt], [nonsense]).token_ids == alone.token_ids
    with pytest.raises(DecodingError, match="2 likely answers"):
        decoder.generate(image[None], [prompt], ["", ""])


def test_a_policy_guesses_from_its_last_answer() -> None:
    checkpoint = make_checkpoint(DECIMAL, 3)
    policy = Policy(checkpoint, MODE)
    rng, home = np.random.default_rng(0), np.array(get_robot("panda").home)
    seen = [{"image": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "state": home, "gripper_open": 1.0}]
    policy.reset(["push the red button"])
    assert policy._likely(0) is None
    chunk = policy.act(seen)[0]
    policy.observe(seen)
    answer = DECIMAL.parse(policy._likely(0), MODE)
    assert np.array_equal(answer.trace, chunk.trace)
    assert np.array_equal(answer.actions, chunk.actions[[1, 1]])
    texts = [one.text for one in policy.act(seen)]
    assert any(source == LAST_ANSWER for source, _ in policy.decoder.drafter.trust)
    policy.reset(["push the red button"])
    assert policy._likely(0) is None and not policy.decoder.drafter.trust
    assert [one.text for one in policy.act(seen)] == texts


def test_int8_is_a_mode_of_its_own() -> None:
    asker = Asker(DECIMAL, 3)
    decoder = Decoder(asker.checkpoint, MODE, weights="int8")
    layers = [m for m in decoder.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 14 and not any(isinstance(m, Int8Linear) for m in asker.checkpoint.model.modules())
    assert not isinstance(decoder.model.get_output_embeddings(), Int8Linear)
    assert decoder.model.get_input_embeddings().weight is asker.checkpoint.model.get_input_embeddings().weight
    images, prompts = zip(*(asker.question(number, True) for number in range(4)), strict=True)
    exact = asker.decoder("lean", True, True).generate(np.stack(images), prompts).token_ids
    told = decoder.generate(np.stack(images), prompts)
    assert all(DECIMAL.parse(text, MODE).actions.shape == (2, 7) for text in told.texts)
    share, equal = agreement(told.token_ids, exact)
    assert 0 < share <= 1 and 0 <= equal <= 1
    with pytest.raises(RunnerError, match="int8"):
        Decoder(asker.checkpoint, MODE, weights="int8", runner="lean")
    with pytest.raises(DecodingError, match="'int4'.*exact, int8"):
        Decoder(asker.checkpoint, MODE, weights="int4")


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), bias=st.booleans(), dead=st.booleans(), seed=st.integers(0, 2**31))
def test_int8_layers_are_rounded_to_nearest(rows: int, bias: bool, dead: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(32, 16, bias=bias)
    with torch.no_grad():
        layer.weight[3] *= 0 if dead else 1
    rough, x = Int8Linear(layer), torch.randn(rows, 1, 32)
    whole = rough.weight.float() * rough.scale[:, None]
    assert ((whole - layer.weight).abs() <= 0.501 * rough.scale[:, None]).all()
    largest = [0 if dead and row == 3 else 127 for row in range(16)]
    assert rough.weight.abs().amax(dim=1).tolist() == largest
    # Narrow blocks and wide ones take different ways.
    assert torch.allclose(rough(x), torch.nn.functional.linear(x, whole, layer.bias), rtol=1e-4, atol=1e-5)


def test_agreement_ends_with_the_first_other_token() -> None:
    said = [[1, 2, 3, 4], [5, 6], [7]]
    assert agreement(said, said) == (1.0, 1.0)
    assert agreement([[1, 9, 3, 4], [5, 6], [8]], said) == (3 / 7, 1 / 3)
    assert agreement([[1, 2], [5, 6, 7], [7]], said) == (5 / 7, 1 / 3)
    assert agreement([], []) == (0.0, 0.0)
