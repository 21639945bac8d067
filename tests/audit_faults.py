"""Faults of labels, each planted in a clean episode the way data sets come by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from fault_planting import (
    Planted,
    actions_of,
    detected,
    diagonal,
    direction,
    path,
    travelled,
    with_actions,
    with_steps,
)

from llarva.episodes.records import Episode, Step
from llarva.kinematics import rotation_matrix
from llarva.traces.audit_findings import AuditLimits, make_view
from llarva.traces.audit_hand import carried
from llarva.traces.projection import Trace, project_episode


@dataclass(frozen=True)
class Fault:
    """A way to spoil an episode; `plant` returns None where the episode has nothing that could be spoiled so."""

    name: str
    check: str
    plant: Callable[[Episode, np.random.Generator], Planted]


FAULTS: dict[str, Fault] = {}


def fault(check: str) -> Callable[[Callable[[Episode, np.random.Generator], Planted]], Fault]:
    """Register a function of an episode as the fault that `check` should find."""

    def register(plant: Callable[[Episode, np.random.Generator], Planted]) -> Fault:
        FAULTS[plant.__name__] = Fault(plant.__name__, check, plant)
        return FAULTS[plant.__name__]

    return register


# ---------------------------------------------------------------- the path in the image


@fault("length")
def truncated_trace(episode: Episode, rng: np.random.Generator) -> Planted:
    """A converter stopped at the first missed detection."""
    keep = int(rng.integers(max(1, len(episode.steps) // 4), len(episode.steps)))
    return episode, detected(episode, path(episode)[:keep])


@fault("length")
def thinned_trace(episode: Episode, rng: np.random.Generator) -> Planted:
    """Every second point, given out as the whole."""
    return (episode, detected(episode, path(episode)[::2])) if len(episode.steps) > 1 else None


@fault("coverage")
def blind_detector(episode: Episode, rng: np.random.Generator) -> Planted:
    points = path(episode)
    points[rng.random(len(points)) < rng.uniform(0.55, 1.0)] = np.nan
    enough = np.isfinite(points).all(axis=1).mean() < AuditLimits().coverage
    return (episode, detected(episode, points)) if enough else None


@fault("teleport")
def one_wild_point(episode: Episode, rng: np.random.Generator) -> Planted:
    points, at = path(episode), int(rng.integers(1, len(episode.steps)))
    points[at] += direction(rng) * rng.uniform(0.12, 0.5) * diagonal(episode)
    return episode, detected(episode, points)


@fault("teleport")
def another_hand(episode: Episode, rng: np.random.Generator) -> Planted:
    """From some step on the detector follows another thing."""
    points, at = path(episode), int(rng.integers(1, len(episode.steps)))
    points[at:] += direction(rng) * rng.uniform(0.12, 0.5) * diagonal(episode)
    return episode, detected(episode, points)


@fault("jitter")
def noisy_boxes(episode: Episode, rng: np.random.Generator) -> Planted:
    points, length = path(episode), len(episode.steps)
    if length < 20:
        return None
    noise = rng.normal(0, rng.uniform(0.013, 0.03), points.shape) * diagonal(episode)
    stretch = int(rng.integers(20, length + 1))
    start = int(rng.integers(0, length - stretch + 1))
    points[start : start + stretch] += noise[start : start + stretch]
    return episode, detected(episode, points)


@fault("stuck")
def frozen_point(episode: Episode, rng: np.random.Generator) -> Planted:
    """A tracker stays on the background while the hand leaves."""
    points, way, length = path(episode), travelled(episode), len(episode.steps)
    spans = [
        (a, b) for a in range(0, length - 26, 3) for b in range(a + 26, length + 1, 5) if way[b - 1] - way[a] > 0.15
    ]
    if not spans:
        return None
    a, b = spans[int(rng.integers(len(spans)))]
    points[a:b] = points[a]
    return episode, detected(episode, points)


@fault("border")
def clipped_points(episode: Episode, rng: np.random.Generator) -> Planted:
    """The path leaves the image, and its points were clipped to it."""
    (height, width), points = make_view(episode).size, path(episode)
    x = np.sort(points[:, 0])[::-1]
    least = max(10, int(rng.uniform(0.15, 0.5) * len(x)))
    if len(x) <= least:
        return None
    moved = points + [width - 1 - x[least], 0]
    outside = moved[:, 0] >= width - 1
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], outside.astype(int), [0]]))))[::2]
    clipped = moved.clip(0, [width - 1, height - 1])
    return (episode, Trace(clipped.astype(np.float32), np.ones(len(x), bool), "human")) if max(runs) >= 9 else None


@fault("disagreement")
def drifting_detector(episode: Episode, rng: np.random.Generator) -> Planted:
    """The box slides off the hand, slowly."""
    points = path(episode)
    far = rng.uniform(0.2, 0.4) * diagonal(episode)
    return episode, detected(episode, points + np.linspace(-0.5, 0.5, len(points))[:, None] * far * direction(rng))


@fault("disagreement")
def wrong_thing(episode: Episode, rng: np.random.Generator) -> Planted:
    """The detector has always looked at something else."""
    shift = direction(rng) * rng.uniform(0.15, 0.5) * diagonal(episode)
    return episode, detected(episode, path(episode) + shift)


@fault("disagreement")
def camera_moved(episode: Episode, rng: np.random.Generator) -> Planted:
    """Somebody pushed the camera after it was calibrated."""
    if not any("gripper" in step.object_points for step in episode.steps):
        return None
    turn = rotation_matrix(rng.choice([-1, 1]) * rng.uniform(0.1, 0.3) * np.array([0.0, 1.0, 0.0]))
    pose = np.array(episode.steps[0].camera_pose)
    pose[:3, :3] = pose[:3, :3] @ turn
    return with_steps(episode, lambda t, step: {"camera_pose": pose}), None


@fault("disagreement")
def other_resolution(episode: Episode, rng: np.random.Generator) -> Planted:
    """Intrinsics of the picture before it was scaled down."""
    if not any("gripper" in step.object_points for step in episode.steps):
        return None
    scale = float(rng.choice([0.5, 2.0]))
    wrong = np.diag([scale, scale, 1.0]) @ np.array(episode.steps[0].camera_intrinsics)
    return with_steps(episode, lambda t, step: {"camera_intrinsics": wrong}), None


# ---------------------------------------------------------------- the record


@fault("language")
def nothing_said(episode: Episode, rng: np.random.Generator) -> Planted:
    texts = (
        "",
        " ",
        "n/a",
        "None",
        "unknown",
        "pick up the {object}",
        "[112, 117, 115, 104]",
        "b'push the button'",
        "<task>",
        "...",
    )
    return replace(episode, instructions=(texts[int(rng.integers(len(texts)))],)), None


@fault("language")
def one_phrasing_empty(episode: Episode, rng: np.random.Generator) -> Planted:
    return replace(episode, instructions=(*episode.instructions, "")), None


@fault("duplicates")
def frozen_camera(episode: Episode, rng: np.random.Generator) -> Planted:
    """A stretch of one and the same picture while the hand moves on."""
    kept = [t for t, step in enumerate(episode.steps) if step.image is not None]
    points, moved = path(episode), 0.04 * diagonal(episode)
    starts = [(a, b) for a in kept for b in kept if b > a and np.linalg.norm(points[a] - points[b]) > moved]
    seen = project_episode(episode).visible
    starts = [(a, b) for a, b in starts if seen[a] and seen[b]]
    if not starts:
        return None
    a, b = starts[int(rng.integers(len(starts)))]
    image = episode.steps[a].image
    return with_steps(episode, lambda t, step: {"image": image} if a <= t <= b and t in kept else {}), None


@fault("timing")
def lost_seconds(episode: Episode, rng: np.random.Generator) -> Planted:
    at, more = int(rng.integers(1, len(episode.steps))), rng.uniform(0.2, 5)
    return with_steps(episode, lambda t, step: {"timestamp": step.timestamp + more * (t >= at)}), None


@fault("timing")
def clock_runs_back(episode: Episode, rng: np.random.Generator) -> Planted:
    at = int(rng.integers(1, len(episode.steps)))
    return with_steps(episode, lambda t, step: {"timestamp": step.timestamp - 0.2 * (t >= at)}), None


@fault("timing")
def another_rate(episode: Episode, rng: np.random.Generator) -> Planted:
    factor = float(rng.choice([0.25, 0.5, 2, 4]))
    return with_steps(episode, lambda t, step: {"timestamp": factor * step.timestamp}), None


@fault("card")
def wrong_card(episode: Episode, rng: np.random.Generator) -> Planted:
    changes = ({"robot": "ur5"}, {"control_mode": "end_effector_pose"})
    return replace(episode, **changes[int(rng.integers(2))]), None


@fault("action_range")
def millimetres(episode: Episode, rng: np.random.Generator) -> Planted:
    return with_actions(episode, actions_of(episode) * [1e3, 1e3, 1e3, 1, 1, 1, 1]), None


@fault("action_range")
def gripper_minus_one(episode: Episode, rng: np.random.Generator) -> Planted:
    """A gripper that runs from -1 to 1."""
    actions = actions_of(episode)
    actions[:, 6] = 2 * actions[:, 6] - 1
    return (with_actions(episode, actions), None) if (actions[:, 6] < 0).any() else None


@fault("action_range")
def joint_speed_in_degrees(episode: Episode, rng: np.random.Generator) -> Planted:
    def degrees(t: int, step: Step) -> dict:
        command = step.joint_velocity_command
        return {} if command is None else {"joint_velocity_command": np.rad2deg(command).astype(np.float32)}

    return with_steps(episode, degrees), None


# ---------------------------------------------------------------- commands against motion


@fault("consistency")
def wrong_scale(episode: Episode, rng: np.random.Generator) -> Planted:
    """Per second instead of per step, centimetres, or a normalisation that was not undone."""
    factor = float(rng.choice([1 / 100, 1 / 20, 1 / 10, 5, 10, 20]))
    return with_actions(episode, actions_of(episode) * [*[factor] * 6, 1]), None


def turned_actions(episode: Episode, matrix: np.ndarray) -> Planted:
    """Translations [T-1, 3] in another frame; None where that hardly changes them."""
    actions = actions_of(episode)
    moved = actions[:, :3] @ matrix.T
    if np.sum(moved * actions[:, :3]) > 0.4 * np.sum(actions[:, :3] ** 2):
        return None
    return with_actions(episode, np.column_stack([moved, actions[:, 3:]])), None


@fault("consistency")
def exchanged_axes(episode: Episode, rng: np.random.Generator) -> Planted:
    """Axes in another order."""
    return turned_actions(episode, np.eye(3)[[[1, 2, 0], [2, 0, 1]][int(rng.integers(2))]])


@fault("consistency")
def camera_frame(episode: Episode, rng: np.random.Generator) -> Planted:
    """Actions along the camera's axes, taken for the world's."""
    return turned_actions(episode, np.array(episode.steps[0].camera_pose)[:3, :3].T)


@fault("consistency")
def joint_speed_per_step(episode: Episode, rng: np.random.Generator) -> Planted:
    """Joint velocities that were multiplied by the step time already."""

    def small(t: int, step: Step) -> dict:
        command = step.joint_velocity_command
        return {} if command is None else {"joint_velocity_command": (command / 20).astype(np.float32)}

    return with_steps(episode, small), None


@fault("action_sign")
def one_axis_negated(episode: Episode, rng: np.random.Generator) -> Planted:
    actions = actions_of(episode)
    places = np.array([step.end_effector_position for step in episode.steps], dtype=np.float64)
    moving = [k for k in range(3) if np.ptp(places[:, k]) > 0.08]
    if not moving:
        return None
    actions[:, moving[int(rng.integers(len(moving)))]] *= -1
    return with_actions(episode, actions), None


@fault("action_sign")
def one_joint_negated(episode: Episode, rng: np.random.Generator) -> Planted:
    reach = np.ptp([step.state for step in episode.steps], axis=0)
    moving = np.flatnonzero(reach > 0.3)
    if not len(moving):
        return None
    which = int(rng.choice(moving))

    def turned(t: int, step: Step) -> dict:
        if step.joint_velocity_command is None:
            return {}
        command = step.joint_velocity_command.copy()
        command[which] *= -1
        return {"joint_velocity_command": command}

    return with_steps(episode, turned), None


@fault("action_lag")
def shifted_actions(episode: Episode, rng: np.random.Generator) -> Planted:
    """Rows of actions and states slipped against each other."""
    shift = int(rng.choice([-12, -10, 3, 4, 6]))
    if len(episode.steps) < 50:
        return None
    actions = actions_of(episode)
    moved = actions[np.clip(np.arange(len(actions)) - shift, 0, len(actions) - 1)]
    return with_actions(episode, moved), None


@fault("gripper")
def gripper_turned_round(episode: Episode, rng: np.random.Generator) -> Planted:
    actions = actions_of(episode)
    actions[:, 6] = 1 - actions[:, 6]
    opening = np.array([step.gripper_open for step in episode.steps])
    told = bool(np.ptp(actions[:, 6]) > 0.5 and np.ptp(opening[4:]) > 0.2) or len(opening) > 50
    return (with_actions(episode, actions), None) if told else None


@fault("carrying")
def both_turned_round(episode: Episode, rng: np.random.Generator) -> Planted:
    view = make_view(episode)
    pairs = carried(view, AuditLimits())
    if not pairs:
        return None
    actions = actions_of(episode)
    actions[:, 6] = 1 - actions[:, 6]
    spoiled = with_actions(episode, actions)
    return with_steps(spoiled, lambda t, step: {"gripper_open": 1 - step.gripper_open}), None


@fault("pose")
def late_pose(episode: Episode, rng: np.random.Generator) -> Planted:
    """Poses and joints from clocks that differ by half a second or more."""
    late = int(rng.integers(10, 20))
    places = [step.end_effector_position for step in episode.steps]
    gone = (
        np.linalg.norm(np.array(places[late:]) - np.array(places[: len(places) - late]), axis=1)
        if len(places) > late
        else np.zeros(1)
    )
    if len(places) < 30 or np.quantile(gone, 0.8) < 0.06:
        return None
    return with_steps(episode, lambda t, step: {"end_effector_position": places[max(0, t - late)]}), None


@fault("pose")
def drifting_pose(episode: Episode, rng: np.random.Generator) -> Planted:
    """Odometry that drifts, a tracker that slips."""
    way = rng.normal(0, 1, 3)
    way *= rng.uniform(0.15, 0.3) / np.linalg.norm(way)
    last = len(episode.steps) - 1
    if np.linalg.norm(np.ptp([step.end_effector_position for step in episode.steps], axis=0)) < 0.1 or last < 10:
        return None
    at = int(rng.integers(last // 4, 3 * last // 4))

    def slip(t: int, step: Step) -> dict:
        return {"end_effector_position": (step.end_effector_position + way * (t >= at)).astype(np.float32)}

    return with_steps(episode, slip), None
