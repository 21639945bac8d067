"""RLBench's layouts: read from pickles that Python's own pickler made, written, and read again."""

import io
import pickle
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llarva.cameras import intrinsics_from_fov, look_at, project
from llarva.episodes.records import Episode, Step, encode_image
from llarva.sources.opcodes import SourceError, UnsafePickleError
from llarva.sources.rlbench import CAMERAS, RlbenchDemos, find_episodes
from llarva.sources.rlbench_writer import LAYOUTS, Instance, dump_pickle, write_episode, write_episodes

FOCAL = np.array([[-175.8387, 0.0, 64.0], [0.0, -175.8387, 64.0], [0.0, 0.0, 1.0]])
EXTRINSICS = np.eye(4)
EXTRINSICS[:3, :3] = np.array([[0.0, 0.42, -0.91], [1.0, 0.0, 0.0], [0.0, -0.91, -0.42]])
EXTRINSICS[:3, 3] = (1.35, 0.0, 1.58)


@contextmanager
def rlbench_names() -> Iterator[tuple[type, type]]:
    """Classes that pickle under RLBench's names; nothing of RLBench is installed."""
    made: dict[str, types.ModuleType] = {
        name: types.ModuleType(name)
        for name in ("rlbench", "rlbench.demo", "rlbench.backend", "rlbench.backend.observation")
    }
    demo = type("Demo", (), {"__module__": "rlbench.demo"})
    observation = type("Observation", (), {"__module__": "rlbench.backend.observation"})
    made["rlbench.demo"].Demo, made["rlbench.backend.observation"].Observation = demo, observation  # type: ignore
    sys.modules.update(made)
    try:
        yield demo, observation
    finally:
        for name in made:
            del sys.modules[name]


def recording(length: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    steps = []
    for index in range(length):
        quaternion = rng.normal(size=4)
        fields: dict[str, Any] = {f"{c}_{k}": None for c in CAMERAS for k in ("rgb", "depth", "mask", "point_cloud")}
        fields |= {
            "joint_velocities": rng.normal(size=7),
            "joint_positions": rng.normal(size=7),
            "joint_forces": rng.normal(size=7),
            "gripper_open": float(index < 3),
            "gripper_pose": np.concatenate([rng.uniform(-0.2, 0.4, 2), [1.0], quaternion / np.linalg.norm(quaternion)]),
            "gripper_matrix": np.eye(4),
            "gripper_joint_positions": np.full(2, 0.04 * (index < 3)),
            "gripper_touch_forces": np.zeros(6),
            "task_low_dim_state": rng.normal(size=43),
            "misc": {
                "front_camera_intrinsics": FOCAL.copy(), "front_camera_extrinsics": EXTRINSICS.copy(),
                "front_camera_near": 0.01, "front_camera_far": 4.5, "variation_index": 2,
                "joint_poses": [rng.normal(size=7) for _ in range(7)],
            },
        }
        if index:
            fields["misc"]["joint_position_action"] = rng.normal(size=8)
        steps.append(fields)
    return steps


def png(seed: int, size: int = 16) -> bytes:
    return encode_image(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def write_demo(folder: Path, steps: list[dict[str, Any]], *, fork: bool = False, protocol: int = 4) -> Path:
    folder.mkdir(parents=True)
    with rlbench_names() as (demo_class, observation_class):
        demo = demo_class()
        demo._observations = []
        for fields in steps:
            observation = observation_class()
            observation.__dict__.update(fields)
            demo._observations.append(observation)
        demo.random_seed = np.random.RandomState(1).get_state()
        setattr(demo, *(("variation_number", 2) if fork else ("num_reset_attempts", 1)))
        (folder / "low_dim_obs.pkl").write_bytes(pickle.dumps(demo, protocol))
    (folder / "front_rgb").mkdir()
    for index in range(len(steps)):
        (folder / "front_rgb" / f"{index}.png").write_bytes(png(index))
    return folder


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for variation, episode in ((0, 0), (0, 1), (2, 0), (10, 0)):
        write_demo(root / "push_buttons" / f"variation{variation}" / "episodes" / f"episode{episode}", recording())
    for variation in (0, 2, 10):
        path = root / "push_buttons" / f"variation{variation}" / "variation_descriptions.pkl"
        path.write_bytes(pickle.dumps([f"push number {variation}", "press it"]))
    return root


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    root = tmp_path / "fork"
    for number in (0, 1, 11, 2):
        folder = root / "open_drawer" / "all_variations" / "episodes" / f"episode{number}"
        write_demo(folder, recording(), fork=True)
        (folder / "variation_number.pkl").write_bytes(pickle.dumps(2))
        (folder / "variation_descriptions.pkl").write_bytes(pickle.dumps(["open the top drawer"]))
    return root


def test_stock_layout(stock: Path) -> None:
    demos = RlbenchDemos(stock)
    assert demos.ids == [
        "push_buttons/variation0/episode0", "push_buttons/variation0/episode1",
        "push_buttons/variation2/episode0", "push_buttons/variation10/episode0",
    ]
    episode = demos[2]
    assert (episode.task, episode.variation, episode.success) == ("push_buttons", 2, True)
    assert episode.instructions == ("push number 2", "press it")
    steps = recording()
    for index, step in enumerate(episode.steps):
        np.testing.assert_array_equal(step.state, steps[index]["joint_positions"].astype(np.float32))
        assert step.image == png(index)
        assert step.timestamp == index / 20
        if index + 1 < len(steps):
            want = [*steps[index + 1]["joint_velocities"], steps[index + 1]["gripper_open"]]
            np.testing.assert_array_equal(step.action, np.float32(want))
        else:
            assert step.action is None
    assert "rlbench" not in sys.modules


def test_any_level_may_be_given(stock: Path) -> None:
    assert len(find_episodes(stock / "push_buttons")) == 4
    (only,) = find_episodes(stock / "push_buttons" / "variation2")
    assert only.episode_id == "push_buttons/variation2/episode0"
    assert len(find_episodes(stock, ["push_buttons"])) == 4


def test_fork_layout(fork: Path) -> None:
    demos = RlbenchDemos(fork)
    assert [name.rsplit("/", 1)[1] for name in demos.ids] == ["episode0", "episode1", "episode2", "episode11"]
    assert [episode.variation for episode in demos] == [2] * 4
    assert demos[0].instructions == ("open the top drawer",)


def test_fork_without_variation_file(fork: Path) -> None:
    folder = fork / "open_drawer" / "all_variations" / "episodes" / "episode0"
    (folder / "variation_number.pkl").unlink()
    assert RlbenchDemos(fork)[0].variation == 2


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_protocols(tmp_path: Path, protocol: int) -> None:
    write_demo(tmp_path / "t" / "variation0" / "episodes" / "episode0", recording(), protocol=protocol)
    (tmp_path / "t" / "variation0" / "variation_descriptions.pkl").write_bytes(pickle.dumps(["do it"], protocol))
    assert len(RlbenchDemos(tmp_path)[0].steps) == 6


def test_projection_with_the_recorded_matrices(stock: Path) -> None:
    """Our converted camera gives the pixels that RLBench's own matrices give."""
    episode, steps = RlbenchDemos(stock)[0], recording()
    for step, fields in zip(episode.steps, steps, strict=True):
        assert step.camera_intrinsics is not None and step.camera_intrinsics[0, 0] > 0
        point = fields["gripper_pose"][:3]
        u, v, w = FOCAL @ (EXTRINSICS[:3, :3].T @ (point - EXTRINSICS[:3, 3]))
        pixels, depth = project(point, step.camera_intrinsics, step.camera_pose)
        np.testing.assert_allclose(pixels, (u / w, v / w), rtol=1e-12)
        assert depth == pytest.approx(w)


def drop(name: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda steps: steps[2].update({name: None})


def put(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda steps: steps[2].update({name: value})


def misc(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda steps: steps[2]["misc"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("joint_positions"), "observation 2: joint_positions must be 7 finite numbers; it is None"),
        (put("joint_velocities", np.full(7, np.nan)), "observation 2: joint_velocities must be 7 finite"),
        (put("gripper_pose", np.zeros(6)), r"gripper_pose must be 7 finite numbers; it is of shape \(6,\)"),
        (put("gripper_pose", np.zeros(7)), "quaternion"),
        (put("gripper_open", 2.0), "gripper_open must be from 0 to 1; it is 2.0"),
        (put("gripper_open", "yes"), "gripper_open must be from 0 to 1; it is 'yes'"),
        (misc("front_camera_intrinsics", np.eye(3)), "observation 2: front camera"),
        (misc("front_camera_extrinsics", np.eye(3)), "observation 2: front camera"),
        (misc("front_camera_extrinsics", "a string"), "must be arrays of numbers"),
        (misc("front_camera_extrinsics", np.full((4, 4), np.nan)), "not finite"),
        (put("surprise", 1), "Unknown attribute 'surprise'"),
        (lambda steps: steps.__delitem__(slice(1, None)), "at least two observations"),
    ],
)
def test_bad_recordings(tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], message: str) -> None:
    steps = recording()
    change(steps)
    folder = write_demo(tmp_path / "t" / "variation0" / "episodes" / "episode0", steps)
    (folder.parent.parent / "variation_descriptions.pkl").write_bytes(pickle.dumps(["x"]))
    with pytest.raises(SourceError, match=message) as caught:
        RlbenchDemos(tmp_path)[0]
    assert str(folder / "low_dim_obs.pkl") in str(caught.value)


EPISODE = Path("push_buttons/variation2/episodes/episode0")


@pytest.mark.parametrize(
    ("harm", "file", "message"),
    [
        (lambda p: p.unlink(), EPISODE / "front_rgb/3.png", "missing"),
        (lambda p: p.write_bytes(b"not an image"), EPISODE / "front_rgb/3.png", "not a whole PNG"),
        (lambda p: p.write_bytes(png(0)[:-40]), EPISODE / "front_rgb/3.png", "not a whole PNG"),
        (lambda p: p.write_bytes(png(0, 8)), EPISODE / "front_rgb/3.png", "the first image has"),
        (lambda p: (p / "6.png").write_bytes(png(0)), EPISODE / "front_rgb", "7 images for 6 observations"),
        (lambda p: shutil.rmtree(p), EPISODE / "front_rgb", "no such image folder"),
        (lambda p: p.unlink(), EPISODE / "low_dim_obs.pkl", "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:3000]), EPISODE / "low_dim_obs.pkl", "not a whole pickle"),
        (lambda p: p.write_bytes(b""), EPISODE / "low_dim_obs.pkl", "not a whole pickle"),
        (lambda p: p.write_bytes(pickle.dumps([1])), EPISODE / "low_dim_obs.pkl", "holds a list, not a Demo"),
        (lambda p: p.write_bytes(pickle.dumps(print)), EPISODE / "low_dim_obs.pkl", "builtins.print"),
        (lambda p: p.unlink(), Path("push_buttons/variation2/variation_descriptions.pkl"), "no such file"),
        (lambda p: p.write_bytes(pickle.dumps([1])), Path("push_buttons/variation2/variation_descriptions.pkl"),
         "must hold a list of sentences"),
    ],
)
def test_damage_names_the_file_and_can_be_skipped(
    stock: Path, harm: Callable[[Path], object], file: Path, message: str
) -> None:
    harm(stock / file)
    with pytest.raises(SourceError, match=message) as caught:
        list(RlbenchDemos(stock))
    assert str(stock / file) in str(caught.value)
    demos = RlbenchDemos(stock, skip_bad=True)
    assert len(list(demos)) == 3
    assert list(demos.skipped) == ["push_buttons/variation2/episode0"]
    assert message in next(iter(demos.skipped.values()))


def test_hostile_description_file(stock: Path) -> None:
    path = stock / "push_buttons" / "variation0" / "variation_descriptions.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.")
    with pytest.raises(UnsafePickleError, match="posix.system"):
        RlbenchDemos(stock)[0]


def test_wrong_folders(tmp_path: Path, stock: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        RlbenchDemos(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no RLBench demonstrations"):
        RlbenchDemos(tmp_path / "empty")
    with pytest.raises(SourceError, match="no task close_jar. It holds: push_buttons"):
        RlbenchDemos(stock, tasks=["close_jar"])
    with pytest.raises(SourceError, match="Unknown camera 'frontal'. Did you mean 'front'"):
        RlbenchDemos(stock, camera="frontal")[0]
    (stock / "push_buttons" / "variation7").mkdir()
    with pytest.raises(SourceError, match="variation7: a variation folder needs"):
        RlbenchDemos(stock)


def our_episode(length: int, seed: int, *, delta: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    steps = []
    for index in range(length):
        velocity = rng.normal(size=7).astype(np.float32)
        gripper = np.float32(rng.integers(2))
        quaternion = rng.normal(size=4)
        motion = rng.normal(size=6).astype(np.float32) if delta else velocity
        last = index + 1 == length
        steps.append(Step(
            state=rng.normal(size=7).astype(np.float32),
            gripper_open=float(np.float32(rng.uniform())),
            image=png(index),
            action=None if last else np.append(motion, gripper),
            joint_velocity_command=None if last else velocity,
            end_effector_position=rng.normal(size=3).astype(np.float32),
            end_effector_quaternion_xyzw=(quaternion / np.linalg.norm(quaternion)).astype(np.float32),
            camera_intrinsics=intrinsics_from_fov(rng.uniform(0.3, 1.2), (16, 16)),
            camera_pose=look_at(rng.normal(size=3) + [1, 0, 1], (0, 0, 0.7)),
            timestamp=index / 20,
        ))
    mode = "end_effector_delta" if delta else "joint_velocity"
    words, task = ("push", "press"), "push_buttons"
    return Episode("ours/1", "tabletop", "panda", mode, words, task, seed % 5, seed, True, tuple(steps))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**40), st.sampled_from(LAYOUTS), st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, length: int, seed: int, layout: str, delta: bool) -> None:
    root = tmp_path_factory.mktemp("round")
    episode = our_episode(length, seed, delta=delta)
    write_episode(episode, root, layout=layout)
    back = RlbenchDemos(root)[0]
    for name in ("robot", "instructions", "task", "variation", "success"):
        assert getattr(back, name) == getattr(episode, name), name
    for a, b in zip(episode.steps, back.steps, strict=True):
        assert (a.image, a.gripper_open, a.timestamp) == (b.image, b.gripper_open, b.timestamp)
        for name in (
            "state", "joint_velocity_command", "end_effector_position", "end_effector_quaternion_xyzw",
            "camera_intrinsics", "camera_pose",
        ):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            if x is not None:
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
        if a.action is not None and b.action is not None and a.joint_velocity_command is not None:
            np.testing.assert_array_equal(b.action, np.append(a.joint_velocity_command, a.action[-1]))


def test_written_pickles_load_under_rlbench_names(tmp_path: Path) -> None:
    """Python's own unpickler, with classes of these names present, reads what we write."""
    folder = write_episode(our_episode(4, 3), tmp_path)
    with rlbench_names() as (demo_class, observation_class):
        demo = pickle.loads((folder / "low_dim_obs.pkl").read_bytes())
        assert type(demo) is demo_class and all(type(o) is observation_class for o in demo._observations)
    assert demo._observations[1].misc["front_camera_intrinsics"][0, 0] < 0
    assert demo._observations[1].joint_positions.dtype == np.float64
    np.random.RandomState().set_state(demo.random_seed)


def test_writer_is_deterministic_and_numbers_episodes(tmp_path: Path) -> None:
    episodes = [our_episode(3, 3), our_episode(4, 3), our_episode(3, 4)]
    first = write_episodes(episodes, tmp_path / "a")
    write_episodes(episodes, tmp_path / "b")
    assert [path.parent.parent.name + "/" + path.name for path in first] == [
        "variation3/episode0", "variation3/episode1", "variation4/episode0"]
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert not list(tmp_path.rglob("*.partial"))


def test_stock_descriptions_are_united(tmp_path: Path) -> None:
    write_episode(our_episode(3, 3), tmp_path)
    write_episode(replace(our_episode(3, 3), instructions=("press", "hit it")), tmp_path)
    assert RlbenchDemos(tmp_path)[0].instructions == ("push", "press", "hit it")


def test_jpeg_frames_become_png(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(out, "JPEG")
    episode = our_episode(3, 3)
    episode = replace(episode, steps=tuple(replace(step, image=out.getvalue()) for step in episode.steps))
    write_episode(episode, tmp_path)
    assert (RlbenchDemos(tmp_path)[0].steps[0].image or b"").startswith(b"\x89PNG")


def test_writer_refuses(tmp_path: Path) -> None:
    episode = our_episode(3, 3)
    with pytest.raises(SourceError, match="Unknown RLBench layout 'arm'"):
        write_episode(episode, tmp_path, layout="arm")
    with pytest.raises(SourceError, match="did not succeed"):
        write_episode(replace(episode, success=False), tmp_path)
    sparse = replace(episode, steps=(episode.steps[0], replace(episode.steps[1], image=None), episode.steps[2]))
    with pytest.raises(SourceError, match="step 1 has no image"):
        write_episode(sparse, tmp_path)
    blind = replace(episode, steps=(replace(episode.steps[0], end_effector_position=None), *episode.steps[1:]))
    with pytest.raises(SourceError, match="step 0 has no end-effector pose"):
        write_episode(blind, tmp_path)
    with pytest.raises(SourceError, match="cannot be written"):
        dump_pickle(Instance("a", "B", {"x": object()}))
    assert not list(tmp_path.iterdir())
