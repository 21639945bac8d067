"""Small episodes of random numbers, and what the tests of records and stores do with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from llarva.episodes.records import Episode, Step, encode_image
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.kinematics import quaternion_xyzw, rotation_matrix


def make_episode(seed=0, length=5, *, image_every=2, actions=True, poses=True, control_mode="joint_velocity"):
    rng = np.random.default_rng(seed)
    steps = []
    for t in range(length):
        kept = image_every and t % image_every == 0
        steps.append(
            Step(
                state=rng.normal(size=7).astype(np.float32),
                gripper_open=float(rng.random()),
                image=encode_image(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)) if kept else None,
                action=rng.normal(size=8).astype(np.float32) if actions and t < length - 1 else None,
                joint_velocity_command=rng.normal(size=7).astype(np.float32) if poses and t < length - 1 else None,
                end_effector_position=rng.normal(size=3).astype(np.float32) if poses else None,
                end_effector_quaternion_xyzw=(
                    quaternion_xyzw(rotation_matrix(rng.normal(size=3) / 3)).astype(np.float32) if poses else None
                ),
                camera_intrinsics=np.diag([100.0, 100.0, 1.0]) if poses else None,
                camera_pose=np.eye(4) if poses else None,
                timestamp=t / 20,
                object_points={"red button": (1.5, -2.25), "x": (0.1, 3.0)} if kept else {},
                segmentation=encode_image(rng.integers(0, 3, (4, 4), dtype=np.uint8)) if kept else None,
            )
        )
    return Episode(
        f"e{seed:04d}",
        "toy",
        "panda",
        control_mode,
        ("press it", "push"),
        "push",
        3,
        seed,
        None,
        tuple(steps),
        ("a", "b"),
    )


def with_step(episode, t, **changes):
    steps = list(episode.steps)
    steps[t] = replace(steps[t], **changes)
    return replace(episode, steps=tuple(steps))


def write(folder, episodes, **options):
    with EpisodeWriter(folder, "toy", **options) as writer:
        for episode in episodes:
            writer.write(episode)
    return EpisodeStore(folder)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
