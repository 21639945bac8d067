"""Decoding must be fast and must not change a single token."""

import copy
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from decoding_models import DECIMAL, FORMAT, MODE, Asker, make_checkpoint, pictures, plain_answers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from llarva.decoding import Decoder, DecodingError, answer_format
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.kinematics import proprioception
from llarva.lean_llama import LeanLlama, lean_obstacle
from llarva.models.checkpoints import Checkpoint, load_checkpoint
from llarva.models.pretrained import pretrained
from llarva.policy import known_control_modes
from llarva.robots import get_robot
from llarva.text_cache import RunnerError
from llarva.text_runners import LibraryRunner, StaticRunner, make_runner

pytest.importorskip("llarva.tabletop.env")  # registers the tasks


@pytest.fixture(scope="module")
def bins() -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="module")
def decimals() -> Checkpoint:
    return make_checkpoint(replace(FORMAT, numbers=DecimalNumbers(), n=1, trace_points=2), seed=3)


def ask(format: InstructionFormat, count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    words = ["go", "push the red button", "open the top drawer and then wait for a while", "push it"]
    prompts = [format.prompt(words[i % 4], rng.uniform(-1, 1, (1, 7)), MODE) for i in range(count)]
    return pictures(rng, count), prompts


@pytest.mark.parametrize("runner", ["lean", "library", "static"])
@pytest.mark.parametrize("kind", ["bins", "decimals"])
def test_tokens_equal_plain_generate(kind: str, runner: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(kind)
    decoder = Decoder(checkpoint, MODE, runner=runner)
    images, prompts = ask(checkpoint.format, 4)
    expected = plain_answers(checkpoint, decoder, images, prompts)
    assert len({tuple(ids) for ids in expected}) == 4, "the rows should differ, else this tests little"
    assert decoder.generate(images, prompts).token_ids == expected
    for row in range(4):
        assert decoder.generate(images[row : row + 1], prompts[row : row + 1]).token_ids == expected[row : row + 1]


def test_decimal_rows_have_different_lengths_and_parse(decimals: Checkpoint) -> None:
    decoder = Decoder(decimals, MODE)
    images, prompts = ask(decimals.format, 4)
    decoded = decoder.generate(images, prompts)
    assert len(set(map(len, decoded.token_ids))) > 1
    assert decoded.forwards < max(map(len, decoded.token_ids)), "forced tokens should not cost forwards of their own"
    for text in decoded.texts:
        assert decimals.format.parse(text, MODE).actions.shape == (1, 7)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 2**31))
def test_a_row_does_not_depend_on_its_batch(bins_rows: list[int], seed: int) -> None:
    checkpoint = make_checkpoint()
    decoder = Decoder(checkpoint, MODE)
    images, prompts = ask(checkpoint.format, 6, seed)
    alone = {row: decoder.generate(images[[row]], [prompts[row]]).token_ids[0] for row in set(bins_rows)}
    together = decoder.generate(images[bins_rows], [prompts[row] for row in bins_rows])
    assert together.token_ids == [alone[row] for row in bins_rows]


def test_without_trace(bins: Checkpoint) -> None:
    decoder = Decoder(bins, MODE, with_trace=False)
    images, _ = ask(bins.format, 2)
    prompts = [bins.format.prompt("go", np.zeros((1, 7)), MODE, with_trace=False)] * 2
    decoded = decoder.generate(images, prompts)
    assert decoded.token_ids == plain_answers(bins, decoder, images, prompts)
    assert bins.format.parse(decoded.texts[0], MODE, with_trace=False).trace is None


def test_fewer_steps_are_the_first_steps(bins: Checkpoint) -> None:
    images, prompts = ask(bins.format, 2)
    whole = Decoder(bins, MODE).generate(images, prompts)
    short = Decoder(bins, MODE, steps=1).generate(images, prompts)
    assert short.tokens < whole.tokens
    for a, b in zip(short.texts, whole.texts, strict=True):
        first = answer_format(bins.format, 1).parse(a, MODE)
        assert np.array_equal(first.actions, bins.format.parse(b, MODE).actions[:1])
    for steps in (0, 4):
        with pytest.raises(DecodingError, match="predicts 3"):
            Decoder(bins, MODE, steps=steps)


def test_adapters_are_merged_into_a_copy(bins: Checkpoint) -> None:
    checkpoint = make_checkpoint()
    lora = LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(checkpoint.model, lora)
    decoder = Decoder(replace(checkpoint, model=adapted), MODE)
    assert decoder.runner.name == "lean Llama"
    assert any(".lora_" in name for name, _ in adapted.named_parameters()), "the caller's model must stay adapted"
    images, prompts = ask(bins.format, 3)
    expected = plain_answers(replace(checkpoint, model=adapted), decoder, images, prompts)
    assert decoder.generate(images, prompts).token_ids == expected
    assert expected != Decoder(bins, MODE).generate(images, prompts).token_ids


@pytest.mark.parametrize("runner", ["lean", "library", "static"])
def test_guessing_ahead_changes_no_token(bins: Checkpoint, runner: str) -> None:
    images, prompts = ask(bins.format, 2)
    plain = Decoder(bins, MODE, runner=runner, draft=False).generate(images, prompts)
    decoder = Decoder(bins, MODE, runner=runner)
    for row, truth in enumerate(plain.token_ids):
        for spoil in (1000, 0, 1, 3):  # every guess right, or wrong from this place on
            decoder.drafter.guess = (  # type: ignore[method-assign]
                lambda answer, state, hints, truth=truth, spoil=spoil: oracle(decoder, truth, answer, state, spoil)
            )
            got = decoder.generate(images[[row]], [prompts[row]])
            assert got.token_ids == [truth]
            assert (got.forwards < plain.forwards) == (spoil > 0)


def oracle(
    decoder: Decoder, truth: list[int], answer: list[int], state: int, spoil: int
) -> tuple[list[int], list[int]]:
    guess, states = [], [state]
    for place, token in enumerate(truth[len(answer) : len(answer) + 6]):
        legal = decoder.grammar.allowed(states[-1])
        token = int(legal[(int(np.searchsorted(legal, token)) + (place >= spoil)) % len(legal)])
        if token == decoder.grammar.end_id:
            break
        guess.append(token)
        states.append(decoder.grammar.advance(states[-1], token))
    return guess, states


def test_guesses_are_learned_from_what_repeats(bins: Checkpoint) -> None:
    drafter = Decoder(bins, MODE).drafter
    grammar = drafter.grammar
    run, state = grammar.forced_run(grammar.start)
    assert drafter.guess(run, state, {}) == ([], [state])
    answer = list(run)
    while state != grammar.end:
        # All actions are alike, but not the numbers within one.
        choices = grammar.allowed(state)
        token = int(choices[len(answer) % drafter.period % len(choices)])
        answer.append(token)
        state = grammar.advance(state, token)
    drafter.learn(answer, {})
    drafter.learn(answer, {})
    place = len(answer) - 9
    state = grammar.start
    for token in answer[:place]:
        state = grammar.advance(state, token)
    guess, states = drafter.guess(answer[:place], state, {})
    assert guess == answer[place : place + len(guess)] and len(guess) >= 6 and len(states) == len(guess) + 1
    drafter.reset()
    assert drafter.guess(answer[:place], state, {})[0] == []


def test_equal_images_are_looked_at_once(bins: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, looked = Decoder(bins, MODE), []
    real = decoder.model.get_image_features

    def look(pixel_values: torch.Tensor, **options: bool) -> object:
        looked.append(len(pixel_values))
        return real(pixel_values=pixel_values, **options)

    monkeypatch.setattr(decoder.model, "get_image_features", look)
    images, prompts = ask(bins.format, 3)
    images[2] = images[0]
    expected = plain_answers(bins, decoder, images, prompts)
    looked.clear()
    decoder.reset()
    assert decoder.generate(images, prompts).token_ids == expected and looked == [2]


def test_requests_that_do_not_fit_are_refused(bins: Checkpoint) -> None:
    decoder = Decoder(bins, MODE)
    images, prompts = ask(bins.format, 2)
    for wrong in ((images, prompts[:1]), (images[:0], [])):
        with pytest.raises(DecodingError, match="one image per prompt"):
            decoder.generate(*wrong)
    with pytest.raises(DecodingError, match="did not end"):
        Decoder(bins, MODE, max_tokens=5).generate(images, prompts)
    with pytest.raises(RunnerError, match="'slow'.*auto, lean, library, static"):
        Decoder(bins, MODE, runner="slow")


@pytest.mark.parametrize("groups,bias,act", [(4, False, "silu"), (2, True, "silu"), (1, False, "gelu")])
def test_lean_llama_equals_the_library(groups: int, bias: bool, act: str) -> None:
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=groups, attention_bias=bias, mlp_bias=bias, hidden_act=act, initializer_range=0.3,
        rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    )).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    head = torch.nn.Linear(32, 40)
    tokens, valid = torch.randn(3, 12, 32), torch.rand(3, 12) > 0.3
    valid[:, [4, 5, 11]] = True
    runners = [LeanLlama(model, head), LibraryRunner(model, head), StaticRunner(model, head)]
    for first, last in ((0, 5), (5, 6), (6, 12)):
        results = []
        for runner in runners:
            if first == 0:
                runner.start(3, 4)
            results.append(runner.feed(tokens[:, first:last], valid[:, first:last]))
        for other in results[1:]:
            assert results[0].shape == (3, 1, 40) and torch.allclose(results[0], other, rtol=1e-3, atol=1e-4)


def test_other_text_models_take_the_library() -> None:
    qwen = Qwen2Model(Qwen2Config(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=2))
    assert make_runner(qwen, torch.nn.Linear(16, 20)).name == "transformers"
    assert "'qwen2'" in str(lean_obstacle(qwen))
    llama = LlamaModel(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                   num_attention_heads=2)).to(torch.bfloat16)
    assert make_runner(llama, torch.nn.Linear(16, 20)).name == "transformers"
    assert "bfloat16" in str(lean_obstacle(llama))
    with pytest.raises(RunnerError, match="qwen2"):
        make_runner(qwen, torch.nn.Linear(16, 20), "lean")


def test_the_shipped_checkpoint_decodes_to_the_same_tokens() -> None:
    checkpoint = load_checkpoint(pretrained())
    for mode in known_control_modes(checkpoint.format):
        decoder = Decoder(checkpoint, mode)
        env = gymnasium.make("llarva/push_buttons-v0", control_mode=mode, image_size=checkpoint.format.image_size[0])
        scenes = [env.reset(seed=1_900_000 + i, options={"variation": i}) for i in range(4)]
        robot = get_robot(checkpoint.format.robot)
        states = [proprioception(robot, mode, seen["state"], float(seen["gripper_open"][0])) for seen, _ in scenes]
        images = np.stack([seen["image"] for seen, _ in scenes])
        prompts = [checkpoint.format.prompt(info["instruction"], state[None], mode)
                   for (_, info), state in zip(scenes, states, strict=True)]
        env.close()
        assert decoder.runner.name == "lean Llama"
        assert decoder.generate(images, prompts).token_ids == plain_answers(checkpoint, decoder, images, prompts)


def test_a_processor_of_another_model_is_refused(bins: Checkpoint) -> None:
    model = copy.deepcopy(bins.model)
    model.config.image_token_id = 7
    with pytest.raises(DecodingError, match="3 and 7"):
        Decoder(replace(bins, model=model), "joint_velocity")


def test_guesses_that_are_right_get_wider() -> None:
    asker = Asker(DECIMAL, 0)
    decoder, (images, prompts) = Decoder(asker.checkpoint, MODE), asker.questions([0])
    right = Decoder(asker.checkpoint, MODE, draft=False).generate(images, prompts).texts
    forwards = [decoder.generate(images, prompts, right).forwards for _ in range(5)]
    assert forwards[0] >= 4 and forwards[1:] == [2] * 4, "the whole answer at once, and its end"
    assert decoder.drafter.width > decoder.drafter.shortest
    wrong = decoder.generate(images, prompts, [right[0].replace("1", "2").replace("3", "4")])
    assert wrong.texts == right and decoder.drafter.width == decoder.drafter.shortest
    decoder.generate(images, prompts, right)
    decoder.reset()
    assert decoder.generate(images, prompts, right).forwards == forwards[0]
