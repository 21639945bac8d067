"""RLDS data sets: every value against TensorFlow Datasets, and what happens to damaged ones."""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from llarva.cards import load_card
from llarva.episodes.records import Episode, Step, decode_image, encode_image, episodes_equal
from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError
from llarva.sources.rlds import RldsEpisodes
from llarva.sources.rlds_writer import write_rlds
from llarva.sources.tf_example import parse_example, serialize_example
from llarva.sources.tfds_features import decode
from llarva.sources.tfds_folder import open_tfds, scan_shard
from llarva.sources.tfrecord import masked_crc, scan_records, write_records

sys.path.insert(0, str(Path(__file__).parent))
from rlds_sets import EPISODES, SETS, build, generate, normal, picture

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
    assert [e.episode_id for e in episodes] == ["train-00000-00000", "train-00000-00001"]
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


# ---- cards that do not fit


@pytest.mark.parametrize(
    "name, right, wrong, message",
    [
        ("flat_seven", "steps/action, take: [6]", "steps/actions, take: [6]", "Did you mean 'steps/action'"),
        ("flat_seven", "steps/action, take: [6]", "steps/action, take: [7]", "wants 8 numbers .* has 7"),
        ("flat_seven", "builder: flat_seven", "builder: bridge", "'bridge', the data set is 'flat_seven'"),
        ("flat_seven", "key: steps/observation/image", "key: steps/observation/state", "not a picture"),
        ("flat_seven", "key: steps/observation/image", "key: unverified", "must be known"),
        ("flat_seven", "language: steps/language_instruction", "language: steps/language", "Unknown feature"),
        ("flat_seven", "success: steps/reward", "success: steps/success", "Unknown feature"),
        ("flat_seven", "steps/observation/state, take: [7]", "file_path, take: [7]", "a text"),
        ("doubles", "steps/action, size: 15", "steps/observation/depth, size: 15", "wants 15 numbers .* has 192"),
        ("odd_types", "steps/action, size: 1", "number, size: 1", "once per episode"),
        ("odd_types", "steps/action, size: 1", "steps/observation/words, size: 1", "type string"),
    ],
)
def test_cards_that_do_not_fit(tmp_path, name, right, wrong, message):
    assert right in SETS[name].card
    with pytest.raises(SourceError, match=message):
        episodes_of(name, tmp_path, text=SETS[name].card.replace(right, wrong, 1))


def test_wrong_choices(tmp_path):
    with pytest.raises(SourceError, match="Valid choices: train"):
        episodes_of("flat_seven", tmp_path, split="test")
    with pytest.raises(SourceError, match="Valid choices: end_effector_delta"):
        episodes_of("flat_seven", tmp_path, control_mode="joint_velocity")
    tabletop = load_card(Path(__file__).parents[1] / "data_cards" / "tabletop.md")
    with pytest.raises(SourceError, match="format 'store'"):
        RldsEpisodes(GOLDEN / "flat_seven", tabletop)


# ---- damage


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN / "flat_seven", tmp_path / "flat_seven")
    return tmp_path / "flat_seven" / "1.0.0" / "flat_seven-train.tfrecord-00000-of-00001"


def change(shard, number, **lists):
    """Write one record's lists anew; None takes one away."""
    records = list(scan_records(shard))
    features = parse_example(records[number])
    values = {}
    for name, feature in features.items():
        read = {"bytes": feature.bytes_list, "floats": feature.floats, "integers": feature.integers}[feature.kind]
        values[name] = [bytes(item) for item in read()] if feature.kind == "bytes" else read()
    values |= {name.replace("__", "/"): value for name, value in lists.items()}
    records[number] = serialize_example({name: value for name, value in values.items() if value is not None})
    write_records(shard, records)


def first_error(shard, tmp_path):
    with pytest.raises(RecordError) as caught:
        list(episodes_of("flat_seven", tmp_path, folder=tmp_path))
    assert shard.name in str(caught.value)
    read = episodes_of("flat_seven", tmp_path, folder=tmp_path, skip_bad=True)
    kept = list(read)
    assert read.report.left_out[0] == caught.value.left_out
    return caught.value.left_out, kept, read.report


NAN = np.full(21, np.nan, np.float32)


@pytest.mark.parametrize(
    "lists, reason",
    [
        ({"steps__action": NAN}, "step 0: number 0 of 'steps/action' is nan"),
        ({"steps__action": np.zeros(20, np.float32)}, "20 numbers do not make elements"),
        ({"steps__action": np.zeros(14, np.float32)}, "must hold numbers for"),
        ({"steps__action": np.zeros(21, np.int64)}, "holds integers, not floats"),
        ({"steps__action": None}, "'steps/action' is missing"),
        ({"steps__language_instruction": [b""] * 3}, "has no instruction"),
        ({"steps__language_instruction": [b"\xff"] * 3}, "not text"),
        ({"steps__language_instruction": [b"go"] * 2}, "2 values for"),
        ({"steps__observation__image": []}, "without steps"),
        ({"steps__observation__image": [b"GIF89a"] * 3}, "step 0: .*Not a PNG or JPEG"),
        ({"steps__observation__image": [b""] * 3}, "Not a PNG or JPEG"),
    ],
)
def test_wrong_values_name_file_and_record(copy, tmp_path, lists, reason):
    number = next(i for i, r in enumerate(scan_records(copy)) if len(parse_example(r)["steps/reward"].floats()) == 3)
    change(copy, number, **lists)
    left, kept, report = first_error(copy, tmp_path)
    assert left.record == f"record {number}" and len(kept) == 1 and len(report) == 1
    assert re.search(reason, left.reason), left.reason


def test_picture_of_another_size_and_half_a_picture(copy, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12)).save(buffer, "JPEG")
    pictures = [
        bytes(item) for item in parse_example(next(iter(scan_records(copy))))["steps/observation/image"].bytes_list()
    ]
    change(copy, 0, steps__observation__image=[*pictures[:-1], buffer.getvalue()])
    left, kept, _ = first_error(copy, tmp_path)
    assert left.reason == f"step {len(pictures) - 1}: picture of 12 × 20 pixels, the card says 12 × 16"
    for cut, reason in ((8, "does not decode"), (500, "Not a PNG or JPEG")):
        change(copy, 0, steps__observation__image=[*pictures[:-1], pictures[-1][:-cut]])
        left, kept, _ = first_error(copy, tmp_path)
        assert reason in left.reason and len(kept) == 1
    change(copy, 0, steps__observation__image=[*pictures[:-1], pictures[-1] + b"\0\0\0"])
    read = episodes_of("flat_seven", tmp_path, folder=tmp_path)
    assert len(list(read)) == EPISODES and sum(read.notes.values()) == 1


def test_bit_flip_costs_one_record(copy, tmp_path):
    data = bytearray(copy.read_bytes())
    data[200] ^= 4
    copy.write_bytes(data)
    left, kept, report = first_error(copy, tmp_path)
    assert "checksum" in left.reason and left.record == "record 0" and len(kept) == 1 and len(report) == 1


def test_cut_off_and_missing_shards(copy, tmp_path):
    whole = copy.read_bytes()
    for size in (0, 5, 12, 300, len(whole) - 1):
        copy.write_bytes(whole[:size])
        read = episodes_of("flat_seven", tmp_path, folder=tmp_path, skip_bad=True)
        kept = list(read)
        assert len(kept) == (1 if size == len(whole) - 1 else 0) and len(read.report) >= 1
        assert copy.name in read.report.table()
    copy.unlink()
    left, kept, report = first_error(copy, tmp_path)
    assert "missing" in left.reason and "2 records" in left.reason and not kept and len(report) == 1
    copy.mkdir()
    assert "missing" in first_error(copy, tmp_path)[0].reason


def test_more_or_fewer_records_than_promised(copy, tmp_path):
    records = list(scan_records(copy))
    write_records(copy, [*records, records[0]])
    left, kept, _ = first_error(copy, tmp_path)
    assert "holds 3 records, dataset_info.json says 2" in left.reason and len(kept) == 3
    write_records(copy, records[:1])
    left, kept, _ = first_error(copy, tmp_path)
    assert left.record == "record 1" and "says 2 records" in left.reason and len(kept) == 1


def test_hostile_shards_neither_hang_nor_fill_the_memory(copy, tmp_path):
    def framed(length, data=b""):
        header = struct.pack("<Q", length)
        return header + struct.pack("<I", masked_crc(header)) + data + struct.pack("<I", masked_crc(data))

    deep = b""
    for _ in range(2000):
        deep = b"\x0a" + bytes(_varint(len(deep))) + deep
    for content in (
        framed(2**63 - 1),
        framed(2**31 - 2),
        framed(len(deep), deep),
        framed(7, b"\x0a\xff\xff\xff\xff\xff\x7f"),
        framed(11, b"\xff" * 11),
        b"\0" * 1000,
        np.random.default_rng(0).bytes(10_000),
    ):
        copy.write_bytes(content)
        tracemalloc.start()
        read = episodes_of("flat_seven", tmp_path, folder=tmp_path, skip_bad=True)
        assert list(read) == [] and len(read.report) >= 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6


def _varint(value):
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


def test_memory_does_not_grow_with_the_data(copy, tmp_path):
    """A hundred times the records, and the peak stays that of a few."""
    records = list(scan_records(copy))
    info = copy.with_name("dataset_info.json")

    def peak(times):
        write_records(copy, (record for _ in range(times) for record in records))
        content = json.loads(info.read_text())
        content["splits"][0]["shardLengths"] = [str(2 * times)]
        info.write_text(json.dumps(content))
        read = episodes_of("flat_seven", tmp_path, folder=tmp_path)
        tracemalloc.start()
        count = sum(1 for _ in read)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 2 * times
        return top

    peak(1)  # loads what is loaded once
    assert peak(100) < 1.3 * peak(1) + 100_000


def test_reader_needs_no_tensorflow(tmp_path):
    code = (
        "import sys\nfrom llarva.cards import load_card\nfrom llarva.sources.rlds import RldsEpisodes\n"
        f"list(RldsEpisodes({str(GOLDEN / 'scalars')!r}, load_card({str(tmp_path / 'scalars.md')!r})))\n"
        "assert not {'tensorflow', 'tensorflow_datasets', 'google.protobuf'} & set(sys.modules)"
    )
    card_of("scalars", tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True)
