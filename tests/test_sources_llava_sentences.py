"""Sentences of LLaVA conversations: what is written reads back, and noise is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources_llava_json import pretraining

from llarva.instructions.conversations import read_conversation
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.wordings import TEMPLATES
from llarva.sources.json_list import Unreadable

# --- sentences -------------------------------------------------------------------------------------------------------

WRITABLE = [
    (name, with_trace)
    for name, template in TEMPLATES.items()
    for with_trace in (False, True)
    if not with_trace or (template.prompt_with_trace and template.answer_with_trace)
]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>\n\r"), min_size=1, max_size=30).filter(str.strip)
NUMBER = st.floats(-999, 999, width=32).map(lambda x: round(x, 4))
ROW = st.lists(NUMBER, min_size=8, max_size=8)


@given(st.data(), st.sampled_from(WRITABLE))
@settings(max_examples=60, deadline=None)
def test_what_our_writer_writes_reads_back(data, case):
    name, with_trace = case
    template = TEMPLATES[name]
    mode = "joint_velocity"
    n = template.n or data.draw(st.integers(1, 9))
    history = template.history or data.draw(st.integers(1, 6))
    written = InstructionFormat(name, DecimalNumbers(), "panda", history, n, 3, (64, 96))
    words = data.draw(WORDS)
    states = np.array(data.draw(st.lists(ROW, min_size=history, max_size=history)))
    actions = np.array(data.draw(st.lists(ROW, min_size=n, max_size=n)))
    points = data.draw(st.lists(st.tuples(st.integers(0, 96), st.integers(0, 64)), min_size=3, max_size=3))
    human = written.prompt(words, states, mode, with_trace)
    answer = written.answer(points if with_trace else None, actions, mode)
    found = read_conversation(human, answer)
    known = written.parse(answer, mode, with_trace)
    assert (found.robot, found.control, found.instruction, found.n) == ("Franka", "joint control", words, n)
    np.testing.assert_array_equal(found.actions, known.actions)
    asked = written.parse_prompt(human)
    np.testing.assert_array_equal(found.states[-len(asked.states) :], asked.states)
    assert (found.trace is None) == (not with_trace) and not found.remarks
    if with_trace:
        np.testing.assert_array_equal(found.trace, known.trace)
    # Wordings that share all their sentences bear the earliest name.
    same = TEMPLATES[found.wording]
    assert same.sentence("prompt", with_trace).replace("{n}", str(n)) == template.sentence(
        "prompt", with_trace
    ).replace("{n}", str(n))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_noise_never_passes_unnoticed(data):
    entry = pretraining(3)
    human, answer = (turn["value"] for turn in entry["conversations"])
    place = data.draw(st.integers(0, len(answer)))
    noise = data.draw(st.text("[]{}x,. -0e", min_size=1, max_size=3))
    try:
        found = read_conversation(human, answer[:place] + noise + answer[place:])
    except Unreadable:
        return
    assert np.isfinite(found.actions).all() and found.trace is not None and found.trace.shape[1:] == (2,)


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("The trajectory: [[1, 2]]", "does not fit"),
        ("The next action step: []. The trajectory: []", "no action"),
        ("The next action step: [[1, 2], [3]]. The trajectory: []", "equal length"),
        ("The next action step: [[]]. The trajectory: []", "equal length"),
        ("The next action step: [[1e999]]. The trajectory: []", "not finite"),
        ("The next action step: [[nan]]. The trajectory: []", "no number"),
        ("The next action step: [[1, 2]]. The trajectory: [[1, 2], [-1]]", "equal length"),
        ("The next action step: [[1, 2]]. The trajectory: [[1, 2, 3]]", r"\[x, y\]"),
        ("The next action step: [[1, 2]]. The trajectory: [1, 2]", r"\[x, y\]"),
        ("The next action step: [[[1]]]. The trajectory: []", "does not fit"),
        ("The next action step: [[1, 2]]. The trajectory: [[1, 2]].", "does not fit"),
    ],
)
def test_answers_that_are_refused(answer, reason):
    human = pretraining(0)["conversations"][0]["value"]
    with pytest.raises(Unreadable, match=reason):
        read_conversation(human, answer)


def test_odd_rows_are_kept_and_remarked():
    human = pretraining(0, n=4)["conversations"][0]["value"].replace("[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], ", "", 1)
    found = read_conversation(human, "The next action step: [[0.5], [1]]. The trajectory: []")
    assert set(found.remarks) == {
        "fewer actions than asked for",
        "a shorter history than the prompt says",
        "a trace without points",
    }
    assert found.actions.tolist() == [[0.5], [1.0]] and found.trace.shape == (0, 2) and len(found.states) == 4


@pytest.mark.parametrize("order", [("{a}. The trajectory: {t}", "a"), ("The 2D trace is {t}. {a}", "t")])
def test_traces_of_unpublished_wording_tell_it(order):
    action, trace = "The next action step: [0.1, 0.2, 1.0]", "[[64, 31], [60, 35]]"
    human = (
        '<image>\nYou are a Franka robot using the joint control. The task is "sweep", and the previous five '
        "(including current) steps are [[0, 0], [0.1, 0.2]]. Can you predict the 2D visual trace of the end effector "
        "and the action of the next 1 step?"
    )
    found = read_conversation(human, order[0].format(a=action, t=trace))
    assert found.actions.tolist() == [[np.float32(0.1), np.float32(0.2), 1.0]]
    assert found.trace.tolist() == [[64, 31], [60, 35]]
    assert found.wording == "llarva-v8: " + order[0].format(a="The next action step: {actions}", t="{trace}")
    for wrong in (action, action + action + trace, trace, f"{action} {trace} {trace}"):
        with pytest.raises(Unreadable, match="does not fit"):
            read_conversation(human, wrong)


def test_a_hostile_prompt_costs_little():
    text = "<image>\nYou are a " + 'x robot using the y. The task is "' * 40_000
    with pytest.raises(Unreadable, match="no known wording"):
        read_conversation(text, "[" * 100_000)
