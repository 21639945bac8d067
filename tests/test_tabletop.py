"""Simulation and environments: exactness, hostile input, cameras, control modes."""

import hashlib
import os
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import llarva.tabletop.env  # registers the tasks
from llarva.cameras import project
from llarva.errors import LlarvaError
from llarva.kinematics import forward_kinematics, rotation_vector
from llarva.robots import ROUNDING, ActionError, get_robot
from llarva.tabletop import gl, simulation
from llarva.tabletop.experts import expert_action, run_expert
from llarva.tabletop.inverse_kinematics import turn_of, turned_by
from llarva.tabletop.scene import ROBOT_BASE
from llarva.tabletop.simulation import SET_POINT_LEASH, Simulation
from llarva.tabletop.tasks.registry import TASKS, get_task

PANDA = get_robot("panda")


@pytest.fixture(scope="module")
def buttons() -> Simulation:
    return Simulation(get_task("push_buttons"))


def advance_by_expert(sim: Simulation, steps: int) -> None:
    for _ in range(steps):
        sim.advance(sim.end_effector_to_joint_velocity(expert_action(sim)))


def digest(sim: Simulation, steps: int = 12) -> str:
    """Hash of the states and of every fourth picture of an expert's first steps."""
    total = hashlib.sha256()
    for step in range(steps):
        if step % 4 == 0:
            total.update(sim.render().tobytes())
            total.update(sim.segmentation()[0].tobytes())
        total.update(sim.data.qpos.tobytes() + sim.data.qvel.tobytes() + expert_action(sim).tobytes())
        advance_by_expert(sim, 1)
    return total.hexdigest()


# ---------------------------------------------------------------- kinematics


@settings(max_examples=100, deadline=None)
@given(share=arrays(float, 7, elements=st.floats(0.0, 1.0)))
def test_forward_kinematics_is_that_of_the_scene(share: np.ndarray, buttons: Simulation) -> None:
    lower, upper, _ = PANDA.limits()
    joints = lower + share * (upper - lower)
    position, rotation = forward_kinematics(PANDA, joints)
    there, turned = buttons.kinematics.pose(joints)
    assert np.abs(position + ROBOT_BASE - there).max() < 1e-6
    assert np.abs(rotation - turned).max() < 1e-6


@settings(max_examples=100, deadline=None)
@given(vector=arrays(float, 3, elements=st.floats(-1.8, 1.8)))
def test_rotation_vectors_agree_with_the_package(vector: np.ndarray) -> None:
    assert np.allclose(turn_of(turned_by(vector)), vector, atol=1e-9)
    assert np.allclose(rotation_vector(turned_by(vector)), vector, atol=1e-9)


def test_inverse_kinematics_is_exact_nearby_and_harmless_far_away(buttons: Simulation) -> None:
    buttons.reset(0)
    joints = buttons.joint_positions
    position, rotation = buttons.kinematics.pose(joints)
    found, left = buttons.kinematics.solve(position + [0.02, -0.01, -0.02], rotation, joints)
    assert left < 1e-4 and np.abs(found - joints).max() < 0.2
    found, left = buttons.kinematics.solve(position + [9.0, 0, 0], rotation, joints)
    assert left > 1 and np.all(np.isfinite(found))
    assert np.all((found >= PANDA.limits()[0]) & (found <= PANDA.limits()[1]))


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_bytes_whatever_happened_before(task: str) -> None:
    first, second = Simulation(get_task(task)), Simulation(get_task(task))
    first.reset(11, arm_noise=0.1)
    second.reset(4)
    run_expert(second)
    second.render()
    second.reset(11, arm_noise=0.1)
    assert digest(first) == digest(second)
    first.reset(12, arm_noise=0.1)
    second.reset(11, arm_noise=0.1)
    assert digest(first) != digest(second)


def test_same_bytes_in_another_process(buttons: Simulation) -> None:
    buttons.reset(21, variation=25)
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_tabletop import *\n"
        "sim = Simulation(get_task('push_buttons')); sim.reset(21, variation=25); print(digest(sim))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(buttons)


@pytest.mark.parametrize("task", TASKS)
def test_a_snapshot_continues_to_the_last_bit(task: str) -> None:
    sim = Simulation(get_task(task))
    sim.reset(5, arm_noise=0.1)
    length = len(sim.data.qpos)
    run_expert(sim)
    moments = [sim.steps // 3, 2 * sim.steps // 3]  # something is touched or held by then
    sim.reset(5, arm_noise=0.1)
    for moment in moments:
        advance_by_expert(sim, moment - sim.steps)
        picture, kept = sim.render(), pickle.loads(pickle.dumps(sim.snapshot()))
        assert run_expert(sim)
        end, steps, last = sim.data.qpos.copy(), sim.steps, sim.render()
        sim.reset(99)
        sim.restore(kept)
        assert np.array_equal(sim.render(), picture)
        assert run_expert(sim) and sim.steps == steps
        assert np.array_equal(sim.data.qpos, end) and np.array_equal(sim.render(), last) and len(end) == length
        sim.restore(kept)


def test_positions_are_fresh_after_a_step(buttons: Simulation) -> None:
    buttons.reset(3)
    advance_by_expert(buttons, 5)
    position, _ = forward_kinematics(PANDA, buttons.joint_positions)
    assert np.abs(position + ROBOT_BASE - buttons.end_effector_pose()[0]).max() < 1e-6


# ---------------------------------------------------------------- actions


HOSTILE = [
    [], [0.0] * 6, [0.0] * 9, [[0.0] * 8], [np.nan] + [0.0] * 7, [0.0] * 7 + [np.inf], "open", None,
    ["a"] * 8, [1e400] * 8, [0.0] * 7 + [None], {"a": 1}, [1j] * 8,
]  # fmt: skip


@pytest.mark.parametrize("action", HOSTILE, ids=str)
def test_hostile_actions_move_nothing(action: object, buttons: Simulation) -> None:
    buttons.reset(1)
    before, commanded = buttons.data.qpos.copy(), buttons.commanded.copy()
    with pytest.raises(ActionError):
        buttons.advance(action)  # type: ignore[arg-type]
    with pytest.raises(ActionError):
        buttons.end_effector_to_joint_velocity(action)  # type: ignore[arg-type]
    assert np.array_equal(before, buttons.data.qpos) and buttons.steps == 0
    assert np.array_equal(commanded, buttons.commanded)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=arrays(float, (4, 8), elements=st.floats(-1e6, 1e6)))
def test_any_finite_action_leaves_a_sane_robot(actions: np.ndarray, buttons: Simulation) -> None:
    buttons.reset(2)
    limit = np.array(PANDA.velocity_limits)
    for action in actions:
        buttons.advance(action)
        assert np.all(np.abs(buttons.joint_velocity_command) <= limit.astype(np.float32))
        assert np.all(np.abs(buttons.commanded - buttons.joint_positions) < SET_POINT_LEASH + 0.1)
    assert np.all(np.isfinite(buttons.data.qpos)) and np.abs(buttons.data.qvel[buttons.dofs]).max() < 6
    assert buttons.clipped == int(np.any(np.abs(actions[:, :7]) > limit + ROUNDING, axis=1).sum())


def test_joint_velocities_are_followed_and_nothing_drifts(buttons: Simulation) -> None:
    buttons.reset(0)
    wanted = np.array([0.3, -0.2, 0.25, 0.2, -0.4, 0.3, 0.5])
    for _ in range(20):
        buttons.advance([*wanted, 1])
    assert np.abs(buttons.data.qvel[buttons.dofs] - wanted).max() < 0.05
    for _ in range(20):
        buttons.advance([0.0] * 7 + [1])
    still = buttons.joint_positions
    for _ in range(100):
        buttons.advance([0.0] * 7 + [1])
    assert np.abs(buttons.joint_positions - still).max() < 1e-4


def test_an_end_effector_displacement_arrives(buttons: Simulation) -> None:
    buttons.reset(0)
    start, rotation = buttons.end_effector_pose()
    move = np.array([0.012, -0.008, -0.01, 0.02, 0.0, 0.05, 1.0])
    for _ in range(10):
        buttons.advance(buttons.end_effector_to_joint_velocity(move))
    moved, turned = buttons.end_effector_pose()
    assert np.linalg.norm(moved - start - 10 * move[:3]) < 0.02
    assert np.linalg.norm(turn_of(turned @ rotation.T) - 10 * move[3:6]) < 0.12


def test_the_gripper_opens_and_closes(buttons: Simulation) -> None:
    buttons.reset(0)
    assert buttons.gripper_opening > 0.98
    for command, reached in ((0.0, 0.02), (1.0, 0.98), (0.5, 0.02)):
        for _ in range(15):
            buttons.advance([0.0] * 7 + [command])
        assert abs(buttons.gripper_opening - reached) < 0.03, "0.5 means closed"


# ---------------------------------------------------------------- pictures


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
    monkeypatch.setattr(simulation, "BACKEND", None)
    sim = Simulation(get_task("push_buttons"))
    advance_by_expert(sim, 3)
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


# ---------------------------------------------------------------- push_buttons


def test_a_wrong_button_is_a_failure_and_lights_up() -> None:
    env = gymnasium.make("llarva/push_buttons-v0", control_mode="end_effector_delta")
    env.reset(seed=1, options={"variation": 0})
    task = env.unwrapped.sim.task
    task.order = [1]  # the expert is told another button than the judge
    done = False
    while not done:
        action = env.unwrapped.expert_action()
        task.order = [0]
        _, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        task.order = [1]
    assert truncated and not terminated and reward == 0 and info["failure"] == "wrong_button"
    env.close()


def test_pressing_needs_the_arm_and_the_stated_order(buttons: Simulation) -> None:
    buttons.reset(6, variation=40)
    for _ in range(40):
        buttons.advance([0.0] * 7 + [0.0])
    assert buttons.task.pressed == [] and not buttons.success and buttons.failure is None
    before = buttons.render()
    assert run_expert(buttons) and buttons.task.pressed == [0, 1, 2]
    lit = [tuple(buttons.model.geom(f"base{i}").rgba) for i in range(3)]
    assert len(set(lit)) == 1 and not np.array_equal(before, buttons.render())


# ---------------------------------------------------------------- environments


@pytest.mark.parametrize("task", TASKS)
def test_both_control_modes_make_the_same_motion(task: str) -> None:
    ends = []
    for mode in ("joint_velocity", "end_effector_delta"):
        env = gymnasium.make(f"llarva/{task}-v0", control_mode=mode)
        observation, info = env.reset(seed=8)
        assert env.observation_space.contains(observation) and len(set(info["instructions"])) >= 4
        terminated = truncated = False
        while not (terminated or truncated):
            action = env.unwrapped.expert_action()
            assert action.dtype == np.float32 and env.action_space.contains(action)
            observation, reward, terminated, truncated, info = env.step(action)
        assert terminated and info["success"] and reward == 1 and info["failure"] is None
        ends.append((env.unwrapped.sim.steps, observation["state"]))
        env.close()
    assert ends[0][0] == ends[1][0] and np.abs(ends[0][1] - ends[1][1]).max() < 1e-3


def test_the_step_limit_truncates() -> None:
    env = gymnasium.make("llarva/open_drawer-v0", max_steps=3)
    env.reset(seed=0)
    results = [env.step(np.zeros(8, dtype=np.float32)) for _ in range(3)]
    assert [result[3] for result in results] == [False, False, True] and not results[-1][2]
    assert results[-1][4]["failure"] == "step_limit" and results[0][4]["failure"] is None
    env.close()


def test_resets_follow_their_options() -> None:
    env = gymnasium.make("llarva/push_buttons-v0")
    first, info = env.reset(seed=3, options={"variation": 19})
    again, same = env.reset(seed=3, options={"variation": 19})
    assert np.array_equal(first["image"], again["image"]) and info["instruction"] == same["instruction"]
    assert info["variation"] == 19 and info["instruction"] == "push the white button"
    noisy, _ = env.reset(seed=3, options={"variation": 19, "arm_noise": 0.12})
    assert 0.02 < np.abs(noisy["state"] - first["state"]).max() < 0.6
    drawn = {env.reset()[1]["seed"] for _ in range(3)}
    assert len(drawn) == 3
    env.close()


WRONG_OPTIONS = [{"variation": 50}, {"variation": -1}, {"variations": 1}, {"arm_noise": float("nan")}]


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_wrong_reset_options_are_refused(options: dict[str, float]) -> None:
    env = gymnasium.make("llarva/push_buttons-v0")
    with pytest.raises(LlarvaError):
        env.reset(seed=0, options=options)
    env.close()


def test_wrong_names_are_refused() -> None:
    with pytest.raises(LlarvaError, match="push_buttons"):
        llarva.tabletop.env.TabletopEnv("push_button")
    with pytest.raises(LlarvaError, match="end_effector_delta"):
        gymnasium.make("llarva/push_buttons-v0", control_mode="telepathy")
    with pytest.raises(LlarvaError, match="image_size"):
        gymnasium.make("llarva/push_buttons-v0", image_size=0)
    with pytest.raises(LlarvaError, match="max_steps"):
        gymnasium.make("llarva/push_buttons-v0", max_steps=0)


def test_gymnasium_agrees() -> None:
    from gymnasium.utils.env_checker import check_env

    env = llarva.tabletop.env.TabletopEnv("push_buttons", image_size=32)
    check_env(env, skip_render_check=True)
    env.close()


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
