"""The tabletop's simulation behind RLBench's observations: other camera axes, float64, a flag for the gripper."""

import os
import time
from typing import Any

import numpy as np

from llarva.kinematics import quaternion_xyzw
from llarva.tabletop.scene import FINGER_TRAVEL
from rlbench import faults
from rlbench.backend.observation import CAMERAS, Observation


class Joint:
    def __init__(self, scene: "Scene", index: int) -> None:
        self.scene, self.index = scene, index

    def get_pose(self) -> np.ndarray:
        sim = self.scene.sim
        axis = np.array(sim.data.xaxis[sim.model.joint(f"panda_joint{self.index + 1}").id])
        side = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.9 else [0, 1.0, 0])
        side /= np.linalg.norm(side)
        frame = quaternion_xyzw(np.stack([side, np.cross(axis, side), axis], axis=-1))
        return np.concatenate([sim.data.xanchor[sim.model.joint(f"panda_joint{self.index + 1}").id], frame])


class Arm:
    def __init__(self, scene: "Scene") -> None:
        self.joints = [Joint(scene, index) for index in range(7)]


class Robot:
    def __init__(self, scene: "Scene") -> None:
        self.arm = Arm(scene)


class Scene:
    def __init__(self, config: Any) -> None:
        self.config, self.robot, self.gripper, self.broken = config, Robot(self), 1.0, False
        self.sim: Any = None

    def step(self, velocities: np.ndarray, gripper: float | None = None) -> None:
        if np.isnan(velocities).any():
            time.sleep(float(os.environ.get("STANDIN_NAN_SECONDS", 118)))
            self.broken = True
        if self.broken:
            raise RuntimeError("The call failed on the V-REP side. Return value: -1")
        speed = np.clip(velocities, -50, 50)
        self.sim.advance([*speed, self.gripper if gripper is None else gripper])

    def get_observation(self) -> Observation:
        config, sim = self.config, self.sim
        position, rotation = sim.end_effector_pose()
        fields: dict[str, Any] = {"misc": {"variation_index": sim.variation}}
        for camera in CAMERAS:
            chosen = getattr(config, f"{camera}_camera")
            if chosen.rgb:
                fields[f"{camera}_rgb"] = sim.render(chosen.image_size[0])
                intrinsics, pose = sim.camera(chosen.image_size[0])
                intrinsics[:2, :2] *= -1
                pose[:3, :2] *= -1
                fields["misc"] |= {f"{camera}_camera_intrinsics": intrinsics, f"{camera}_camera_extrinsics": pose,
                                   f"{camera}_camera_near": 0.01, f"{camera}_camera_far": 4.5}  # fmt: skip
        measured = {
            "joint_velocities": sim.data.qvel[sim.dofs].copy(),
            "joint_positions": sim.joint_positions,
            "gripper_open": 1.0 if sim.gripper_opening > 0.9 else 0.0,
            "gripper_pose": np.concatenate([position, quaternion_xyzw(rotation)]),
            "gripper_joint_positions": np.full(2, sim.gripper_opening * FINGER_TRAVEL),
        }
        fields |= {name: value for name, value in measured.items() if getattr(config, name)}
        faults.happen("observation")
        return Observation(**fields)
