"""Of number tokens the median, of others the likeliest, and the same by every road."""

from typing import Any

import numpy as np
import pytest
import torch
from decoding_models import DECIMAL, FORMAT, MODE, Asker, make_checkpoint, plain_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.decoding import Decoder, plain_generate
from llarva.policy import Policy
from llarva.token_choice import (
    MedianNumbers,
    NumberChoiceError,
    could_be_chosen,
    median_or_likeliest,
    number_ids,
    penalty_rows,
    takes_medians,
)

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=40)


def unsure() -> Asker:
    """A model whose distributions have more than a peak."""
    asker = Asker(FORMAT, 0)
    with torch.no_grad():
        asker.checkpoint.model.lm_head.weight.mul_(0.2)
    return asker


def test_penalties_are_the_grammar() -> None:
    grammar = Decoder(make_checkpoint(DECIMAL), MODE).grammar
    penalties, row = penalty_rows(grammar, grammar.size)
    assert len(penalties) < len(grammar)
    for state in range(len(grammar)):
        assert torch.nonzero(penalties[row[state]] == 0).flatten().tolist() == grammar.allowed(state).tolist()


@settings(deadline=None)
@given(logits=LOGITS, seed=st.integers(0, 99))
def test_half_of_the_chances_lie_on_either_side(logits: list[float], seed: int) -> None:
    """Whatever the ids of the number tokens, it is the order of their values that counts."""
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = torch.full((len(logits) + 2,), float("-inf"))
    scores[torch.tensor(order)] = torch.tensor(logits)
    chosen = int(median_or_likeliest(scores, torch.tensor(order)))
    chances, place = torch.tensor(logits).double().softmax(0), order.tolist().index(chosen)
    assert chances[:place].sum() < 0.5 + 1e-5 and chances[place + 1 :].sum() < 0.5 + 1e-5


@settings(deadline=None)
@given(logits=LOGITS)
def test_what_is_no_number_is_chosen_as_ever(logits: list[float]) -> None:
    scores = torch.tensor([[*logits, 9.0], [*logits, float("-inf")]])
    numbers = torch.arange(len(logits))
    assert int(median_or_likeliest(scores, numbers)[0]) == len(logits)
    assert torch.equal(median_or_likeliest(scores, None), scores.argmax(-1))
    assert median_or_likeliest(torch.tensor([float("-inf"), float("-inf"), 0.0]), torch.tensor([0, 1])) == 2


@settings(deadline=None)
@given(logits=LOGITS, seed=st.integers(0, 99))
def test_what_is_chosen_after_small_errors_could_have_been_chosen(logits: list[float], seed: int) -> None:
    exact, slack = torch.tensor(logits), 0.3
    error = torch.from_numpy(np.random.default_rng(seed).uniform(-slack / 2, slack / 2, len(logits))).float()
    for numbers in (None, torch.arange(len(logits)), torch.arange(1, len(logits))):
        assert could_be_chosen(exact, int(median_or_likeliest(exact, numbers)), numbers, 1e-6)
        if numbers is None or len(numbers) == len(logits):
            assert could_be_chosen(exact, int(median_or_likeliest(exact + error, numbers)), numbers, slack)


def test_a_number_far_from_the_median_could_not_have_been_chosen() -> None:
    scores = torch.tensor([0.3, 0.29, 0.41]).log()
    numbers = torch.arange(3)
    assert [could_be_chosen(scores, token, numbers, 1e-3) for token in range(3)] == [False, True, False]
    assert [could_be_chosen(scores, token, None, 1e-3) for token in range(3)] == [False, False, True]


@pytest.mark.parametrize("choice", ["median", "likeliest"])
def test_every_road_leads_to_the_same_tokens(choice: str) -> None:
    asker = unsure()
    images, prompts = asker.questions([0, 1, 2, 5])
    for runner in ("lean", "library", "static"):
        for draft in (False, True):
            decoder = Decoder(asker.checkpoint, MODE, runner=runner, draft=draft, number_choice=choice)
            expected = plain_answers(asker.checkpoint, decoder, images, prompts)
            assert decoder.generate(images, prompts).token_ids == expected
            assert decoder.generate(images[:1], prompts[:1]).token_ids == expected[:1]


def test_the_choice_is_the_decoder_s() -> None:
    asker = unsure()
    image, prompt = asker.question(0)
    said = {}
    for choice in ("auto", "median", "likeliest"):
        policy = Policy(asker.checkpoint, MODE, number_choice=choice)
        said[choice] = policy.decoder.generate(image[None], [prompt]).token_ids[0]
    assert said["auto"] == said["median"] != said["likeliest"]
    grammar = policy.decoder.grammar
    assert said["likeliest"] == plain_generate(asker.checkpoint, grammar, image, prompt)
    assert Decoder(make_checkpoint(DECIMAL), MODE).numbers is None, "digits have no median"


def test_ids_of_numbers_are_in_the_order_of_values() -> None:
    tokens = FORMAT.number_tokens()
    vocabulary = ["", *reversed(tokens), "push", *tokens]
    assert number_ids(FORMAT, vocabulary) == list(range(len(tokens), 0, -1)), "of equal texts the first"
    assert number_ids(FORMAT, vocabulary[2 : len(tokens)]) == list(range(len(tokens) - 3, -1, -1)), "some are lacking"
    assert number_ids(DECIMAL, vocabulary) == []


def test_the_library_is_left_one_token() -> None:
    scores = torch.tensor([[0.3, 0.29, 0.41, 0.0]]).log()
    left = MedianNumbers([0, 1, 2], torch.device("cpu"))(torch.zeros(1, 4), scores)
    assert torch.isfinite(left).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("format,choice,says", [
    (FORMAT, "mean", "Unknown choice of numbers 'mean'.*auto, likeliest, median"),
    (DECIMAL, "median", "spelled in digits.*auto, likeliest"),
])
def test_what_there_is_to_choose(format: Any, choice: str, says: str) -> None:
    with pytest.raises(NumberChoiceError, match=says):
        takes_medians(format, choice)
    with pytest.raises(NumberChoiceError, match=says):
        Decoder(make_checkpoint(format), MODE, number_choice=choice)
