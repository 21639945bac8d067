"""Episode records and the episode store."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llarva.episodes.records import (
    Episode,
    EpisodeError,
    Step,
    actions_in,
    check_episode,
    decode_image,
    decode_mask,
    encode_image,
    episodes_equal,
    image_size,
)
from llarva.episodes.shards import ShardFile, index_shard, recover, write_atomically
from llarva.episodes.store import EpisodeStore, EpisodeWriter, verify_store
from llarva.episodes.table import SCHEMA, episode_from_table, episode_table
from llarva.kinematics import quaternion_xyzw, rotation_matrix
from llarva.robots import RobotError


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


def write(folder, episodes, **options):
    with EpisodeWriter(folder, "toy", **options) as writer:
        for episode in episodes:
            writer.write(episode)
    return EpisodeStore(folder)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- records


def test_images_round_trip():
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(image)), image)
    assert np.array_equal(decode_mask(encode_image(image[..., 0])), image[..., 0])
    assert image_size(encode_image(image)) == (5, 7)
    assert encode_image(image) == encode_image(image.copy())


@pytest.mark.parametrize("image", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3)), np.zeros(3, np.uint8)])
def test_other_images_are_refused(image):
    with pytest.raises(EpisodeError, match="uint8"):
        encode_image(image)


@given(st.binary(max_size=200), st.integers(0, 42))
@settings(max_examples=60, deadline=None)
def test_damaged_images_raise_one_kind_of_error(noise, cut):
    whole = encode_image(np.zeros((4, 4, 3), np.uint8))
    for data in (noise, whole[:cut], whole[:20] + noise):
        with pytest.raises(EpisodeError):
            decode_image(data)


def test_image_bombs_are_refused():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
    with pytest.raises(EpisodeError):
        decode_image(buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="TIFF")
    with pytest.raises(EpisodeError, match="PNG or JPEG"):
        decode_image(buffer.getvalue())


def with_step(episode, t, **changes):
    steps = list(episode.steps)
    steps[t] = replace(steps[t], **changes)
    return replace(episode, steps=tuple(steps))


@pytest.mark.parametrize(
    "t, changes, message",
    [
        (1, {"state": np.zeros(6, np.float32)}, "step 1: state"),
        (0, {"state": np.zeros((1, 7), np.float32)}, "step 0: state"),
        (1, {"state": np.zeros(7, np.int64)}, "float32"),
        (2, {"state": np.full(7, np.nan, np.float32)}, "not finite"),
        (1, {"gripper_open": 1.5}, r"gripper_open must be in \[0, 1\]"),
        (1, {"gripper_open": float("nan")}, "gripper_open"),
        (2, {"action": None}, "step 2: all steps but the last"),
        (4, {"action": np.zeros(8, np.float32)}, "the last step has no action"),
        (1, {"action": np.zeros(7, np.float32)}, "action must have shape"),
        (1, {"action": np.full(8, np.inf, np.float32)}, "not finite"),
        (3, {"end_effector_quaternion_xyzw": np.zeros(4, np.float32)}, "length 1"),
        (3, {"camera_pose": np.eye(3)}, r"camera_pose must have shape \(4, 4\)"),
        (3, {"joint_velocity_command": np.zeros((7, 1))}, "joint_velocity_command"),
    ],
)
def test_rules_of_the_record(t, changes, message):
    with pytest.raises(EpisodeError, match=message):
        check_episode(with_step(make_episode(), t, **changes))


@pytest.mark.parametrize("changes", [{"steps": ()}, {"episode_id": ""}, {"instructions": ()}])
def test_empty_episodes_are_refused(changes):
    with pytest.raises(EpisodeError, match="at least one"):
        check_episode(replace(make_episode(), **changes))


def test_equality_sees_every_field():
    episode = make_episode()
    assert episodes_equal(episode, make_episode())
    assert not episodes_equal(episode, replace(episode, success=True))
    assert not episodes_equal(episode, replace(episode, steps=episode.steps[:-1]))
    assert not episodes_equal(episode, with_step(episode, 2, object_points={}))
    assert not episodes_equal(episode, with_step(episode, 2, state=episode.steps[2].state.astype(np.float64)))


def test_actions_in_each_mode():
    episode = make_episode()
    own = actions_in(episode, "joint_velocity")
    assert own.dtype == np.float32 and np.array_equal(own, [step.action for step in episode.steps[:-1]])
    other = actions_in(replace(episode, control_mode="end_effector_delta"), "joint_velocity")
    assert np.array_equal(other[:, :7], [step.joint_velocity_command for step in episode.steps[:-1]])
    assert np.array_equal(other[:, 7], own[:, 7])


def test_measured_deltas_lead_from_pose_to_pose():
    from llarva.kinematics import matrix_from_quaternion_xyzw

    episode = make_episode()
    deltas = actions_in(episode, "end_effector_delta")
    for delta, now, then in zip(deltas, episode.steps, episode.steps[1:], strict=False):
        assert np.allclose(now.end_effector_position + delta[:3], then.end_effector_position, atol=1e-5)
        turned = rotation_matrix(delta[3:6]) @ matrix_from_quaternion_xyzw(now.end_effector_quaternion_xyzw)
        assert np.allclose(turned, matrix_from_quaternion_xyzw(then.end_effector_quaternion_xyzw), atol=1e-5)


def test_gripper_command_without_actions_is_what_happened_next():
    episode = make_episode(actions=False)
    grip = actions_in(replace(episode, control_mode="end_effector_delta"), "joint_velocity")[:, -1]
    assert np.array_equal(grip, [float(step.gripper_open > 0.5) for step in episode.steps[1:]])


def test_actions_that_cannot_be_had():
    bare = make_episode(actions=False, poses=False)
    for mode in ("joint_velocity", "end_effector_delta"):
        with pytest.raises(EpisodeError, match="step 0"):
            actions_in(bare, mode)
    with pytest.raises(RobotError, match="control mode"):
        actions_in(bare, "nonsense")
    assert actions_in(make_episode(length=1), "joint_velocity").shape == (0, 8)
    assert actions_in(make_episode(length=1), "end_effector_delta").shape == (0, 7)


# ---------------------------------------------------------------- store


@given(
    st.lists(
        st.builds(
            make_episode,
            seed=st.integers(0, 9999),
            length=st.integers(1, 6),
            image_every=st.integers(0, 3),
            actions=st.booleans(),
            poses=st.booleans(),
        ),
        max_size=5,
        unique_by=lambda episode: episode.episode_id,
    ),
    st.integers(1, 4),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_store_round_trip(tmp_path, episodes, per_shard):
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    store = write(folder, episodes, episodes_per_shard=per_shard)
    assert len(store) == len(episodes) and store.ids == tuple(e.episode_id for e in episodes)
    assert all(episodes_equal(a, b) for a, b in zip(store, episodes, strict=True))
    assert all(episodes_equal(store[i], episodes[i]) for i in range(len(episodes)))
    for count in (1, 2, 3):
        ids = [e.episode_id for index in range(count) for e in store.shard(index, count)]
        assert sorted(ids) == sorted(store.ids)
    verify_store(folder)


def test_same_episodes_same_bytes(tmp_path):
    episodes = [make_episode(seed) for seed in range(7)]
    a = write(tmp_path / "a", episodes, episodes_per_shard=3)
    b = write(tmp_path / "b", episodes, episodes_per_shard=3)
    assert tree(a.folder) == tree(b.folder) and a.fingerprint() == b.fingerprint()
    c = write(tmp_path / "c", episodes[:6] + [make_episode(99)], episodes_per_shard=3)
    assert c.fingerprint() != a.fingerprint()


@pytest.mark.parametrize("stops", [(2,), (3,), (4, 5), (1, 1, 6)])
def test_resumed_stores_equal_whole_ones(tmp_path, stops):
    episodes = [make_episode(seed) for seed in range(8)]
    write(tmp_path / "whole", episodes, episodes_per_shard=3)
    done = 0
    for stop in (*stops, 8):
        with EpisodeWriter(tmp_path / "parts", "toy", episodes_per_shard=3, resume=True) as writer:
            assert writer.written_ids == tuple(e.episode_id for e in episodes[:done])
            for episode in episodes[done:stop]:
                writer.write(episode)
        done = stop
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_a_killed_writer_loses_only_the_open_shard(tmp_path):
    episodes = [make_episode(seed) for seed in range(8)]
    write(tmp_path / "whole", episodes, episodes_per_shard=3)
    writer = EpisodeWriter(tmp_path / "killed", "toy", episodes_per_shard=3)
    for episode in episodes[:5]:
        writer.write(episode)
    del writer  # never closed
    assert EpisodeStore(tmp_path / "killed").ids == tuple(e.episode_id for e in episodes[:3])
    with EpisodeWriter(tmp_path / "killed", "toy", episodes_per_shard=3, resume=True) as writer:
        for episode in episodes:
            if episode.episode_id not in writer.written_ids:
                writer.write(episode)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_resume_between_shard_and_index(tmp_path):
    """The shard got its name, the power went, the index does not know it yet."""
    episodes = [make_episode(seed) for seed in range(6)]
    write(tmp_path / "s", episodes, episodes_per_shard=3)
    whole = tree(tmp_path / "s")
    index = json.loads((tmp_path / "s/store.json").read_text())
    index["shards"].pop()
    (tmp_path / "s/store.json").write_text(json.dumps(index))
    with EpisodeWriter(tmp_path / "s", "toy", episodes_per_shard=3, resume=True) as writer:
        assert len(writer.written_ids) == 6
    assert tree(tmp_path / "s") == whole
    (tmp_path / "s/store.json").unlink()
    with EpisodeWriter(tmp_path / "s", "toy", episodes_per_shard=3, resume=True):
        pass
    assert tree(tmp_path / "s") == whole


def test_writer_refuses(tmp_path):
    episode = make_episode()
    write(tmp_path / "s", [episode])
    with pytest.raises(EpisodeError, match="resume=True"):
        EpisodeWriter(tmp_path / "s", "toy")
    with pytest.raises(EpisodeError, match="'toy'"):
        EpisodeWriter(tmp_path / "s", "other", resume=True)
    with pytest.raises(EpisodeError, match="at least 1"):
        EpisodeWriter(tmp_path / "t", "toy", episodes_per_shard=0)
    with EpisodeWriter(tmp_path / "s", "toy", resume=True) as writer:
        with pytest.raises(EpisodeError, match="already in"):
            writer.write(episode)
        with pytest.raises(EpisodeError, match="'other'"):
            writer.write(replace(episode, episode_id="new", dataset="other"))
        with pytest.raises(EpisodeError, match="gripper_open"):
            writer.write(with_step(replace(episode, episode_id="new"), 1, gripper_open=7.0))


def test_empty_store(tmp_path):
    store = write(tmp_path / "s", [])
    assert len(store) == 0 and list(store) == [] and store.info["episodes"] == 0
    with pytest.raises(IndexError):
        store[0]


def test_shard_bounds(tmp_path):
    store = write(tmp_path / "s", [make_episode()])
    for index, count in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(EpisodeError, match="Shard index"):
            list(store.shard(index, count))


def test_datasets_reads_it_alone(tmp_path):
    import datasets

    episodes = [make_episode(seed) for seed in range(4)]
    store = write(tmp_path / "s", episodes, episodes_per_shard=2)
    rows = datasets.load_dataset(str(store.folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == store.info["steps"] == 20
    assert [(r["episode_id"], r["step"]) for r in rows] == [(e.episode_id, t) for e in episodes for t in range(5)]
    assert np.array_equal(np.asarray(rows[0]["image"]), decode_image(episodes[0].steps[0].image))
    assert rows[1]["image"] is None and rows[4]["action"] is None and rows[0]["success"] is None
    stream = datasets.load_dataset(str(store.folder), split="train", streaming=True)
    assert [row["step"] for row in stream] == [row["step"] for row in rows]


@pytest.fixture
def damaged(tmp_path):
    """A good store of 6 episodes in 2 shards, and a way to rewrite its second shard behind the index's back."""
    store = write(tmp_path / "s", [make_episode(seed) for seed in range(6)], episodes_per_shard=3)
    path = store.folder / "data/part-00001.parquet"

    def rewrite(change, group=1):
        file = pq.ParquetFile(path)
        tables = [file.read_row_group(g) for g in range(3)]
        tables[group] = change(tables[group])
        schema = tables[group].schema
        with pq.ParquetWriter(path, schema) as writer:
            for table in tables:
                writer.write_table(table.select(schema.names))
        index = json.loads((store.folder / "store.json").read_text())
        index["shards"][1]["bytes"] = path.stat().st_size
        (store.folder / "store.json").write_text(json.dumps(index))

    return store.folder, path, rewrite


def replaced(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_shard(damaged, keep):
    folder, path, _ = damaged
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EpisodeError, match=r"part-00001\.parquet.*cut off or changed"):
        list(EpisodeStore(folder))
    assert EpisodeStore(folder)[0].episode_id == "e0000"
    with pytest.raises(EpisodeError, match=r"part-00001\.parquet: not a whole Parquet file"):
        EpisodeWriter(folder, "toy", resume=True)


def test_missing_shard(damaged):
    folder, path, _ = damaged
    path.unlink()
    for attempt in (lambda: list(EpisodeStore(folder)), lambda: EpisodeWriter(folder, "toy", resume=True)):
        with pytest.raises(EpisodeError, match=r"part-00001\.parquet: the shard is missing"):
            attempt()


def test_missing_first_shard(damaged):
    folder, path, _ = damaged
    path.with_name("part-00000.parquet").unlink()
    with pytest.raises(EpisodeError, match="part-00000"):
        EpisodeWriter(folder, "toy", resume=True)


def test_missing_column(damaged):
    folder, _, rewrite = damaged
    rewrite(lambda table: table.drop_columns(["action"]))
    with pytest.raises(EpisodeError, match=r"part-00001\.parquet: column 'action' is missing"):
        list(EpisodeStore(folder))


def test_rows_out_of_order(damaged):
    folder, _, rewrite = damaged
    rewrite(lambda table: table.take([0, 2, 1, 3, 4]))
    with pytest.raises(EpisodeError, match=r"part-00001\.parquet, row 6: .*wanted step 1 .*found step 2"):
        list(EpisodeStore(folder))


def test_rows_of_another_episode(damaged):
    folder, _, rewrite = damaged
    rewrite(lambda table: replaced(table, "episode_id", 3, "zzz"))
    with pytest.raises(EpisodeError, match=r"row 8: .*'zzz'"):
        list(EpisodeStore(folder))


def test_rows_cut_from_the_end(damaged):
    folder, _, rewrite = damaged
    rewrite(lambda table: table.slice(0, 3))
    with pytest.raises(EpisodeError, match=r"row 5: 'e0004' has 3 of 5 rows"):
        list(EpisodeStore(folder))


@pytest.mark.parametrize("data", [b"", b"not an image", encode_image(np.zeros((4, 4, 3), np.uint8))[:-6]])
def test_undecodable_image(damaged, data):
    folder, _, rewrite = damaged
    rewrite(lambda table: replaced(table, "image", 2, {"bytes": data, "path": None}))
    with pytest.raises(EpisodeError, match=r"part-00001\.parquet, row 7: image"):
        list(EpisodeStore(folder))


def test_image_damaged_inside_is_found_by_verify(damaged):
    folder, path, rewrite = damaged
    good = encode_image(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8))
    rewrite(lambda t: replaced(t, "image", 2, {"bytes": good[:60] + b"????" + good[64:], "path": None}))
    list(EpisodeStore(folder))
    with pytest.raises(EpisodeError, match="hash"):
        verify_store(folder)
    index = json.loads((folder / "store.json").read_text())
    import hashlib

    index["shards"][1]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "store.json").write_text(json.dumps(index))
    with pytest.raises(EpisodeError, match=r"part-00001\.parquet, row 7: Image"):
        verify_store(folder)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("camera_pose", [1.0] * 15, "camera_pose has 15 numbers"),
        ("state", None, "state and gripper_open"),
        ("object_points", [1.0], "two for each"),
    ],
)
def test_impossible_cells(damaged, column, value, message):
    folder, _, rewrite = damaged
    rewrite(lambda table: replaced(table, column, 2, value))
    with pytest.raises(EpisodeError, match=f"row 7: .*{message}"):
        list(EpisodeStore(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "shards": [{}]}'])
def test_damaged_index(damaged, text):
    folder, _, _ = damaged
    (folder / "store.json").write_text(text)
    with pytest.raises(EpisodeError, match=r"store\.json"):
        EpisodeStore(folder)


def test_not_a_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(EpisodeError, match="not an episode store"):
            EpisodeStore(folder)


def test_table_alone():
    episode = make_episode()
    table = episode_table(episode)
    assert table.schema.equals(SCHEMA) and episodes_equal(episode_from_table(table), episode)
    with pytest.raises(EpisodeError, match="without rows"):
        episode_from_table(table.slice(0, 0))


def test_a_shard_under_way_has_no_name(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shard = ShardFile(data / "part-00000.parquet")
    shard.add(episode_table(make_episode(1)), "e0001")
    assert recover(tmp_path, "toy") == []
    entry = shard.finish()
    assert recover(tmp_path, "toy") == [entry] == [index_shard(data / "part-00000.parquet")]


def test_a_failed_write_keeps_what_was_there(tmp_path):
    note = tmp_path / "note"
    write_atomically(note, b"first")
    with pytest.raises(TypeError):
        write_atomically(note, "text is not bytes")  # type: ignore[arg-type]
    assert note.read_bytes() == b"first"
