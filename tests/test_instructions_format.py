"""Prompt and answer: exact inverses, and refusals that say where."""

import dataclasses
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range
from llarva.instructions.reader import AnswerError, InstructionError
from llarva.robots import RobotError

MODES = {"joint_velocity": (8, 8), "end_effector_delta": (7, 7)}  # state and action size
BINS = BinNumbers(
    256,
    {"trace": Range((0.0, 0.0), (128.0, 96.0))}
    | {
        f"{kind}:{mode}": Range((-2.0,) * size, (2.0,) * size)
        for mode, sizes in MODES.items()
        for kind, size in zip(("state", "action"), sizes, strict=True)
    },
)
FORMATS = {
    kind: InstructionFormat("llarva-workbench-v1", numbers, "panda", 3, 2, 4, (96, 128))
    for kind, numbers in (("decimal", DecimalNumbers()), ("bins", BINS))
}
PRECISION = {"decimal": (0.5, 5.1e-5), "bins": (0.26, 4 / 255 / 2 + 1e-6)}  # pixels, units

kinds = st.sampled_from(sorted(FORMATS))
modes = st.sampled_from(sorted(MODES))
numbers = st.floats(-2, 2, width=32)
instructions = st.text(st.characters(exclude_characters="<>\n\r", codec="utf-8"), min_size=1).filter(str.strip)


@given(kinds, modes, st.booleans(), st.data())
def test_answer_and_parse_are_inverses(kind, mode, with_trace, data):
    form = FORMATS[kind]
    actions = data.draw(arrays(np.float32, (2, MODES[mode][1]), elements=numbers))
    trace = data.draw(arrays(np.float32, (4, 2), elements=st.floats(0, 96, width=32))) if with_trace else None
    text = form.answer(trace, actions, mode)
    back = form.parse(text, mode, with_trace)
    pixels, units = PRECISION[kind]
    np.testing.assert_allclose(back.actions, actions, atol=units, rtol=0)
    assert back.actions.dtype == np.float32 and (back.trace is None) == (trace is None)
    if trace is not None:
        np.testing.assert_allclose(back.trace, trace, atol=pixels, rtol=0)
    assert form.answer(back.trace, back.actions, mode) == text
    assert form.grammar(mode, with_trace).accepts(text)


@given(kinds, modes, st.booleans(), instructions, st.integers(1, 3), st.data())
def test_prompt_and_parse_prompt_are_inverses(kind, mode, with_trace, instruction, known, data):
    form = FORMATS[kind]
    states = data.draw(arrays(np.float32, (known, MODES[mode][0]), elements=numbers))
    text = form.prompt(instruction, states, mode, with_trace)
    back = form.parse_prompt(text)
    assert (back.instruction, back.control_mode, back.with_trace) == (instruction, mode, with_trace)
    np.testing.assert_allclose(back.states[-known:], states, atol=PRECISION[kind][1], rtol=0)
    assert form.prompt(back.instruction, back.states, mode, with_trace) == text


@pytest.mark.parametrize("kind", FORMATS)
def test_an_instruction_may_quote_the_prompt_itself(kind):
    form = FORMATS[kind]
    nasty = 'say "go", and the previous 3 steps are [[0.0]]. Can you predict the action of the next 2 steps?'
    assert form.parse_prompt(form.prompt(nasty, np.zeros((1, 8)), "joint_velocity")).instruction == nasty


@pytest.mark.parametrize("instruction", ["", "  ", "two\nlines", "an <image> inside", "<12>", "</s>"])
def test_instructions_that_would_break_the_tokens_are_refused(instruction):
    with pytest.raises(InstructionError):
        FORMATS["bins"].prompt(instruction, np.zeros((1, 8)), "joint_velocity")


MUTATIONS = "[]<>, .-0129eEnaif\n"


@settings(max_examples=300)
@given(kinds, modes, st.booleans(), st.data())
def test_parser_and_grammar_agree_on_damaged_answers(kind, mode, with_trace, data):
    form = FORMATS[kind]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    text = form.answer(
        rng.uniform(0, 96, (4, 2)) if with_trace else None, rng.uniform(-2, 2, (2, MODES[mode][1])), mode
    )
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.sampled_from([0, 0, 1, 1, 2, 5, 1000]))
        text = text[:start] + data.draw(st.text(MUTATIONS, max_size=2)) + text[end:]
    try:
        back = form.parse(text, mode, with_trace)
    except AnswerError as error:
        assert 0 <= error.offset <= len(text)
        assert f"character {error.offset}" in str(error)
        assert not form.grammar(mode, with_trace).accepts(text)
    else:
        assert form.grammar(mode, with_trace).accepts(text)
        assert form.answer(back.trace, back.actions, mode) == text  # one spelling for each answer


@given(kinds, st.data())
def test_every_truncation_is_refused_at_its_end(kind, data):
    form = FORMATS[kind]
    text = form.answer(np.ones((4, 2)), np.full((2, 7), 0.25), "end_effector_delta")
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(AnswerError) as caught:
        form.parse(text[:cut], "end_effector_delta")
    assert caught.value.offset <= cut
    if kind == "decimal":
        assert caught.value.found == "the end of the text" or caught.value.offset < cut


def broken_answers(kind):
    form = FORMATS[kind]
    good = form.answer(np.full((4, 2), 8), np.full((2, 7), 0.25), "end_effector_delta")
    first = good.index("0.25") if kind == "decimal" else good.index(". The next action: ") + len(". The next action: ")
    word = "0.25" if kind == "decimal" else good[first : good.index(">", first) + 1]
    swap = lambda new: good[:first] + new + good[first + len(word) :]  # noqa: E731
    cases = {
        "trailing text": (good + " Then", len(good)),
        "second answer": (good + good, len(good)),
        "nan": (swap("nan"), first),
        "inf": (swap("-inf"), first),
        "extra bracket": (swap("[" + word), first),
        "empty": ("", 0),
        "no label": (good[5:], 0),
        "zeros": (swap("0" * 5000), first),
    }
    if kind == "decimal":
        cases |= {
            "many zeros after the point": (swap("0." + "0" * 5000), first + 3),
            "one number more": (swap("0.25, 0.25"), good.index("], [", first)),
            "one number less": (good[:first] + good[first + 6 :], good.index("], [", first) - 6),
        }
    else:
        cases |= {"one number more": (swap(word * 2), good.rindex(".")), "a bin too many": (swap("<256>"), first)}
    return form, cases


@pytest.mark.parametrize("kind", FORMATS)
def test_malformed_answers_say_where(kind):
    form, cases = broken_answers(kind)
    for name, (text, offset) in cases.items():
        started = time.perf_counter()
        with pytest.raises(AnswerError) as caught:
            form.parse(text, "end_effector_delta")
        assert caught.value.offset == offset, (name, str(caught.value))
        assert len(str(caught.value)) < 250 and time.perf_counter() - started < 0.5, name


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [(3, 2), (5, 2), (4, 1), (4, 3)])
def test_a_row_too_few_or_too_many_is_refused(kind, rows):
    form, mode = FORMATS[kind], "end_effector_delta"
    other = dataclasses.replace(form, trace_points=rows[0], n=rows[1])
    text = other.answer(np.full((rows[0], 2), 8), np.full((rows[1], 7), 0.25), mode)
    with pytest.raises(AnswerError):
        form.parse(text, mode)
    assert not form.grammar(mode).accepts(text)


@pytest.mark.parametrize("kind", FORMATS)
def test_writing_refuses_wrong_shapes_and_values(kind):
    form = FORMATS[kind]
    good = (np.ones((4, 2)), np.zeros((2, 7)))
    for trace, actions in (
        (np.ones((3, 2)), good[1]),
        (np.ones((4, 3)), good[1]),
        (good[0], np.zeros((1, 7))),
        (good[0], np.zeros((2, 8))),
        (good[0], np.full((2, 7), np.nan)),
        (np.full((4, 2), np.inf), good[1]),
        (good[0], np.zeros(7)),
    ):
        with pytest.raises(InstructionError):
            form.answer(trace, actions, "end_effector_delta")
    for states in (np.zeros((4, 7)), np.zeros((0, 7)), np.zeros((1, 8)), np.zeros(7), np.full((1, 7), np.nan)):
        with pytest.raises(InstructionError):
            form.prompt("go", states, "end_effector_delta")
    with pytest.raises(InstructionError, match="Valid choices"):
        form.answer(*good, "telepathy")


@pytest.mark.parametrize("kind", FORMATS)
def test_points_outside_the_image_move_to_its_edge(kind):
    form = FORMATS[kind]
    trace = [[-5, 50], [200, 50], [64, 1e5], [64, -1e5]]
    back = form.parse(form.answer(trace, np.zeros((2, 7)), "end_effector_delta"), "end_effector_delta")
    np.testing.assert_allclose(back.trace, [[0, 50], [128, 50], [64, 96], [64, 0]], atol=PRECISION[kind][0])


def test_short_history_repeats_the_oldest_state():
    states = np.array([[0.1] * 7, [0.2] * 7])
    back = FORMATS["decimal"].parse_prompt(FORMATS["decimal"].prompt("go", states, "end_effector_delta"))
    np.testing.assert_allclose(back.states[:, 0], [0.1, 0.1, 0.2], atol=1e-6)


@given(kinds, st.floats(0, 128), st.floats(0, 96))
def test_pointing_comes_back(kind, x, y):
    form = FORMATS[kind]
    np.testing.assert_allclose(form.parse_point(form.point_answer([x, y])), [x, y], atol=PRECISION[kind][0] + 1e-5)


def test_pointing_asks_for_plain_names_and_refuses_broken_answers():
    form = FORMATS["decimal"]
    assert form.point_prompt("red button") == "Point at the red button"
    assert form.point_prompt("red button", with_image=True) == "<image>\nPoint at the red button"
    with pytest.raises(InstructionError):
        form.point_prompt("<image>")
    for text in ("[1]", "[1, 2, 3]", "[1, 2] ", "[-1, 2]", "[1.5, 2]", "[00, 2]", "[129, 2]", "[2, 97]"):
        with pytest.raises(AnswerError):
            form.parse_point(text)


@pytest.mark.parametrize("kind", FORMATS)
def test_phrases_cover_all_constant_text(kind):
    form = FORMATS[kind]
    text = (
        form.prompt("PUSH", np.full((1, 8), 0.5), "joint_velocity")
        + form.answer(np.ones((4, 2)), np.full((2, 8), 0.5), "joint_velocity")
        + form.point_prompt("LAMP")
    )
    assert all(len(phrase) > 1 and "<image>" not in phrase for phrase in form.phrases())
    for phrase in sorted((*form.phrases(), *form.number_tokens(), "<image>"), key=len, reverse=True):
        text = text.replace(phrase, "|")
    assert not set(text) - set("|PUSHLAMP?.,[] 0123456789")
    assert len(set(form.phrases())) == len(form.phrases()) < 15


@pytest.mark.parametrize("kind", FORMATS)
def test_json_gives_the_same_format(kind):
    form = FORMATS[kind]
    plain = json.loads(json.dumps(form.to_json()))
    assert InstructionFormat.from_json(plain) == form
    for change in ({"template": "x"}, {"robot": "x"}, {"history": 0}, {"n": 0}, {"image_size": [0, 4]}, {"colour": 1}):
        with pytest.raises((InstructionError, RobotError)):
            InstructionFormat.from_json(plain | change)
    with pytest.raises(InstructionError, match="missing \\['n'\\]"):
        InstructionFormat.from_json({key: value for key, value in plain.items() if key != "n"})


def test_prompt_errors_come_from_the_reading_that_came_furthest():
    form = FORMATS["decimal"]
    text = form.prompt("go", np.zeros((3, 7)), "end_effector_delta")
    with pytest.raises(AnswerError) as caught:
        form.parse_prompt(text[:-3])
    assert caught.value.offset == len(text) - 3
