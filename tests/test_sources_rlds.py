"""RLDS data sets: every value against TensorFlow Datasets, and what happens to damaged ones."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from llarva.cards import load_card
from llarva.episodes.records import Episode, Step, decode_image, encode_image, episodes_equal
from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError
from llarva.sources.rlds import RldsEpisodes
from llarva.sources.rlds_fields import _text
from llarva.sources.rlds_writer import write_rlds
from llarva.sources.tf_example import ExampleError, parse_example
from llarva.sources.tfds_features import decode
from llarva.sources.tfds_folder import open_tfds, scan_shard

sys.path.insert(0, str(Path(__file__).parent))
from rlds_parts import normal, picture
from rlds_sets import EPISODES, SETS, build, generate

GOLDEN = Path(__file__).parent / "golden" / "rlds"


def card_of(name, folder, text=None):
    path = folder / f"{name}.md"
    path.write_text(text or SETS[name].card, encoding="utf-8")
    return load_card(path)


def episodes_of(name, tmp_path, folder=GOLDEN, text=None, **options):
    return RldsEpisodes(folder / name, card_of(name, tmp_path, text), **options)


def look(item, path):
    """What `generate` put at a path of `features.json`."""
    if isinstance(item, list) and (not item or isinstance(item[0], dict)):
        return [look(part, path) for part in item]
    if not path:
        return item
    key = next(key for key in item if path == key or path.startswith(key + "/"))
    return look(item[key], path[len(key) + 1 :])


def same(found, wanted, leaf):
    if leaf.kind == "image":
        if not isinstance(wanted, np.ndarray):
            return len(found) == len(wanted) and all(same(a, b, leaf) for a, b in zip(found, wanted, strict=True))
        pixels = decode_image(bytes(found)).astype(int)
        lossy = bytes(found[:2]) == b"\xff\xd8"
        return pixels.shape == wanted.shape and np.abs(pixels - wanted).max() <= (16 if lossy else 0)
    if isinstance(wanted, (str, bytes)):
        return bytes(found) == (wanted.encode() if isinstance(wanted, str) else wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(same(a, b, leaf) for a, b in zip(found, wanted, strict=True))
    wanted = np.asarray(wanted)
    if leaf.dtype == "float64" and leaf.encoding == "none":
        wanted = wanted.astype(np.float32).astype(np.float64)  # stored so
    found = np.asarray(found)
    right = np.dtype(leaf.dtype)
    return found.dtype == right and found.shape == wanted.shape and np.array_equal(found, wanted.astype(right))


def check_against_source(name, folder):
    data = open_tfds(folder / name)
    wanted = {episode["number"]: episode for episode in generate(name)}
    records = [record for shard in data.shards("train") for _, record in scan_shard(shard)]
    assert len(records) == EPISODES
    for record in records:
        features = parse_example(record)
        episode = wanted.pop(int(decode(data.features["number"], features)))
        for path, leaf in data.features.items():
            value = decode(leaf, features)
            assert same(value, look(episode, path), leaf), (path, value, look(episode, path))
    assert not wanted


@pytest.mark.parametrize("name", SETS)
def test_golden_files_written_by_tfds(name):
    check_against_source(name, GOLDEN)


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 100_000


@pytest.mark.parametrize("name", SETS)
def test_tfds_itself_agrees(name, tmp_path):
    """Built here by TFDS; what TFDS then reads and what is read here are the same values."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    builder = build(name, tmp_path)
    check_against_source(name, tmp_path)
    data = open_tfds(tmp_path / name)
    ours = [parse_example(r) for shard in data.shards("train") for _, r in scan_shard(shard)]
    theirs = list(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False)))
    assert len(ours) == len(theirs) == EPISODES
    for features, episode in zip(ours, theirs, strict=True):
        episode["steps"] = list(episode["steps"])
        for path, leaf in data.features.items():
            found, wanted = decode(leaf, features), look(episode, path)
            compare(found, wanted, leaf)


def compare(found, wanted, leaf):
    import tensorflow as tf

    if isinstance(wanted, tf.RaggedTensor) or type(wanted).__name__ == "RaggedTensorValue":
        wanted = wanted.to_list()
    if leaf.kind == "image" and isinstance(found, memoryview):
        assert np.abs(decode_image(bytes(found)).astype(int) - np.asarray(wanted, int)).max() <= 4  # two JPEG decoders
    elif isinstance(wanted, bytes):
        assert bytes(found) == wanted
    elif leaf.kind == "tensor" and leaf.dtype != "string" and not isinstance(wanted, list):
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
        assert np.asarray(found).dtype == getattr(wanted, "dtype", np.dtype(leaf.dtype))
    else:
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            compare(a, b, leaf)


def test_array_record_files(tmp_path):
    pytest.importorskip("array_record")
    pytest.importorskip("tensorflow_datasets")
    build("flat_seven", tmp_path, "array_record")
    check_against_source("flat_seven", tmp_path)


# ---- what the cards make of them


def source(name, episode):
    """The episode of `generate` that a read one comes from."""
    lengths = {len(item["steps"]): item for item in generate(name)}
    return lengths[len(episode.steps)]["steps"]


def stack(steps, *path):
    rows = []
    for step in steps:
        for key in path:
            step = step[key]
        rows.append(step)
    return np.array(rows)


def actions(episode):
    assert episode.steps[-1].action is None
    return np.array([step.action for step in episode.steps[:-1]])


def states(episode):
    return np.array([step.state for step in episode.steps])


def test_flat_seven(tmp_path):
    read = episodes_of("flat_seven", tmp_path)
    episodes = list(read)
    assert read.records == len(episodes) == EPISODES and len(read.report) == 0
    assert [e.episode_id for e in episodes] == [f"flat_seven/train-00000-0000{k}" for k in range(2)]
    for episode in episodes:
        steps = source("flat_seven", episode)
        raw = stack(steps, "action")[:-1]
        turn = Rotation.from_euler("xyz", raw[:, 3:6]).as_rotvec().astype(np.float32)
        assert np.array_equal(actions(episode), np.column_stack([raw[:, :3], turn, 1 - raw[:, 6]]))
        state = stack(steps, "observation", "state")
        assert np.array_equal(states(episode), state[:, :7])
        opening = np.clip((state[:, 7].astype(float) - 1) / -2, 0, 1)
        assert [step.gripper_open for step in episode.steps] == opening.tolist()
        assert episode.instructions == ("put the red cup down",) and episode.success is True
        assert [step.timestamp for step in episode.steps] == [t / 10 for t in range(len(steps))]
        assert all(step.image[:2] == b"\xff\xd8" for step in episode.steps)
        assert (episode.robot, episode.control_mode, episode.dataset) == ("panda", "end_effector_delta", "flat_seven")


def test_nested_push(tmp_path):
    for episode in episodes_of("nested_push", tmp_path):
        steps = source("nested_push", episode)
        found = actions(episode)
        assert np.array_equal(found[:, :3], stack(steps, "action", "world_vector")[:-1])
        assert np.allclose(found[:, 3:6], stack(steps, "action", "rotation_delta")[:-1], atol=1e-6)
        assert found[:, 6].tolist() == [1, 0, 0, 1][: len(found)]  # pushes 0, 1, 0, −1, 0.1
        assert np.array_equal(found[:, 7], stack(steps, "action", "base_displacement_vertical_rotation")[:-1, 0])
        assert found[:, 8].tolist() == [0] * len(found)
        closed = stack(steps, "observation", "gripper_closed")[:, 0].astype(float)
        assert [step.gripper_open for step in episode.steps] == (1 - closed).tolist()
        assert states(episode).shape == (len(steps), 0)


def test_scalars(tmp_path):
    for episode in episodes_of("scalars", tmp_path):
        steps = source("scalars", episode)
        found, scale = actions(episode), np.float32([1, -1, 0.5])
        assert np.array_equal(found[:, :3], stack(steps, "action", "world_vector")[:-1] * scale)
        turn = Rotation.from_euler("zyx", stack(steps, "action", "rotation_delta")[:-1])
        assert np.array_equal(found[:, 3:6], turn.as_rotvec().astype(np.float32))
        opened = stack(steps, "action", "open_gripper").astype(float)
        assert np.array_equal(found[:, 6], opened[:-1])
        assert [step.gripper_open for step in episode.steps] == [opened[0], *opened[:-1]]
        state = stack(steps, "observation", "state")
        assert np.array_equal([step.end_effector_position for step in episode.steps], state[:, :3])
        for step, quaternion in zip(episode.steps, state[:, 3:], strict=True):  # stored x y z w
            assert abs(abs(step.end_effector_quaternion_xyzw @ quaternion) - 1) < 1e-6
        assert all(step.image[:4] == b"\x89PNG" for step in episode.steps)


def test_code_points_split_where_the_words_change(tmp_path):
    episodes = list(episodes_of("code_points", tmp_path))
    assert sorted((e.episode_id[-1], e.instructions, len(e.steps)) for e in episodes) == [
        ("0", ("schiebe den Würfel",), 3),
        ("0", ("schiebe den Würfel",), 3),
        ("1", ("zurück ↩",), 1),
        ("1", ("zurück ↩",), 2),
    ]
    raw = {len(item["steps"]): item["steps"] for item in generate("code_points")}
    both = [e for e in episodes if e.episode_id.startswith(episodes[0].episode_id[:-2])]
    steps = raw[2 + len(both[1].steps)]
    joined = np.concatenate([actions(both[0]), actions(both[1]).reshape(-1, 2)])
    assert np.array_equal(joined, stack(steps, "action")[:-1])  # no action is lost at the cut
    assert np.array_equal(both[0].steps[-1].state, both[1].steps[0].state)
    refusing = SETS["code_points"].card.replace(", changes: split", "")
    with pytest.raises(RecordError, match=r"record 0: step 2: the instruction changes from 'schiebe"):
        list(episodes_of("code_points", tmp_path, text=refusing))


def test_way_points(tmp_path):
    for episode in episodes_of("way_points", tmp_path):
        steps, found = source("way_points", episode), actions(episode)
        assert np.array_equal(found[:, :3], stack(steps, "action", "future/xyz_residual")[:-1, :3])
        assert np.array_equal(found[:, 6], [1] * len(found))  # the first of the ten is open (0) at every step
        assert episode.instructions == ("place the bottle in the tray",)


def test_doubles(tmp_path):
    read = episodes_of("doubles", tmp_path)
    for episode in read:
        steps = source("doubles", episode)
        assert np.array_equal(actions(episode), stack(steps, "action")[:-1].astype(np.float32))
        assert np.array_equal(states(episode), stack(steps, "observation", "state").astype(np.float32))
        assert episode.instructions == ("play with the kitchen",)
    assert read.notes == {"episodes whose gripper opening is not known, written as 0": 2}
    assert "fields.gripper" in read.unverified and "actions.joint_motion" in read.unverified


def test_per_episode(tmp_path):
    for episode in episodes_of("per_episode", tmp_path):
        steps = source("per_episode", episode)
        for step, raw in zip(episode.steps, steps, strict=True):
            assert np.array_equal(decode_image(step.image), np.rot90(raw["observation"]["image"][..., ::-1]))
            assert np.array_equal(step.end_effector_position, raw["observation"]["tip"][:3, 3])
        opened = np.clip(stack(steps, "action", "gripper").astype(float) / 0.08, 0, 1)
        assert np.allclose(actions(episode)[:, 3], opened[:-1])
        index = len(steps) - 3
        assert episode.instructions == ((f"push block {index}",) if index else ("push block 0", "move it"))


def test_unverified_actions_are_left_out(tmp_path):
    text = SETS["doubles"].card.replace("joint_motion: [{field: steps/action, size: 15}]", "joint_motion: unverified")
    read = episodes_of("doubles", tmp_path, text=text)
    assert all(step.action is None for episode in read for step in episode.steps)
    assert "fields.actions.joint_motion" in read.unverified


# ---- the other direction


def recorded(seed, steps=4, **changes):
    rng = np.random.default_rng(seed)
    turn = Rotation.random(steps, random_state=seed).as_quat().astype(np.float32)
    made = tuple(
        Step(
            state=normal(rng, 7),
            gripper_open=float(np.float32(rng.random())),
            image=encode_image(picture(rng)),
            action=None if t == steps - 1 else np.append(normal(rng, 6), np.float32(t % 2)),
            end_effector_position=normal(rng, 3),
            end_effector_quaternion_xyzw=turn[t],
            timestamp=t / 20,
        )
        for t in range(steps)
    )
    episode = Episode(
        episode_id=f"tea/{seed}",
        dataset="kitchen",
        robot="panda",
        control_mode="end_effector_delta",
        instructions=("pour the tea", "tea!"),
        task="tea",
        variation=seed,
        seed=seed,
        success=seed % 2 == 0,
        steps=made,
    )
    return replace(episode, **changes)


def test_one_text_in_a_list_is_that_text():
    said = np.array([b" pick up\n the cup"], object)
    assert _text(said, "text", "language") == _text(said[0], "text", "language") == "pick up the cup"
    assert _text(np.array([104, 105, 10, 104, 0]), "code_points", "language") == "hi h"
    with pytest.raises(ExampleError, match="holds 2 texts"):
        _text(np.array([b"a", b"b"], object), "text", "language")


def test_success_that_nobody_knows_stays_unknown(tmp_path):
    wanted = [None, True, False]
    write_rlds(tmp_path, [recorded(k, 3, success=known) for k, known in enumerate(wanted)], "kitchen")
    read = RldsEpisodes(tmp_path / "kitchen", load_card(tmp_path / "kitchen.md"))
    assert [episode.success for episode in read] == wanted


def test_writer_round_trip(tmp_path):
    written = [recorded(seed, 3 + seed % 3) for seed in range(5)]
    write_rlds(tmp_path, iter(written), "kitchen", episodes_per_shard=2)
    card = load_card(tmp_path / "kitchen.md")
    read = RldsEpisodes(tmp_path / "kitchen", card)
    assert [shard.records for shard in read.shards] == [2, 2, 1] and card.size.steps == sum(
        len(e.steps) for e in written
    )
    assert card.rate_hz == 20 and read.records == 5
    for before, after in zip(written, read, strict=True):
        wanted = replace(
            before,
            episode_id=after.episode_id,
            instructions=before.instructions[:1],
            task="kitchen",
            variation=0,
            seed=-1,
        )
        turns = [
            (a.end_effector_quaternion_xyzw, b.end_effector_quaternion_xyzw)
            for a, b in zip(before.steps, after.steps, strict=True)
        ]
        assert all(np.allclose(a, b, atol=1e-6) for a, b in turns)  # normalised once more
        steps = tuple(
            replace(step, end_effector_quaternion_xyzw=turn[0]) for step, turn in zip(after.steps, turns, strict=True)
        )
        assert episodes_equal(wanted, replace(after, steps=steps))
    again = write_rlds(tmp_path / "again", written, "kitchen", episodes_per_shard=2)
    for file in again.iterdir():
        assert file.read_bytes() == (tmp_path / "kitchen" / "1.0.0" / file.name).read_bytes()


def test_tfds_opens_what_was_written(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    written = [recorded(seed) for seed in range(3)]
    folder = write_rlds(tmp_path, written, "kitchen", episodes_per_shard=2)
    found = list(tfds.as_numpy(tfds.builder_from_directory(folder).as_dataset(split="train")))
    assert len(found) == 3
    for episode in found:
        before = written[episode["episode_metadata"]["seed"]]
        assert episode["episode_metadata"]["instructions"].tolist() == [b"pour the tea", b"tea!"]
        steps = list(episode["steps"])
        assert [s["is_first"] for s in steps] == [True, False, False, False] and steps[-1]["is_last"]
        for step, wanted in zip(steps, before.steps, strict=True):
            assert np.array_equal(step["observation"]["image"], decode_image(wanted.image))
            assert np.array_equal(step["observation"]["state"], wanted.state)
            assert np.array_equal(step["action"], np.zeros(7) if wanted.action is None else wanted.action)


def test_writer_refuses(tmp_path):
    good = recorded(0)
    blank = replace(good, steps=(*good.steps[:-1], replace(good.steps[-1], image=None)))
    still = replace(good, steps=tuple(replace(step, action=None) for step in good.steps))
    own = replace(good, control_mode="end_effector_motion")
    for episodes, name, message in (
        ([], "a", "no episodes"),
        ([good], "../a", "must be words"),
        ([good], "A", "must be words"),
        ([blank], "b", "step 3 has no image"),
        ([still], "c", "with actions"),
        ([own], "d", "layout must name 7 numbers"),
        ([good, recorded(1, robot="ur5")], "e", "robot is 'ur5', in the first episode it is 'panda'"),
    ):
        with pytest.raises(SourceError, match=message):
            write_rlds(tmp_path, episodes, name)
    write_rlds(tmp_path, [own], "d", layout=tuple((f"n{i}", "none") for i in range(7)))
    assert load_card(tmp_path / "d.md").control_modes == ("end_effector_motion",)
    with pytest.raises(SourceError, match="is there already"):
        write_rlds(tmp_path, [good], "d")
