"""Every wording against a text written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range
from llarva.instructions.reader import InstructionError
from llarva.instructions.wordings import TEMPLATES, get_template

GOLDEN = Path(__file__).parent / "golden" / "instructions"
TRACE = [[64.2, 40.9], [60, 55.49], [51.5, 70.7]]  # 51.5 rounds half to even
JOINTS = np.array(
    [[0, 0.1745, 0, -0.8727, 0, 1.2217, 0.7854, 1], [-0.0086, -0.0226, -0.00271, -1.4021, -0.0017, 1.5246, 0.78229, 1]]
)
JOINT_ACTION = np.array([[0.12341, -0.5, 0, 0.00011, -0.00001, 1.25, 0, 1]])
POSES = np.array([[0.43121, 0.02, 0.31, 0, 0, 0.05, 1], [0.44, 0.01878, -0.3, 0.0001, -0.00001, 0.05, 0]])
MOVES = np.array([[0.01252, -0.004, 0, 0, 0, 0.00009, 1], [0.0125, -0.004, 0, 0, 0, -0.00002, 0]])


def setting(name):
    """Format, instruction, states, actions and control mode of a golden file."""
    template = get_template(name)
    history, n = template.history or 2, template.n or 2
    form = InstructionFormat(name, DecimalNumbers(), "panda", history, n, 3, (128, 128))
    if n == 1:
        return form, "sweep dirt to the tall dustpan", JOINTS, JOINT_ACTION, "joint_velocity"
    return form, "pick blue cube", POSES, MOVES, "end_effector_delta"


@pytest.mark.parametrize("name", TEMPLATES)
def test_wording_equals_its_golden_file(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    form, instruction, states, actions, mode = setting(name)
    written = {}
    for key in ("prompt", "prompt_with_trace"):
        if getattr(get_template(name), key):
            written[key] = form.prompt(instruction, states, mode, with_trace=key.endswith("trace"))
    written["answer"] = form.answer(None, actions, mode)
    if get_template(name).answer_with_trace:
        written["answer_with_trace"] = form.answer(TRACE, actions, mode)
    assert written == golden


@pytest.mark.parametrize("name", TEMPLATES)
def test_golden_texts_read_back_and_obey_the_grammar(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    form, instruction, states, actions, mode = setting(name)
    for key, text in golden.items():
        with_trace = key.endswith("trace")
        if key.startswith("prompt"):
            asked = form.parse_prompt(text)
            assert (asked.instruction, asked.control_mode, asked.with_trace) == (instruction, mode, with_trace)
            width = asked.states.shape[1]
            np.testing.assert_allclose(asked.states[-len(states) :], states[:, :width], atol=5.1e-5)
        else:
            back = form.parse(text, mode, with_trace)
            np.testing.assert_allclose(back.actions, actions, atol=5.1e-5)
            assert form.grammar(mode, with_trace).accepts(text)
            assert back.trace is None or back.trace.tolist() == np.rint(TRACE).tolist()


def test_there_is_one_golden_file_for_each_template():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(TEMPLATES)


def test_unknown_and_unpublished_wordings_are_refused():
    with pytest.raises(InstructionError, match="Valid choices: .*llarva-v10"):
        get_template("llarva-v1")
    form, _, _, actions, mode = setting("llarva-v8")
    with pytest.raises(InstructionError, match="never published"):
        form.answer(TRACE, actions, mode)
    with pytest.raises(InstructionError, match="without trace"):
        setting("llarva-v2")[0].prompt("go", POSES, "end_effector_delta", with_trace=True)


def test_legacy_settings_are_enforced():
    for change in ({"history": 4}, {"n": 2}):
        with pytest.raises(InstructionError, match="llarva-v7"):
            InstructionFormat.from_json(setting("llarva-v7")[0].to_json() | change)
    bins = BinNumbers(256, {"trace": Range((0.0, 0.0), (128.0, 128.0))})
    with pytest.raises(InstructionError, match="decimal"):
        InstructionFormat("llarva-v3", bins, "panda", 5, 2, 30, (128, 128))


def test_traces_of_any_length_up_to_the_agreed_one():
    form = setting("llarva-v3")[0]
    for length in range(4):
        text = form.answer(np.ones((length, 2)), MOVES, "end_effector_delta")
        assert form.parse(text, "end_effector_delta").trace.shape == (length, 2)
        assert form.grammar("end_effector_delta").accepts(text)
    with pytest.raises(InstructionError, match=r"\[0 to 3, 2\]"):
        form.answer(np.ones((4, 2)), MOVES, "end_effector_delta")
