"""Episode stores that were cut off, changed or never were stores: every error names the place."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_samples import make_episode, write

from llarva.episodes.records import EpisodeError, encode_image
from llarva.episodes.store import EpisodeStore, EpisodeWriter, verify_store


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
