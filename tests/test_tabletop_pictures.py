"""Pictures: cameras, segmentation, looks, and machines that cannot draw."""

import os
import subprocess
import sys

import numpy as np
import pytest
from task_checks import act

from llarva.cameras import project
from llarva.tabletop import drawing, gl
from llarva.tabletop.experts import expert_action
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.registry import TASKS, get_task


@pytest.fixture(scope="module")
def buttons() -> Simulation:
    return Simulation(get_task("push_buttons"))


def test_projection_hits_what_the_picture_shows(buttons: Simulation) -> None:
    for seed in range(4):
        buttons.reset(seed)
        labels, names = buttons.segmentation(128)
        intrinsics, pose = buttons.camera()
        for name, mark in buttons.task.objects(buttons).items():
            rows, columns = np.nonzero(labels == names.index(name) + 1)
            pixel, depth = project(mark.point, intrinsics, pose)
            assert depth > 0 and len(rows) > 20
            assert np.abs(pixel - [columns.mean() + 0.5, rows.mean() + 0.5]).max() < 5, name


@pytest.mark.parametrize("task", TASKS)
def test_home_and_named_objects_are_inside_the_picture(task: str) -> None:
    sim = Simulation(get_task(task))
    for seed in range(8):
        sim.reset(seed)
        intrinsics, pose = sim.camera()
        points = [sim.end_effector_pose()[0], *(mark.point for mark in sim.objects().values())]
        pixels, _ = project(np.stack(points), intrinsics, pose)
        assert np.all((pixels > 4) & (pixels < 124))


def test_segmentation_sizes_agree(buttons: Simulation) -> None:
    buttons.reset(3)
    small, names = buttons.segmentation()
    large, _ = buttons.segmentation(128)
    assert small.shape == (32, 32) and set(np.unique(small)) <= set(range(len(names) + 1))
    shares = [(small == k).mean() - (large == k).mean() for k in range(len(names) + 1)]
    assert np.abs(shares).max() < 0.02


def test_without_opengl_physics_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "BACKEND", None)
    sim = Simulation(get_task("push_buttons"))
    act(sim, 3)
    with pytest.raises(gl.RenderError, match="libosmesa6"):
        sim.render()


CHOICES = [(True, True, "egl"), (False, True, "osmesa"), (False, False, None)]


@pytest.mark.parametrize(("egl", "osmesa", "chosen"), CHOICES)
def test_choice_of_opengl(egl: bool, osmesa: bool, chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setattr(gl.importlib, "reload", lambda module: module)
    monkeypatch.setattr(gl, "has_egl", lambda: egl)
    monkeypatch.setattr(gl, "has_osmesa", lambda: osmesa)
    assert gl.choose_backend() == chosen
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert gl.choose_backend() == "glfw", "a person's own choice is kept"


DRAW = "from llarva.tabletop.simulation import Simulation\nfrom llarva.tabletop.tasks.registry import get_task\n"
DRAW += "Simulation(get_task('push_buttons')).render()"


@pytest.mark.parametrize(("first", "backend", "fails"), [("import mujoco", "", ""), ("", "glfw", "Unset MUJOCO_GL")])
def test_the_order_of_imports_and_a_bad_choice(first: str, backend: str, fails: str) -> None:
    """Importing mujoco first does no harm; a backend that cannot draw is named in an error of ours."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    environment |= {"MUJOCO_GL": backend} if backend else {}
    done = subprocess.run([sys.executable, "-c", f"{first}\n{DRAW}"], capture_output=True, text=True, env=environment)
    assert (done.returncode != 0) == bool(fails) and fails in done.stderr


def test_appearance_changes_the_picture_and_nothing_else() -> None:
    plain, looked = Simulation(get_task("push_buttons"), 64), Simulation(get_task("push_buttons"), 64)
    plain.reset(3)
    looked.reset(3, appearance_seed=8)
    assert not np.array_equal(plain.render(), looked.render())
    picture, pose = looked.render(), looked.camera()[1]
    assert 0 < np.abs(pose - plain.camera()[1]).max() < 0.03
    for sim in (plain, looked):
        for _ in range(5):
            sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))
    assert np.array_equal(plain.data.qpos, looked.data.qpos)
    snapshot = looked.snapshot()
    looked.reset(3)
    assert np.array_equal(looked.camera()[1], Simulation(get_task("push_buttons"), 64).camera()[1])
    looked.restore(snapshot)
    assert np.array_equal(looked.camera()[1], pose)
    looked.reset(3, appearance_seed=8)
    assert np.array_equal(looked.render(), picture)


def test_marks_stay_on_their_things_under_every_appearance() -> None:
    sim = Simulation(get_task("push_buttons"), 128)
    for look in range(4):
        sim.reset(5, appearance_seed=look)
        seen, names = sim.segmentation(128)
        for name, mark in sim.objects().items():
            if name != "gripper":
                (x, y), _ = project(mark.point, *sim.camera())
                assert names[int(seen[int(y), int(x)]) - 1] == name
