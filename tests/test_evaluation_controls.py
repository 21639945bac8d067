"""Controls take away what they say, and rows tell what happened."""

import re
from dataclasses import replace
from typing import Any

import pytest
from patch_world import Patches, Seer

from llarva.evaluation.batches import rollout, row_of
from llarva.evaluation.rows import EvaluationError, compare
from llarva.evaluation.scenes import (
    CONTROLS,
    EvaluationConfig,
    Scene,
    begin,
    like_things,
    other_instruction,
    tasks_for,
)
from llarva.suites import RLBENCH_18, RLBENCH_COLOURED


def run_control(control: str, count: int = 10) -> list[dict[str, Any]]:
    scenes = [Scene("patches", seed, None, False) for seed in range(count)]
    return [row_of(one, control) for one in rollout(Seer(), scenes, [Patches() for _ in scenes], control)]


def test_controls_take_away_what_they_say() -> None:
    rows = {control: run_control(control) for control in CONTROLS}
    assert all(row["success"] and row["failure"] is None and row["reached_asked"] for row in rows["none"])
    assert sum(row["success"] for row in rows["blank_image"]) <= 2
    assert sum(row["success"] for row in rows["other_scene_image"]) <= 4
    for row in rows["wrong_instruction"]:
        assert not row["success"] and row["failure"] == "wrong_patch" and row["reached_asked"]
        assert row["asked_variation"] == 1 - row["variation"], "variation 2 asks for a patch that is not there"
    for row, truth in zip(rows["colours_swapped"], rows["none"], strict=True):
        assert not row["success"] and row["failure"] == "wrong_patch" and row["instruction"] == truth["instruction"]
        assert row["nearest_object"] != truth["nearest_object"] and row["reached_asked"], "it did what it saw and read"
    assert [row["variation"] for row in rows["none"]] == [row["variation"] for row in rows["wrong_instruction"]]
    assert compare(rows["none"], rows["wrong_instruction"]).only_a == 10


def test_wrong_instruction_needs_another_variation() -> None:
    env, scene = Patches(), Scene("patches", 0, 0, False)
    info = env.reset(seed=0, options={"variation": 0})[1]
    assert other_instruction(env, scene, info) == ("go to patch B", 1)
    with pytest.raises(EvaluationError, match="no other variation"):
        other_instruction(env, scene, info, variations=(0, 2))


def test_swapped_colours_need_things_that_only_a_colour_tells_apart() -> None:
    for tasks in (("open_drawer",), ("push_buttons", "open_drawer"), ("rlbench-12",)):
        with pytest.raises(EvaluationError, match="open_drawer.*push_buttons, .*'rlbench-coloured'"):
            EvaluationConfig("c", "o", tasks=tasks, control="colours_swapped")
    EvaluationConfig("c", "o", tasks=("rlbench-coloured", "my_own_task"), control="colours_swapped")
    assert tasks_for("colours_swapped", ["rlbench-18", "my_own_task"]) == (*sorted_like_18(), "my_own_task")
    assert tasks_for("blank_image", ["rlbench-18"]) == RLBENCH_18

    env = Patches()
    env.told_apart_by_colour = dict  # type: ignore[method-assign]
    with pytest.raises(EvaluationError, match="go to patch A.*push_buttons"):
        begin(Scene("patches", 0, 0, False), env, "colours_swapped")


def sorted_like_18() -> list[str]:
    return [task for task in RLBENCH_18 if task in RLBENCH_COLOURED]


def test_the_unnamed_is_exchanged_before_the_named() -> None:
    env, scene = Patches(), Scene("patches", 0, 2, False)
    env.reset(seed=0, options={"variation": 2})
    partners = {like_things(env, replace(scene, seed=seed), "go to patch B, then patch C")[1] for seed in range(9)}
    assert partners == {"patch A"}
    pairs = {like_things(env, replace(scene, seed=seed), "patch C, patch B, patch A") for seed in range(9)}
    assert pairs == {("patch C", "patch A"), ("patch C", "patch B")}


def test_rows_say_what_happened() -> None:
    row = run_control("none", 1)[0]
    env = Patches()
    env.reset(seed=0)
    assert row["steps"] <= 4 and row["clipped"] == row["steps"] and re.fullmatch("[0-9a-f]{64}", row["action_sha256"])
    assert row["decode_ms_p50"] is None and row["trace_error_px"] is None and row["variation"] == env.variation
