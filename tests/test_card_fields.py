"""The part of a card that says where every number lies."""

import copy

import pytest

from llarva.card_fields import CardError, Language, Part, read_fields, read_language

LAYOUT = {
    "end_effector_motion": (("x", "m"), ("turn x", "rad"), ("turn y", "rad"), ("turn z", "rad"), ("g", "1 = open"))
}
GOOD = {
    "builder": "arm",
    "frame": "base",
    "actions": {
        "end_effector_motion": [
            {"field": "steps/action", "take": [0], "scale": 0.001},
            {"field": "steps/turn", "size": 4, "rotation": "quaternion_xyzw"},
            {"field": "steps/grip", "size": 1, "gripper": {"closed": -1, "open": 1}},
        ]
    },
    "state": {"layout": [{"a": "rad"}, {"b": "unverified"}], "parts": [{"field": "steps/state", "take": [3, 1]}]},
    "gripper": "command",
}


def test_a_good_recipe():
    fields = read_fields(GOOD, LAYOUT)
    parts = fields.actions["end_effector_motion"]
    assert [part.count for part in parts] == [1, 3, 1] and [part.taken for part in parts] == [1, 4, 1]
    assert fields.state == (Part("steps/state", take=(3, 1)),) and fields.end_effector_position is None
    assert read_fields(GOOD | {"state": "none"}, LAYOUT).state == ()
    unknown = read_fields(GOOD | {"state": "unverified", "gripper": "unverified", "frame": "unverified"}, LAYOUT)
    assert unknown.state is unknown.gripper is unknown.frame is None
    zeros = {"end_effector_motion": [{"zeros": 4}, GOOD["actions"]["end_effector_motion"][2]]}
    assert read_fields(GOOD | {"actions": zeros}, LAYOUT).actions["end_effector_motion"][0].field is None


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("builder",), 3, "must be text"),
        (("frame",), "wrist", "Valid choices: base"),
        (("actions",), {}, "'end_effector_motion' is missing"),
        (("actions",), {"end_effector_motio": []}, "Did you mean 'end_effector_motion'"),
        (("actions", "end_effector_motion"), [], "must list parts"),
        (("actions", "end_effector_motion", 0), "steps/action", "must hold field"),
        (("actions", "end_effector_motion", 0), {"field": "a"}, "either 'size'"),
        (("actions", "end_effector_motion", 0), {"field": "a", "size": 1, "take": [0]}, "either 'size'"),
        (("actions", "end_effector_motion", 0), {"field": "a", "size": 2}, "make 6 numbers, the layout has 5"),
        (("actions", "end_effector_motion", 0), {"zeros": 0}, "positive whole number"),
        (("actions", "end_effector_motion", 0, "take"), [-1], "counted from 0"),
        (("actions", "end_effector_motion", 0, "take"), [True], "counted from 0"),
        (("actions", "end_effector_motion", 0, "scale"), [1, 2], "2 factors for 1 numbers"),
        (("actions", "end_effector_motion", 0, "scale"), float("inf"), "finite number"),
        (("actions", "end_effector_motion", 1, "rotation"), "euler", "Valid choices"),
        (("actions", "end_effector_motion", 1, "rotation"), "euler_xyz", "is 3 numbers, not 4"),
        (("actions", "end_effector_motion", 2, "gripper"), {"closed": 1, "open": 1}, "both 1"),
        (("actions", "end_effector_motion", 2, "gripper"), {"closed": 1}, "'open' is missing"),
        (("actions", "end_effector_motion", 2, "gripper", "change"), "yes", "true or false"),
        (("actions", "end_effector_motion", 2), {"field": "a", "size": 1}, "which values are closed and open"),
        (("state",), {"layout": [{"a": "rad"}, {"a": "rad"}], "parts": []}, "given twice"),
        (("state", "layout"), [{"a": "degrees"}], "'degrees'"),
        (("gripper",), {"field": "steps/width", "size": 1}, "which values are closed and open"),
        (("gripper",), "commanded", "must hold field"),
        (("end_effector_position",), {"field": "a", "size": 4}, "three numbers"),
        (("end_effector_position",), {"field": "a", "size": 3, "rotation": "euler_xyz"}, "three numbers"),
        (("end_effector_rotation",), {"field": "a", "size": 3}, "which 'rotation'"),
    ],
)
def test_slips(path, value, message):
    wrong = copy.deepcopy(GOOD)
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CardError, match=message):
        read_fields(wrong, LAYOUT)


def test_language():
    assert read_language("language", "steps/words") == Language(("steps/words",))
    given = {"field": ["a", "b"], "encoding": "code_points", "when_empty": "play", "changes": "split"}
    assert read_language("language", given) == Language(("a", "b"), "code_points", "play", "split")
    assert read_language("language", {"field": "none", "when_empty": "play"}) == Language((), when_empty="play")
    for wrong in ({"field": "none"}, {"field": "a", "encoding": "utf-16"}, {"field": "a", "changes": "maybe"}, "", {}):
        with pytest.raises(CardError):
            read_language("language", wrong)
