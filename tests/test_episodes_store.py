"""Episode stores: round trips, same bytes, resuming, and what the writer refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from episode_samples import make_episode, tree, with_step, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llarva.episodes.records import EpisodeError, decode_image, episodes_equal
from llarva.episodes.shards import ShardFile, give_name, index_shard, recover, write_atomically
from llarva.episodes.store import EpisodeStore, EpisodeWriter, verify_store
from llarva.episodes.table import SCHEMA, episode_from_table, episode_table


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


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_resume_after_a_note_that_breaks_off(tmp_path, cut):
    """Killed while a shard was noted: the store reads up to there, and the shard itself is not lost."""
    episodes = [make_episode(seed) for seed in range(8)]
    write(tmp_path / "whole", episodes, episodes_per_shard=3)
    writer = EpisodeWriter(tmp_path / "killed", "toy", episodes_per_shard=3)
    for episode in episodes[:7]:
        writer.write(episode)
    del writer  # never closed
    notes = tmp_path / "killed" / "shards.jsonl"
    notes.write_bytes(notes.read_bytes()[: -cut or None])
    known = episodes[: 3 if cut else 6]
    assert EpisodeStore(tmp_path / "killed").ids == tuple(e.episode_id for e in known)
    verify_store(tmp_path / "killed")
    with EpisodeWriter(tmp_path / "killed", "toy", episodes_per_shard=3, resume=True) as writer:
        assert len(writer.written_ids) == 6
        for episode in episodes[6:]:
            writer.write(episode)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole") and not notes.exists()


def test_notes_that_make_no_sense_are_named(tmp_path):
    write(tmp_path / "s", [make_episode()])
    for text in (b"{\n", b"[]\n", b'{"file": "part-00000.parquet"}\n', b"\xff\n"):
        (tmp_path / "s/shards.jsonl").write_bytes(text)
        with pytest.raises(EpisodeError, match=r"store\.json|shards\.jsonl"):
            EpisodeStore(tmp_path / "s")


def test_the_cost_of_the_index_grows_with_the_episodes_only(tmp_path, monkeypatch):
    """The whole index is written when a store is opened and closed, however many shards come in between."""
    written = []

    def count(hidden, path):
        written.append(path.name)
        give_name(hidden, path)

    monkeypatch.setattr("llarva.episodes.shards.give_name", count)
    for shards in (2, 9):
        write(tmp_path / str(shards), [make_episode(seed) for seed in range(shards)], episodes_per_shard=1)
    assert written.count("store.json") == 4 and written.count("README.md") == 2


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
