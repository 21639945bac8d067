"""What planting a fault in an episode takes: traces as a detector gives them, other steps, other actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from llarva.episodes.records import Episode, Step
from llarva.traces.audit_findings import make_view
from llarva.traces.projection import Trace, project_episode

Planted = tuple[Episode, Trace | None] | None


def detected(episode: Episode, points: np.ndarray, visible: np.ndarray | None = None) -> Trace:
    """Points as a detector would hand them over."""
    seen = np.isfinite(points).all(axis=1) if visible is None else visible
    return Trace(points.astype(np.float32), seen, "detection", np.full(len(points), 0.9, np.float32))


def path(episode: Episode) -> np.ndarray:
    return project_episode(episode).points.astype(np.float64)


def diagonal(episode: Episode) -> float:
    return make_view(episode).diagonal


def with_steps(episode: Episode, change: Callable[[int, Step], dict]) -> Episode:
    steps = tuple(replace(step, **change(t, step)) for t, step in enumerate(episode.steps))
    return replace(episode, steps=steps)


def with_actions(episode: Episode, actions: np.ndarray) -> Episode:
    """The episode with other actions [T-1, a]."""
    rows = [*np.asarray(actions, np.float32), None]
    return with_steps(episode, lambda t, step: {"action": rows[t]})


def actions_of(episode: Episode) -> np.ndarray:
    return np.array([step.action for step in episode.steps[:-1]], dtype=np.float64)


def travelled(episode: Episode) -> np.ndarray:
    """How far the hand has gone until every step (m)."""
    places = np.array([step.end_effector_position for step in episode.steps], dtype=np.float64)
    return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(places, axis=0), axis=1))])


def direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
