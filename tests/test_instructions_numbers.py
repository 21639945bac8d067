"""Numbers as text: exactness, bounds, refusals."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range, numbers_from_json
from llarva.instructions.reader import AnswerError, InstructionError, Reader

REALS = arrays(np.float64, (3,), elements=st.floats(-999.9999, 999.9999))
decimals = DecimalNumbers()


@given(REALS)
def test_decimals_come_back_rounded_to_four_places(values):
    text = decimals.write(values, "action")
    back = decimals.read(Reader(text), "action", 3)
    np.testing.assert_array_equal(back, np.round(values, 4).astype(np.float32))
    assert decimals.write(back, "action") == text


def test_every_ten_thousandth_is_spelled_as_python_does():
    values = np.arange(-10_000, 10_000)[:, None] / 10_000
    for row, value in zip(values, values[:, 0], strict=True):
        assert decimals.write(row, "action") == f"[{float(value)!r}]"


@pytest.mark.parametrize(
    "values, field",
    [
        ([1000.0], "action"),
        ([-1000.0], "action"),
        ([999.99996], "action"),
        ([-1.0], "trace"),
        ([1e4], "trace"),
        ([math.nan], "action"),
        ([math.inf], "trace"),
        ([1.0, -math.inf], "state:x"),
    ],
)
def test_decimals_refuse_what_they_cannot_hold(values, field):
    with pytest.raises(InstructionError):
        decimals.write(values, field)


@pytest.mark.parametrize(
    "text, offset",
    [
        ("[nan]", 1),
        ("[inf]", 1),
        ("[-inf]", 1),
        ("[1]", 1),
        ("[1.]", 1),
        ("[.5]", 1),
        ("[01.5]", 1),
        ("[0.50]", 4),
        ("[0.12345]", 7),
        ("[1000.0]", 1),
        ("[1e-05]", 1),
        ("[0.5", 4),
        ("", 0),
        ("0.5", 0),
        ("[+0.5]", 1),
        ("[0.5 ]", 4),
        ("[٠.٥]", 1),
        ("[0." + "0" * 9999 + "]", 4),
    ],
)
def test_decimals_are_read_strictly(text, offset):
    with pytest.raises(AnswerError) as caught:
        decimals.read(Reader(text), "action", 1)
    assert caught.value.offset == offset
    assert len(str(caught.value)) < 200


RANGES = {"action": Range((-1.0, 0.0, -0.01), (1.0, 1.0, 0.05))}


@given(arrays(np.float64, (4, 3), elements=st.floats(-2, 2)), st.integers(2, 1000))
def test_bins_come_back_within_half_a_step_of_the_clipped_value(values, bins):
    numbers = BinNumbers(bins, RANGES)
    lower, upper = RANGES["action"].ends
    text = numbers.write(values, "action")
    reader = Reader(text)
    back = np.stack([numbers.read(reader, "action", 3) for _ in range(4)])
    reader.end()
    step = (upper - lower) / (bins - 1)
    assert (np.abs(back - np.clip(values, lower, upper)) <= step / 2 + 1e-6).all()
    assert numbers.write(back, "action") == text
    assert numbers.clipped(back, "action") == 0


def test_every_bin_is_reached_and_comes_back():
    numbers = BinNumbers(256, {"x": Range((-0.3,), (0.7,))})
    for index in range(256):
        value = numbers.decode([index], "x")
        assert numbers.write(value, "x") == f"<{index}>"


def test_ends_of_a_range_are_exact_and_beyond_is_counted():
    numbers = BinNumbers(256, RANGES)
    np.testing.assert_array_equal(
        numbers.decode(numbers.encode([[-1, 0, -0.01], [1, 1, 0.05]], "action"), "action"),
        np.float32([[-1, 0, -0.01], [1, 1, 0.05]]),
    )
    assert numbers.clipped([[1.5, 0.5, 0.0], [0, 1.001, 1]], "action") == 2
    assert numbers.encode([[1.5, -9, 9]], "action").tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(
    "text", ["<256>", "<-1>", "<01>", "<1.0>", "12", "<1", "< 1>", "<999999>", "<" + "0" * 5000 + ">"]
)
def test_bins_are_read_strictly(text):
    with pytest.raises(AnswerError) as caught:
        BinNumbers(256, {"x": Range((0.0,), (1.0,))}).read(Reader(text), "x", 1)
    assert caught.value.offset == 0


def test_bins_name_the_missing_or_unfitting_range():
    numbers = BinNumbers(256, RANGES)
    with pytest.raises(InstructionError, match="Unknown number range 'actoin'. Did you mean 'action'"):
        numbers.encode([1, 2, 3], "actoin")
    with pytest.raises(InstructionError, match="2 dimensions"):
        numbers.encode([1, 2], "action")
    with pytest.raises(InstructionError, match="finite"):
        numbers.encode([1, 2, math.nan], "action")


@pytest.mark.parametrize(
    "lower, upper", [((0.0,), (0.0,)), ((1.0,), (0.0,)), ((0.0,), (math.inf,)), ((), ()), ((0.0, 1.0), (2.0,))]
)
def test_impossible_ranges_are_refused(lower, upper):
    with pytest.raises(InstructionError):
        Range(lower, upper)


def test_fit_ignores_outliers_fixes_known_ends_and_survives_constants():
    rng = np.random.default_rng(1)
    values = np.column_stack([rng.uniform(-1, 1, 5000), np.zeros(5000), rng.integers(0, 2, 5000)])
    values[0, 0] = 1e6
    found = BinNumbers.fit({"a": values}, quantiles=(0.01, 0.99), fixed={("a", -1): (0.0, 1.0)}).range_of("a")
    assert found.upper[0] < 1.2 and found.lower[1] < 0 < found.upper[1]
    assert (found.lower[2], found.upper[2]) == (0.0, 1.0)
    for bad in (np.zeros((0, 2)), np.zeros(3), [[math.nan]]):
        with pytest.raises(InstructionError):
            BinNumbers.fit({"a": bad})


def test_json_gives_the_same_alphabet_and_broken_json_is_refused():
    numbers = BinNumbers(64, RANGES)
    assert numbers_from_json(json.loads(json.dumps(numbers.to_json()))) == numbers
    assert hash(numbers) == hash(numbers_from_json(numbers.to_json()))
    for broken in (
        {},
        {"kind": "hex"},
        {"kind": "bins"},
        {"kind": "bins", "bins": "x", "ranges": {}},
        {"kind": "bins", "bins": 9, "ranges": {"a": 3}},
        {"kind": "bins", "bins": 1, "ranges": {}},
    ):
        with pytest.raises(InstructionError):
            numbers_from_json(broken)


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_a_constant_is_read_whole_or_refused_where_it_differs(before, constant):
    reader = Reader(before + constant, len(before))
    reader.constant(constant)
    reader.end()
    other = Reader(before + constant[:-1], len(before))
    with pytest.raises(AnswerError) as caught:
        other.constant(constant)
    assert caught.value.offset == other.offset == len(before + constant[:-1])
