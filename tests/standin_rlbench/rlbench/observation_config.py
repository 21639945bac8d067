"""What an observation is to hold."""

from typing import Any

from pyrep.const import RenderMode

from rlbench.backend.observation import CAMERAS

LOW = ("joint_velocities", "joint_positions", "joint_forces", "gripper_open", "gripper_pose", "gripper_matrix",
       "gripper_joint_positions", "gripper_touch_forces", "task_low_dim_state")  # fmt: skip


class CameraConfig:
    def __init__(self) -> None:
        self.image_size, self.render_mode = (128, 128), RenderMode.OPENGL3
        self.set_all(True)

    def set_all(self, value: bool) -> None:
        self.rgb = self.depth = self.mask = self.point_cloud = value


class ObservationConfig:
    front_camera: CameraConfig
    joint_velocities: bool
    joint_positions: bool
    gripper_open: bool
    gripper_pose: bool
    gripper_joint_positions: bool

    def __init__(self, **_: Any) -> None:
        for camera in CAMERAS:
            setattr(self, f"{camera}_camera", CameraConfig())
        self.set_all(True)

    def set_all(self, value: bool) -> None:
        for camera in CAMERAS:
            getattr(self, f"{camera}_camera").set_all(value)
        for name in LOW:
            setattr(self, name, value)
