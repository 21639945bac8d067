"""The audit finds planted faults, says nothing of clean demonstrations, and its tables hold what it found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from audit_faults import FAULTS
from fault_planting import detected, path, with_actions, with_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.cards import Card, load_card
from llarva.episodes.records import Episode
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.tabletop.demos import DemoConfig
from llarva.tabletop.recording import record_demos
from llarva.traces.audit import CHECKS, audit_episode, audit_trace, episode_stats, look
from llarva.traces.audit_findings import AuditError, AuditLimits, above, below, make_view
from llarva.traces.audit_paths import LENGTH_RULES, audit_labels, wanted_length
from llarva.traces.audit_records import is_sentence
from llarva.traces.audit_subsets import DATASET_CHECKS, DISTINCT, TASKS, Subsets, audit_subsets
from llarva.traces.audit_table import AuditTable, audit_store
from llarva.traces.cleaning import resample_by_arc_length, thin_llarva
from llarva.traces.projection import Trace, project_episode, trace_from

CARD: Card = load_card(Path(__file__).parent.parent / "data_cards" / "tabletop.md")
DRAWS = 3  # of every fault in every episode
TASK_NAMES = ("close_jar", "meat_off_grill", "push_buttons")


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    """Demonstrations of three tasks with every frame: kicked, detoured, partly in other light, all of them in order."""
    out = tmp_path_factory.mktemp("audit")
    episodes: list[Episode] = []
    for task in TASK_NAMES:
        made = record_demos(
            DemoConfig(task, 3, str(out / task), seed=5, frames_per_episode=None, appearance_share=0.5, image_size=96)
        )
        episodes.extend(EpisodeStore(made.store))
    return episodes


@pytest.fixture(scope="session")
def card() -> Card:
    """The tabletop's card for the smaller pictures of these tests."""
    return replace(CARD, camera=replace(CARD.camera, image_size=(96, 96)))


# ---------------------------------------------------------------- detection and false alarms


def test_clean_demonstrations_pass(clean: list[Episode], card: Card) -> None:
    found = [one for episode in clean for one in audit_episode(episode, card=card)]
    assert not found, found
    skipped = [set(look(make_view(episode, card=card))[1]) for episode in clean]
    assert not set.intersection(*skipped), "every check has something to look at in one of them"


def test_clean_detections_pass(clean: list[Episode], card: Card) -> None:
    """A box's centre beside the fingertips, half a pixel of noise, a few misses: what a good detector hands over."""
    rng = np.random.default_rng(1)
    for episode in clean:
        points = path(episode) + (2, -7) + rng.normal(0, 0.4, (len(episode.steps), 2))
        points[rng.random(len(points)) < 0.1] = np.nan
        assert audit_episode(episode, detected(episode, points), card) == ()


def test_every_check_has_a_fault() -> None:
    assert {fault.check for fault in FAULTS.values()} == set(CHECKS)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(clean: list[Episode], card: Card, name: str) -> None:
    rng, fault, found = np.random.default_rng(len(name)), FAULTS[name], list[bool]()
    for episode in clean * DRAWS:
        planted = fault.plant(episode, rng)
        if planted is not None:
            findings = audit_episode(planted[0], planted[1], card)
            found.append(fault.check in {one.check for one in findings})
            assert all(0 <= one.severity <= 1 and one.message for one in findings)
            assert all(0 <= one.steps[0] <= one.steps[1] <= len(episode.steps) for one in findings)
    assert len(found) >= DRAWS, "nothing here can be spoiled so"
    assert np.mean(found) >= 0.95, f"{sum(found)} of {len(found)}"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_stuck_detections_are_found_where_few_steps_have_a_picture(clean: list[Episode], keep: int) -> None:
    found, quiet = [], []
    for episode in clean:
        steps = tuple(step if t % keep == 0 else replace(step, image=None) for t, step in enumerate(episode.steps))
        thin, points = replace(episode, steps=steps), path(episode)
        points[[t for t in range(len(points)) if t % keep]] = np.nan
        quiet.append(audit_episode(thin, detected(thin, points)))
        stuck = np.where(np.isfinite(points), points[0], np.nan)
        found.append("stuck" in {one.check for one in audit_episode(thin, detected(thin, stuck))})
    assert all(found) and not any(quiet)


def test_worse_faults_are_more_severe(clean: list[Episode]) -> None:
    episode = clean[0]
    severities = []
    for jump in (20, 40, 80):
        points = path(episode)
        points[30] += (0, jump)
        severities.append(audit_trace(episode, detected(episode, points))[0].severity)
    assert severities == sorted(severities) and severities[0] < severities[2] < 1


# ---------------------------------------------------------------- rules that scale


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.5, 2.0, 5.0]),
    st.sampled_from(["one_wild_point", "noisy_boxes", "clipped_points", "wrong_thing"]),
)
def test_verdicts_do_not_depend_on_resolution(clean: list[Episode], scale: float, name: str) -> None:
    episode = clean[2]
    planted = FAULTS[name].plant(episode, np.random.default_rng(3))
    assert planted is not None and planted[1] is not None
    small = {one.check: one.measured for one in look(make_view(episode, planted[1]))[0]}
    size = np.array([scale, scale, 1.0])
    larger = with_steps(episode, lambda t, step: {"camera_intrinsics": np.diag(size) @ step.camera_intrinsics})
    view = make_view(larger, replace(planted[1], points=planted[1].points * np.float32(scale)))
    resized = replace(view, size=(round(96 * scale), round(96 * scale)))
    reference = project_episode(larger, resized.size)
    big = {one.check: one.measured for one in look(replace(resized, reference=reference))[0]}
    assert set(big) == set(small)
    assert all(
        abs(big[check] - value) < 0.02 * abs(value) + 1e-3 for check, value in small.items() if check != "border"
    )


def test_limits_follow_the_rate(clean: list[Episode]) -> None:
    """Every fifth step at a fifth of the rate: faster in the picture per step, and still no fault."""
    for episode in clean:
        slow = replace(episode, steps=episode.steps[::5])
        checks = {one.check for one in audit_trace(slow, project_episode(slow))}
        assert not checks, checks
    wild = path(episode)[::5]
    wild[3:] += 70
    assert "teleport" in {one.check for one in audit_trace(slow, detected(slow, wild))}


def test_moments_without_numbers_are_skipped(clean: list[Episode]) -> None:
    bare = with_steps(
        clean[0],
        lambda t, step: {
            "action": None, "joint_velocity_command": None, "end_effector_position": None, "camera_pose": None,
            "end_effector_quaternion_xyzw": None, "image": None, "object_points": {}, "timestamp": 0.0,
        },
    )  # fmt: skip
    found, skipped = look(make_view(bare))
    assert found == () and set(CHECKS) - set(skipped) == {"language"}
    one_step = replace(clean[0], steps=clean[0].steps[-1:])
    assert audit_episode(one_step) == ()


def test_own_layouts_are_read_by_their_units(clean: list[Episode]) -> None:
    """Velocities of the hand in the hand's own frame: right as they are, wrong as displacements of the world."""
    episode = clean[0]
    view = make_view(episode)
    assert view.rotations is not None
    actions = np.array([step.action for step in episode.steps[:-1]], dtype=np.float64)
    local = [np.einsum("tji,tj->ti", view.rotations[:-1], actions[:, part]) for part in (slice(0, 3), slice(3, 6))]
    own = with_actions(episode, np.column_stack([20 * local[0], 20 * local[1], 1 - actions[:, 6]]))
    own = replace(own, control_mode="end_effector_velocity")
    units = ("m/s",) * 3 + ("rad/s",) * 3 + ("0 = open",)
    layout = tuple((f"number {k}", unit) for k, unit in enumerate(units))
    from llarva.card_fields import Fields

    fields = Fields("x", {}, "end_effector", (), None, None)
    modes = ("end_effector_velocity",)
    card = replace(CARD, control_modes=modes, actions={modes[0]: layout}, fields=fields)
    card = replace(card, camera=replace(card.camera, image_size=None))
    assert audit_episode(own, card=card) == ()
    assert {"consistency"} <= {
        one.check for one in audit_episode(own, card=replace(card, fields=replace(fields, frame="base")))
    }
    assert {"gripper"} <= {
        one.check
        for one in audit_episode(own, card=replace(card, actions={modes[0]: (*layout[:-1], ("g", "1 = open"))}))
    }


# ---------------------------------------------------------------- words, numbers, lengths


@given(st.text(max_size=80))
def test_any_text_is_judged(text: str) -> None:
    assert is_sentence(text) in (True, False)
    if not any(character.isalpha() for character in text) or set(text) & set("<>\n\r"):
        assert not is_sentence(text)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(1.0001, 100))
def test_severities_are_ordered(limit: float, measured: float, factor: float) -> None:
    assert 0 <= above(measured, limit) <= above(measured * factor, limit) <= 1 and above(limit, limit) == 0.5
    assert 0.5 <= below(limit, limit) <= below(limit / factor, limit) <= 1


@given(st.integers(1, 400), st.integers(0, 50))
def test_lengths_by_llarvas_rule(remaining: int, missed: int) -> None:
    left = max(0, remaining - missed)
    trace = Trace(np.zeros((left, 2), np.float32), np.ones(left, bool))
    assert wanted_length(remaining, "llarva", remaining - left) == len(thin_llarva(trace))
    assert wanted_length(remaining) == remaining


def test_labels_of_every_rule(clean: list[Episode]) -> None:
    view = make_view(clean[0])
    assert view.trace is not None
    steps = range(0, view.count - 2, 7)
    good = {
        "full": {step: trace_from(view.trace, step).points for step in steps},
        "llarva": {step: thin_llarva(trace_from(view.trace, step)).points for step in steps},
        "exact": {step: resample_by_arc_length(trace_from(view.trace, step), 8).points for step in steps},
    }
    assert set(good) == set(LENGTH_RULES)
    for rule, labels in good.items():
        assert audit_labels(view, labels, rule, 8) == ()
        short = {step: points[:-1] for step, points in labels.items()}
        assert "label_length" in {one.check for one in audit_labels(view, short, rule, 8)}
        aside = {step: points + np.float32(9) for step, points in labels.items()}
        assert "label_path" in {one.check for one in audit_labels(view, aside, rule, 8)}
    with pytest.raises(AuditError, match="exact, full, llarva"):
        audit_labels(view, good["full"], "half")
    with pytest.raises(AuditError, match="steps 0 to"):
        audit_labels(view, {view.count: [(0, 0)]}, "full")


@pytest.mark.parametrize(
    "wrong", [{"coverage": 0}, {"jump_speed": -1}, {"gain": (2, 3)}, {"follow": 2}, {"pose": np.nan}]
)
def test_limits_are_checked(wrong: dict) -> None:
    with pytest.raises(AuditError, match=next(iter(wrong))):
        AuditLimits(**wrong)


# ---------------------------------------------------------------- tables


def write(folder: Path, episodes: list[Episode]) -> EpisodeStore:
    with EpisodeWriter(folder, "tabletop", episodes_per_shard=4) as writer:
        for number, episode in enumerate(episodes):
            writer.write(replace(episode, episode_id=f"{number:02d}-{episode.episode_id}"))
    return EpisodeStore(folder)


@pytest.fixture(scope="session")
def spoiled(clean: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Nine clean episodes, of which the second says nothing and the fifth has a gripper that is turned round."""
    episodes, rng = list(clean), np.random.default_rng(0)
    for place, name in ((1, "nothing_said"), (4, "gripper_turned_round")):
        planted = FAULTS[name].plant(episodes[place], rng)
        assert planted is not None
        episodes[place] = planted[0]
    return write(tmp_path_factory.mktemp("spoiled") / "store", episodes)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_audit_of_a_store(spoiled: EpisodeStore, card: Card, tmp_path: Path) -> None:
    table = audit_store(spoiled, tmp_path / "audit", card=card, episodes_per_part=4)
    worst = dict(table.worst_episodes(9))
    assert [name[:2] for name in sorted(worst)] == ["01", "04"] and "2 of 9" in table.report()
    assert {one.check for one in worst[spoiled.ids[1]]} == {"language"}
    assert table.worst_episodes(9, without=[spoiled.ids[1]])[0][0] == spoiled.ids[4]
    assert table.counts()["language"] == (1, 9) and table.counts()["gripper"][0] == 1
    rows = pq.read_table(tmp_path / "audit" / "episodes").to_pylist()
    assert [row["episode_id"] for row in rows] == list(spoiled.ids)
    assert {row["task"] for row in table.datasets} == {"", *TASK_NAMES}
    whole = table.wholes[0]
    assert whole["steps"] == spoiled.info["steps"] and whole["flagged"] == 2 and whole["traced"] == 9


def test_an_interrupted_audit_continues(spoiled: EpisodeStore, tmp_path: Path) -> None:
    whole = audit_store(spoiled, tmp_path / "whole", episodes_per_part=4)

    def failing(episode: Episode) -> Trace | None:
        if episode.episode_id == spoiled.ids[6]:
            raise KeyboardInterrupt
        return project_episode(episode)

    failing.__qualname__ = "projection"
    with pytest.raises(KeyboardInterrupt):
        audit_store(spoiled, tmp_path / "cut", episodes_per_part=4, traces=failing)
    with pytest.raises(AuditError, match="unfinished"):
        AuditTable(tmp_path / "cut")
    audit_store(spoiled, tmp_path / "cut", episodes_per_part=4)
    assert files(tmp_path / "cut") == files(tmp_path / "whole") and whole.info["complete"]
    with pytest.raises(AuditError, match="another limits"):
        audit_store(spoiled, tmp_path / "cut", episodes_per_part=4, limits=AuditLimits(coverage=0.5))
    (tmp_path / "cut" / "audit.json").write_text("[]")
    with pytest.raises(AuditError, match="does not describe"):
        AuditTable(tmp_path / "cut")


def test_damaged_tables_are_named(spoiled: EpisodeStore, tmp_path: Path) -> None:
    table = audit_store(spoiled, tmp_path / "audit")
    part = tmp_path / "audit" / "findings" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(AuditError, match="part-00000"):
        table.worst(3)
    shutil.rmtree(tmp_path / "audit")
    with pytest.raises(AuditError, match="cannot be read"):
        AuditTable(tmp_path / "audit")


def test_data_sets_as_wholes(clean: list[Episode]) -> None:
    view = make_view(clean[0])
    row = episode_stats(view, *look(view))
    rows = [row | {"variation": number % 5, "task": f"task {number % 2}"} for number in range(20)]
    kinds = {
        "language_constant": [one | {"instruction": "do it"} for one in rows],
        "gripper_start": [one | {"instruction": str(k), "first_change": 1} for k, one in enumerate(rows)],
    }
    assert set(kinds) == set(DATASET_CHECKS)
    for check, spoiled_rows in kinds.items():
        assert {one.check for one in audit_subsets(Subsets(spoiled_rows))} == {check}
        assert audit_subsets(Subsets(spoiled_rows[:4])) == (), "four episodes prove nothing"
    assert audit_subsets(Subsets(one | {"instruction": str(k)} for k, one in enumerate(rows))) == ()


def test_memory_of_subsets_is_bounded(clean: list[Episode]) -> None:
    view = make_view(clean[0])
    row = episode_stats(view, *look(view))
    subsets = Subsets(row | {"task": f"task {k}", "instruction": str(k)} for k in range(TASKS + 500))
    assert len(subsets.parts) == TASKS + 2 and subsets.rows()[0]["episodes"] == TASKS + 500
    assert max(len(part.instructions) for part in subsets.parts.values()) <= DISTINCT


def test_statistics_are_those_of_the_numbers(clean: list[Episode]) -> None:
    rows = []
    for episode in clean:
        view = make_view(episode)
        rows.append(episode_stats(view, *look(view)))
    actions = np.concatenate([[step.action for step in episode.steps[:-1]] for episode in clean])
    whole = Subsets(rows).rows()[0]
    assert np.allclose(whole["action_mean"], actions.mean(axis=0), atol=1e-6)
    assert np.allclose(whole["action_deviation"], actions.std(axis=0), atol=1e-6)
    assert np.allclose(whole["action_max"], actions.max(axis=0))
