"""Data cards."""

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llarva.cards import CardError, cards_table, load_card, load_cards
from llarva.robots import CONTROL_MODES

CARDS = Path(__file__).parents[1] / "data_cards"
GOOD = (CARDS / "tabletop.md").read_text(encoding="utf-8")


def load(tmp_path, text, name="tabletop"):
    path = tmp_path / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    return load_card(path)


def test_shipped_cards():
    cards = load_cards(CARDS)
    assert {"tabletop", "rlbench"} <= set(cards) and list(cards) == sorted(cards)
    for card in cards.values():
        for mode in card.control_modes:
            known = card.control_mode(mode)
            assert tuple(zip(known.action_names, known.action_units, strict=True)) == card.actions[mode]
            assert known.own_state == (card.fields is not None) and known.state_names
            assert known.own_state or known == CONTROL_MODES[mode]
        assert card.text.startswith("# ")
    assert cards["tabletop"].unverified == cards["rlbench"].unverified == ()
    assert cards["tabletop"].camera.image_size == (128, 128) and cards["tabletop"].rate_hz == 20.0
    assert "@article" in cards["rlbench"].citation


def test_cards_travel_to_other_processes():
    for card in load_cards(CARDS).values():
        copy = pickle.loads(pickle.dumps(card))
        assert copy == card
        with pytest.raises(TypeError, match="assignment"):
            copy.actions["joint_velocity"] = ()


def test_table():
    cards = load_cards(CARDS)
    table = cards_table(cards).splitlines()
    assert len(table) == 2 + len(cards)
    assert all(line.count(" | ") == table[0].count(" | ") for line in table)


@pytest.mark.parametrize(
    "right, wrong, message",
    [
        ("robot: panda", "robot: franka", r"'robot'.*'franka'.*panda"),
        ("robot: panda", "robot: [panda]", "robot"),
        ("robot: panda\n", "", "'robot' is missing"),
        ("format: store", "format: hdf5", r"'hdf5'.*lerobot"),
        ("traces: projection", "traces: magic", r"'magic'.*detection"),
        ("[joint_velocity, end_effector_delta]", "[joint_velocity, torque]", r"'torque'.*joint_velocity"),
        ("[joint_velocity, end_effector_delta]", "joint_velocity", "at least one control mode"),
        ("[joint_velocity, end_effector_delta]", "[joint_velocity]", "end_effector_delta"),
        ("[joint_velocity, end_effector_delta]", "[]", "at least one control mode"),
        ("rate_hz: 20", "rate_hz: 0", "positive number"),
        ("rate_hz: 20", "rate_hz: .inf", "positive number"),
        ("rate_hz: 20", "rate_hz: .nan", "positive number"),
        ("rate_hz: 20", "rate_hz: true", "positive number"),
        ("rate_hz: 20", "rate_hz: twenty", "positive number"),
        ("rate_hz: 20", "rate: 20", "Did you mean 'rate_hz'"),
        ("rate_hz: 20", "rate_hz: 20\nrate_hz: 20", "given twice"),
        ("- delta x: m\n", "- delta x: mm\n", r"delta x.*'mm'.*m/s"),
        ("- delta x: m\n", "- delta x\n", "name: unit"),
        ("- delta x: m\n", "- {delta x: m, delta w: m}\n", "name: unit"),
        ("image_size: [128, 128]", "image_size: [128]", "height, width"),
        ("image_size: [128, 128]", "image_size: [128, 0]", "height, width"),
        ("image_size: [128, 128]", "image_size: [128, 12.5]", "height, width"),
        ("calibrated: true", "calibrated: maybe", "true, false"),
        ("calibrated: true", "calibrate: true", "Did you mean 'calibrated'"),
        ("key: image", "key: 3", "must be text"),
        ("licence: Apache-2.0", "licence:", "must be text"),
        ("episodes: generated", "episodes: -1", "whole number"),
        ("episodes: generated", "episodes: 1.5", "whole number"),
        ("episodes: generated", "episodes: true", "whole number"),
        ("language: instructions", "language: no", "must be text"),
        ("name: tabletop", "name: table", "file's name 'tabletop'"),
        ("rate_hz: 20", "rate_hz: [20", "not YAML"),
        ("rate_hz: 20", "rate_hz: !!python/object/apply:os.getcwd []", "not YAML"),
        ("rate_hz: 20", "? [a, b]\n: 20", "not YAML"),
        ("rate_hz: 20", "? {a: b}\n: 20", "not YAML"),
    ],
)
def test_wrong_cards(tmp_path, right, wrong, message):
    assert right in GOOD
    with pytest.raises(CardError, match=message) as caught:
        load(tmp_path, GOOD.replace(right, wrong, 1))
    assert "tabletop.md" in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "YAML head"),
        ("# only words\n", "YAML head"),
        ("---\nname: tabletop\n", "YAML head"),
        ("---\n- a\n---\nbody", "must hold fields"),
        ("---\n---\nbody", "must hold fields"),
        (GOOD[: GOOD.rindex("\n---\n") + 5], "body is empty"),
    ],
)
def test_not_a_card(tmp_path, text, message):
    with pytest.raises(CardError, match=message):
        load(tmp_path, text)


def test_unreadable_files(tmp_path):
    with pytest.raises(CardError, match="cannot be read"):
        load_card(tmp_path / "nowhere.md")
    (tmp_path / "bytes.md").write_bytes(b"---\n\xff\xfe\n---\n")
    with pytest.raises(CardError, match="cannot be read"):
        load_card(tmp_path / "bytes.md")
    with pytest.raises(CardError, match="no data cards"):
        load_cards(tmp_path / "empty")


def test_unverified_is_legal_and_listed(tmp_path):
    text = GOOD
    for right, wrong in {
        "rate_hz: 20": "rate_hz: unverified",
        "image_size: [128, 128]": "image_size: unverified",
        "calibrated: true": "calibrated: unverified",
        "licence: Apache-2.0": "licence: unverified",
        "traces: projection": "traces: unverified",
        "- delta x: m\n": "- delta x: unverified\n",
        "steps: generated": "steps: unverified",
    }.items():
        text = text.replace(right, wrong, 1)
    card = load(tmp_path, text)
    assert card.rate_hz is None and card.camera.image_size is None and card.licence == "unverified"
    assert set(card.unverified) == {
        "rate_hz",
        "camera.image_size",
        "camera.calibrated",
        "licence",
        "traces",
        "actions.end_effector_delta",
        "size.steps",
    }
    assert "unverified" in cards_table({"tabletop": card})


@given(st.text(max_size=80), st.integers(0, len(GOOD)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_raises_only_card_errors(tmp_path, noise, place):
    text = (GOOD[:place] + noise + GOOD[place:]).encode("utf-8", "ignore").decode()
    try:
        load(tmp_path, text)
    except CardError:
        pass
