"""Rows of a batch advance unevenly, drafts are wrong anywhere, caches are left over: no token may change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from decoding_models import (
    DECIMAL,
    FORMAT,
    MODE,
    RUNNERS,
    Asker,
    make_checkpoint,
    plain_answers,
    spelled,
    wrong_here_and_there,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva import decoding
from llarva.decoding import Decoder, DecodingError, plain_generate
from llarva.instructions.automaton import build_grammar
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.template import Constant, Table
from llarva.models.backbones import text_model
from llarva.models.checkpoints import Checkpoint
from llarva.prefill import embed_rows, image_keys


@pytest.fixture(scope="module")
def askers() -> list[Asker]:
    return [Asker(FORMAT, 0), Asker(DECIMAL, 3)]


BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 11), st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
                                      st.integers(0, 150)), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(which=st.integers(0, 1), runner=st.sampled_from(RUNNERS), doubt=st.booleans(), batches=BATCHES,
       seed=st.integers(0, 2**31))
def test_drafts_that_are_wrong_at_random_places(
    askers: list[Asker], which: int, runner: str, doubt: bool, batches: list[list[tuple[int, Any, int]]], seed: int
) -> None:
    # One decoder for all batches of an example: prompts stay in its cache, and what it learned stays.
    asker, rng = askers[which], np.random.default_rng(seed)
    decoder = asker.decoder(runner, True, True)
    decoder.reset()
    with pytest.MonkeyPatch.context() as patch:
        if not doubt:  # every draft is tried, however often it was wrong
            patch.setattr(decoder.drafter, "_trust", lambda source, state: 1.0)
        for rows in batches:
            numbers = [number for number, _, _ in rows]
            expected = asker.plain(decoder, numbers)
            drafts = [None if wrong is None else wrong_here_and_there(decoder, ids, wrong, rng)[:length]
                      for ids, (_, wrong, length) in zip(expected, rows, strict=True)]
            assert decoder.generate(*asker.questions(numbers), drafts).token_ids == expected


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("which", [0, 1])
def test_drafts_of_different_lengths_leave_a_cache_to_go_on_from(askers: list[Asker], which: int, runner: str) -> None:
    # Equal prompts, so that all but the last token could stay; holes before the drafts would shift what stays.
    asker, decoder = askers[which], askers[which].decoder(runner, True, True)
    numbers = [0, 0]
    expected = asker.plain(decoder, numbers)
    text = spelled(decoder, expected[0])
    for drafts in ([text, None], [text[: len(text) // 3], text], ["", text], [None, ""]):
        decoder.reset()
        for _ in range(3):
            assert decoder.generate(*asker.questions(numbers), drafts).token_ids == expected


@pytest.mark.parametrize("runner", RUNNERS)
def test_rows_finish_while_others_go_on(askers: list[Asker], runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asker, decoder = askers[1], askers[1].decoder(runner, True, True)
    numbers = [0, 3, 4, 7]
    expected = asker.plain(decoder, numbers)
    fed, ended = [], []
    feed, accept = decoder.runner.feed, decoder._accept

    def count(*block: Any) -> torch.Tensor:
        fed.append(block)
        return feed(*block)

    def watch(answer: Any, *more: Any) -> int:
        wrong = accept(answer, *more)
        if answer.state == decoder.grammar.end:
            ended.append(len(fed))
        return wrong

    def take_back(counts: list[int]) -> None:
        taken.append(counts)
        rollback(counts)

    taken, rollback = list[list[int]](), decoder.runner.rollback
    monkeypatch.setattr(decoder.runner, "feed", count)
    monkeypatch.setattr(decoder.runner, "rollback", take_back)
    monkeypatch.setattr(decoder, "_accept", watch)
    # Good drafts for some rows only: those end many forwards before the others, whose drafts are taken back meanwhile.
    rng = np.random.default_rng(0)
    texts = [spelled(decoder, ids) for ids in expected]
    drafts = [texts[0], None, wrong_here_and_there(decoder, expected[2], 0.3, rng), texts[3]]
    decoder.reset()
    assert decoder.generate(*asker.questions(numbers), drafts).token_ids == expected
    assert len(ended) == 4 and max(ended) > 2 * min(ended)
    # Rows that have ended must not keep the slots of tokens that the others take back.
    later = taken[sorted(ended)[1] :]
    assert any(max(counts) > 0 for counts in later)
    assert all(counts[0] == counts[3] == max(counts) for counts in later)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_batch_that_shrinks_and_grows(askers: list[Asker], runner: str) -> None:
    asker, decoder = askers[0], askers[0].decoder(runner, False, True)
    decoder.reset()
    for numbers in ([0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [1, 3], [3], [3, 3], [2, 3, 0, 1], [5, 4, 1, 0]):
        assert decoder.generate(*asker.questions(numbers)).token_ids == asker.plain(decoder, numbers)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("shift", ["each its own place", "one row differs", "at the end"])
def test_images_at_different_places_are_all_seen(
    askers: list[Asker], runner: str, shift: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Then rows are padded at the left; and of an image at the end, the cache holds all tokens but the last.
    asker, encode = askers[0], decoding.encode_prompt

    def words_first(processor: Any, prompt: str) -> list[int]:
        ids = encode(processor, prompt)
        words = ids[17:]  # behind the opening and 16 image tokens
        places = {"each its own place": 3 * (len(prompt) % 4), "one row differs": 5 * (prompt == prompts[1])}
        place = places.get(shift, len(words))
        return [ids[0], *words[:place], *ids[1:17], *words[place:]]

    monkeypatch.setattr(decoding, "encode_prompt", words_first)
    decoder = Decoder(asker.checkpoint, MODE, runner=runner, draft=False)
    images, prompts = asker.questions([0, 1, 2, 5])
    images[3] = images[0]
    said = []
    for seen in (images, images, images[::-1].copy()):
        expected = plain_answers(asker.checkpoint, decoder, seen, prompts)
        for _ in range(2):
            assert decoder.generate(seen, prompts).token_ids == expected
        said.append(expected)
    assert said[0] == said[1] != said[2], "the pictures should matter, else they could be left out unnoticed"


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_longest_answer(askers: list[Asker], runner: str) -> None:
    asker = askers[1]
    plain = asker.decoder(runner, False, True)
    expected = asker.plain(plain, [0, 3, 4, 7])
    longest, questions = max(map(len, expected)), asker.questions([0, 3, 4, 7])
    for draft in (False, True):
        texts = [spelled(plain, ids) for ids in expected] if draft else None
        fits = Decoder(asker.checkpoint, MODE, runner=runner, draft=draft, max_tokens=longest)
        assert fits.generate(*questions, texts).token_ids == expected
        short = Decoder(asker.checkpoint, MODE, runner=runner, draft=draft, max_tokens=longest - 1)
        with pytest.raises(DecodingError, match=f"did not end within {longest - 1} tokens"):
            short.generate(*questions, texts)
        row = int(np.argmin([len(ids) for ids in expected]))  # a refusal leaves nothing behind
        again = short.generate(questions[0][[row]], [questions[1][row]])
        assert again.token_ids == [expected[row]]


def test_an_answer_that_is_too_long_is_given_up_at_once(
    askers: list[Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(askers[1].checkpoint, MODE, draft=False, max_tokens=30)
    fed, feed = list[int](), decoder.runner.feed
    monkeypatch.setattr(decoder.runner, "feed", lambda block, *more: (fed.append(1), feed(block, *more))[1])
    with pytest.raises(DecodingError, match="within 30 tokens"):
        decoder.generate(*askers[1].questions([0]))
    assert len(fed) <= 31


def test_the_reference_is_cut_at_its_longest(askers: list[Asker]) -> None:
    asker, decoder = askers[0], askers[0].decoder("lean", False, True)
    whole = asker.plain(decoder, [0])[0]
    assert plain_generate(asker.checkpoint, decoder.grammar, *asker.question(0), 5, decoder.numbers) == whole[:5]


def of_parts(monkeypatch: pytest.MonkeyPatch, *parts: Constant | Table) -> Checkpoint:
    checkpoint = make_checkpoint(DECIMAL)
    grammar = build_grammar(parts, DecimalNumbers())
    monkeypatch.setattr(InstructionFormat, "grammar", lambda *_: grammar)
    return checkpoint


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_answer_without_a_choice(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = of_parts(monkeypatch, Constant("The trace: "), Constant("none."))
    decoder, asker = Decoder(checkpoint, MODE, runner=runner), Asker(DECIMAL, 0)
    for numbers in ([0], [0, 1, 2], [0, 0]):
        images, prompts = asker.questions(numbers)
        decoded = decoder.generate(images, prompts, [None, "The trace", ""][: len(numbers)])
        assert decoded.texts == ["The trace: none."] * len(numbers)
        assert decoded.token_ids == plain_answers(checkpoint, decoder, images, prompts)
        assert decoded.forwards <= 1, "at most the picture that several rows share is read"
    with pytest.raises(DecodingError, match="within 2 tokens"):
        Decoder(checkpoint, MODE, runner=runner, max_tokens=2).generate(images, prompts)


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_answer_of_one_choice(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("trace", "trace", 1, 1, 1, limits=(1,))
    checkpoint = of_parts(monkeypatch, Constant("It is "), table, Constant("."))
    asker = Asker(DECIMAL, 0)
    for draft in (False, True):
        decoder = Decoder(checkpoint, MODE, runner=runner, draft=draft)
        images, prompts = asker.questions([0, 1, 2, 3])
        expected = plain_answers(checkpoint, decoder, images, prompts)
        for drafts in (None, ["", "It", "It is [[0]].", "It is [[1]]."]):
            assert decoder.generate(images, prompts, drafts).token_ids == expected


@pytest.mark.parametrize("runner", RUNNERS[1:])
def test_nothing_of_a_failed_batch_is_gone_on_from(
    askers: list[Asker], runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker, decoder = askers[0], askers[0].decoder(runner, True, True)
    expected = asker.plain(decoder, [0, 1])
    decoder.reset()
    decoder.generate(*asker.questions([0]))

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    # The second layer fails, so the first has read what the others have not.
    monkeypatch.setattr(text_model(decoder.model).layers[1], "forward", fails)
    with pytest.raises(MemoryError):
        decoder.generate(*asker.questions([1]))
    monkeypatch.undo()
    assert decoder.generate(*asker.questions([1])).token_ids == expected[1:]


@settings(max_examples=50)
@given(st.integers(0, 64 * 64 * 3 - 1), st.integers(1, 255))
def test_a_single_value_makes_another_image(place: int, change: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images[1] = images[0]
    images[1].reshape(-1)[place] ^= change
    one, other = image_keys(images)
    assert one != other and image_keys(images[:1].copy()) == [one]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=4), st.integers(0, 2))
def test_rows_of_any_length_become_a_block(
    askers: list[Asker], rows: list[tuple[int, int]], left: int
) -> None:
    # A row: so many image tokens still to be read, of four, and so many words behind them.
    model = askers[0].checkpoint.model
    token, table = model.config.image_token_id, model.get_input_embeddings().weight
    ids = [[token] * count + [10 + k for k in range(words)] for count, words in rows]
    left = min(left, *map(len, ids))
    if not max(map(len, ids)):
        return
    features = torch.arange(4.0 * len(rows)).view(-1, 4, 1).expand(-1, -1, table.shape[1])
    block, valid = embed_rows(model, ids, features, left)
    mask = torch.ones(block.shape[:2], dtype=torch.bool) if valid is None else valid
    assert mask[:, :left].all() and mask[:, block.shape[1] - (min(map(len, ids)) - left) :].all()
    for row, (count, words) in enumerate(rows):
        expected = torch.cat([features[row, 4 - count :], table[10 : 10 + words]])
        assert torch.equal(block[row][mask[row]], expected)


def test_a_guess_stops_where_it_is_likelier_wrong(askers: list[Asker]) -> None:
    asker = askers[0]
    decoder = Decoder(asker.checkpoint, MODE)
    grammar = decoder.grammar
    expected = asker.plain(decoder, [0])[0]
    run, state = grammar.forced_run(grammar.start)
    hints = decoder.drafter.spell(spelled(decoder, expected))
    assert decoder.drafter.guess(run, state, hints)[0] == expected[len(run) : len(run) + 16]
    other = {s: int(grammar.allowed(s)[grammar.allowed(s) != token][0]) for s, token in hints.items()
             if len(grammar.allowed(s)) > 1}
    decoder.drafter.learn(expected, other)  # the last answer was wrong everywhere
    assert decoder.drafter.guess(run, state, hints) == ([], [state])


def test_decoders_of_one_checkpoint_share_nothing(askers: list[Asker]) -> None:
    asker = askers[0]
    one, other = (Decoder(replace(asker.checkpoint), MODE) for _ in range(2))
    expected = asker.plain(one, [0, 1])
    assert one.generate(*asker.questions([0])).token_ids == expected[:1]
    assert other.generate(*asker.questions([1])).token_ids == expected[1:]
    assert one.generate(*asker.questions([0])).token_ids == expected[:1]
