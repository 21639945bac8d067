"""Rows from episodes: what a row says, determinism, resuming, refusals."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from llarva.cameras import look_at, project
from llarva.episodes.records import Episode, EpisodeError, Step, actions_in, encode_image
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.errors import LlarvaError
from llarva.instructions.dataset import RowStore, build_rows, fit_numbers, write_rows
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, DecimalNumbers
from llarva.instructions.rows import BuildConfig, RowError, Tally, action_chunks, episode_rows
from llarva.kinematics import forward_kinematics, quaternion_xyzw
from llarva.robots import get_robot

LENS = np.array([[175.0, 0, 32], [0, 175, 24], [0, 0, 1]])
PLAIN = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 3, 2, 4, (48, 64))
MODES = ("end_effector_delta", "joint_velocity")


def episode(seed, length=12, every=1, name=None, robot="panda", **changes):
    """A wave of the arm, seen by a camera that stands still."""
    rng = np.random.default_rng(seed)
    swing = rng.uniform(0.1, 0.4, 7) * np.sin(np.linspace(0, 2, length))[:, None]
    joints = (np.array(get_robot("panda").home) + swing).astype(np.float32)
    position, rotation = forward_kinematics(get_robot("panda"), joints)
    speed = np.diff(joints, axis=0) * 20
    steps = []
    for t in range(length):
        kept = t % every == 0
        steps.append(
            Step(
                state=joints[t],
                gripper_open=float(t < 6),
                image=encode_image(np.full((48, 64, 3), t, np.uint8)) if kept else None,
                action=np.append(speed[t], t < 5).astype(np.float32) if t < length - 1 else None,
                end_effector_position=position[t].astype(np.float32),
                end_effector_quaternion_xyzw=quaternion_xyzw(rotation[t]).astype(np.float32),
                camera_intrinsics=LENS,
                camera_pose=look_at((2.5, 0.0, 0.9), (0.0, 0.0, 0.35)),
                object_points={"lamp": (3.5, 4.0), "desk": (9.0, 9.0)} if kept else {},
                segmentation=encode_image(np.zeros((32, 32), np.uint8)) if kept else None,
            )
        )
    made = Episode(
        name or f"wave-{seed}",
        "toy",
        robot,
        "joint_velocity",
        ("wave", "say hello", "greet"),
        "wave",
        3,
        seed,
        True,
        tuple(steps),
        object_names=("wall", "lamp"),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def store(tmp_path):
    with EpisodeWriter(tmp_path / "episodes", "toy", episodes_per_shard=2) as writer:
        for seed in range(5):
            writer.write(episode(seed))
    return EpisodeStore(tmp_path / "episodes")


def test_a_row_says_what_the_episode_says():
    made = episode(0)
    rows = episode_rows(made, BuildConfig(PLAIN))
    assert [row["step"] for row in rows] == list(range(11))  # the last step has no action
    for row in rows:
        t, mode = row["step"], row["control_mode"]
        back = PLAIN.parse(row["answer"], mode)
        wanted = actions_in(made, mode)[[t, min(t + 1, 10)]]
        np.testing.assert_allclose(back.actions, wanted, atol=5.1e-5)
        for point, step in ((back.trace[0], made.steps[t]), (back.trace[-1], made.steps[-1])):
            pixel, _ = project(step.end_effector_position, LENS, step.camera_pose)
            np.testing.assert_allclose(point, np.clip(pixel, 0, (64, 48)), atol=0.51)
        asked = PLAIN.parse_prompt(row["prompt"])
        assert asked.instruction in made.instructions and asked.control_mode == mode
        if mode == "joint_velocity":
            shown = [
                np.append(made.steps[max(0, s)].state, made.steps[max(0, s)].gripper_open) for s in (t - 2, t - 1, t)
            ]
            np.testing.assert_allclose(asked.states, shown, atol=5.1e-5)
        assert row["image"] == made.steps[t].image and row["segmentation"] == made.steps[t].segmentation
        assert (row["id"], row["variation"], row["task"]) == (f"wave-0/{t:05d}", 3, "wave")
        assert row["object_names"] == ["wall", "lamp", "desk"]  # the segmentation's names first
        assert row["object_points"] == [[], [3.5, 4.0], [9.0, 9.0]]


def test_dropping_frames_changes_no_other_row():
    config = BuildConfig(PLAIN, trace_share=0.5)
    whole, thin = episode_rows(episode(1), config), episode_rows(episode(1, every=3), config)
    assert thin == [row for row in whole if row["step"] % 3 == 0]


def test_shares_are_kept_and_phrasings_vary():
    config = BuildConfig(PLAIN, control_modes={"joint_velocity": 1, "end_effector_delta": 3}, trace_share=0.25)
    rows = [row for seed in range(40) for row in episode_rows(episode(seed), config)]
    asked = [PLAIN.parse_prompt(row["prompt"]) for row in rows]
    assert 0.68 < np.mean([a.control_mode == "end_effector_delta" for a in asked]) < 0.82
    assert 0.18 < np.mean([a.with_trace for a in asked]) < 0.32
    assert {a.instruction for a in asked} == {"wave", "say hello", "greet"}
    only = [row for seed in range(5) for row in episode_rows(episode(seed), BuildConfig(PLAIN, phrasings="first"))]
    assert {PLAIN.parse_prompt(row["prompt"]).instruction for row in only} == {"wave"}


def test_a_chunk_past_the_end_repeats_the_last_action():
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert action_chunks(actions, 4)[:, :, 0].tolist() == [[0, 2, 4, 4], [2, 4, 4, 4], [4, 4, 4, 4]]
    assert action_chunks(actions, 1).shape == (3, 1, 2)


def test_a_moving_camera_projects_the_future_into_the_picture_of_now():
    made = episode(0)
    steps = [
        dataclasses.replace(step, camera_pose=look_at((2.5, 0.1 * t, 0.9), (0.0, 0.1 * t, 0.35)))
        for t, step in enumerate(made.steps)
    ]
    moving = dataclasses.replace(made, steps=tuple(steps))
    row = episode_rows(moving, BuildConfig(PLAIN))[4]
    pixel, _ = project(steps[-1].end_effector_position, LENS, steps[4].camera_pose)
    back = PLAIN.parse(row["answer"], row["control_mode"])
    np.testing.assert_allclose(back.trace[-1], np.clip(pixel, 0, (64, 48)), atol=0.51)


def test_clipping_is_counted_per_field():
    numbers = BinNumbers.fit(
        {
            "action:joint_velocity": np.full((9, 8), 0.0),
            "trace": [[0, 0], [64, 48.0]],
            "state:joint_velocity": np.random.default_rng(0).uniform(-4, 4, (99, 8)),
        }
    )
    form = dataclasses.replace(PLAIN, numbers=numbers)
    tally = Tally(form)
    episode_rows(episode(0), BuildConfig(form, control_modes={"joint_velocity": 1}), tally)
    clipped, total = tally.clipped["action:joint_velocity"]
    assert total == 11 * 2 * 8 and 0.5 * total < clipped <= total
    assert tally.clipped["state:joint_velocity"][0] == 0


def test_broken_episodes_are_refused_by_name():
    made = episode(7)
    blind = dataclasses.replace(made, steps=tuple(dataclasses.replace(s, camera_pose=None) for s in made.steps))
    with pytest.raises(LlarvaError, match="wave-7"):
        episode_rows(blind, BuildConfig(PLAIN))
    with pytest.raises(RowError, match=r"wave-7.*\(48, 64\).*\(32, 32\)"):
        episode_rows(made, BuildConfig(dataclasses.replace(PLAIN, image_size=(32, 32))))
    with pytest.raises(RowError, match=r"wave-7.*without '<' and '>', not 'wave <left>'"):
        episode_rows(dataclasses.replace(made, instructions=("wave <left>",)), BuildConfig(PLAIN))
    with pytest.raises(RowError, match="sawyer"):
        episode_rows(dataclasses.replace(made, robot="sawyer"), BuildConfig(PLAIN))
    assert episode_rows(dataclasses.replace(made, steps=made.steps[:1]), BuildConfig(PLAIN)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"control_modes": {}},
        {"control_modes": {"joint_velocity": -1}},
        {"trace_share": 2},
        {"control_modes": {"telepathy": 1}},
        {"phrasings": "last"},
        {"episodes_per_shard": 0},
    ],
)
def test_impossible_configurations_are_refused(change):
    with pytest.raises(LlarvaError):
        BuildConfig(PLAIN, **change)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def test_same_input_same_bytes_and_a_second_build_does_nothing(store, tmp_path):
    config = BuildConfig(PLAIN, episodes_per_shard=2)
    first = build_rows(store, config, tmp_path / "a")
    build_rows([store], config, tmp_path / "b")
    assert list(contents(tmp_path / "a")) == [f"part-0000{k}.parquet" for k in range(3)]
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and first.rows == 55 and first.shards_written == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    again = build_rows(store, config, tmp_path / "a")
    assert again.shards_written == 0 and (again.rows, again.clipped) == (first.rows, first.clipped)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_build_ends_in_the_same_bytes(tmp_path, monkeypatch, stop):
    store, config, calls = [], BuildConfig(PLAIN, episodes_per_shard=2), []
    for name, seeds in (("few", range(3)), ("more", range(3, 6))):
        with EpisodeWriter(tmp_path / name, "toy") as writer:
            for seed in seeds:
                writer.write(episode(seed))
        store.append(EpisodeStore(tmp_path / name))
    build_rows(store, config, tmp_path / "whole")
    write = pq.ParquetWriter.write_table

    def interrupted(writer, table, **options):
        write(writer, table, **options)
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(table)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_rows(store, config, tmp_path / "cut")
    monkeypatch.undo()
    if stop:
        with pytest.raises(RowError, match="unfinished"):
            RowStore(tmp_path / "cut")
    assert build_rows(store, config, tmp_path / "cut").shards_written == 3 - stop
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert RowStore(tmp_path / "cut").fingerprint() == RowStore(tmp_path / "whole").fingerprint()


def test_another_setting_or_another_store_is_never_mixed_in(store, tmp_path):
    build_rows(store, BuildConfig(PLAIN), tmp_path / "rows")
    with pytest.raises(RowError, match="another configuration"):
        build_rows(store, BuildConfig(PLAIN, seed=1), tmp_path / "rows")
    with EpisodeWriter(tmp_path / "other", "toy") as writer:
        writer.write(episode(99))
    with pytest.raises(RowError, match="another set of episodes"):
        build_rows(EpisodeStore(tmp_path / "other"), BuildConfig(PLAIN), tmp_path / "rows")
    with pytest.raises(RowError, match="in more than one store, '.*Label the stores one by one"):
        build_rows([store, store], BuildConfig(PLAIN), tmp_path / "twice")
    both = build_rows(
        [store, EpisodeStore(tmp_path / "other")], BuildConfig(PLAIN, episodes_per_shard=4), tmp_path / "both"
    )
    assert (both.episodes, both.rows, both.shards_written) == (6, 66, 2)


def test_reading_damaged_row_stores(store, tmp_path):
    build_rows(store, BuildConfig(PLAIN), tmp_path / "rows")
    assert len(list(RowStore(tmp_path / "rows"))) == len(RowStore(tmp_path / "rows")) == 55
    shard = tmp_path / "rows/data/part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(RowError, match="part-00000.parquet cannot be read"):
        list(RowStore(tmp_path / "rows"))
    (tmp_path / "rows/store.json").write_text("{")
    with pytest.raises(RowError, match="store.json"):
        RowStore(tmp_path / "rows")
    with pytest.raises(RowError, match="cannot be read"):
        RowStore(tmp_path / "nothing")


def test_rows_open_with_datasets_alone(store, tmp_path):
    import datasets

    build_rows(store, BuildConfig(PLAIN, episodes_per_shard=2), tmp_path / "rows")
    rows = datasets.load_dataset(str(tmp_path / "rows"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 55 and list(RowStore(tmp_path / "rows")) == list(rows)
    found = json.loads((tmp_path / "rows/store.json").read_text())["format"]
    assert InstructionFormat.from_json(found) == PLAIN


def test_ranges_cover_the_data_and_do_not_depend_on_sample_order(store):
    numbers = fit_numbers(store, MODES, (48, 64), margin=0.1)
    assert numbers.ranges["trace"].upper == (64.0, 48.0)
    for mode in MODES:
        for name in (f"state:{mode}", f"action:{mode}"):
            found = numbers.range_of(name)
            assert (found.lower[-1], found.upper[-1]) == (0.0, 1.0)
        actions = np.concatenate([actions_in(made, mode) for made in store])
        assert numbers.clipped(actions, f"action:{mode}") <= 0.02 * actions.size
    small = fit_numbers(store, MODES, (48, 64), sample=7)
    assert (
        small
        == fit_numbers([store], MODES, (48, 64), sample=7)
        != fit_numbers(store, MODES, (48, 64), sample=7, seed=1)
    )
    with pytest.raises(RowError, match="without episodes"):
        fit_numbers([], MODES, (48, 64))


def test_writing_rows_from_elsewhere(tmp_path):
    rows = episode_rows(episode(0), BuildConfig(PLAIN))
    assert write_rows(rows, PLAIN, tmp_path / "rows", {"made": "by hand"}, rows_per_shard=4) == 11
    assert list(RowStore(tmp_path / "rows")) == rows
    with pytest.raises(RowError, match="already holds rows"):
        write_rows(rows, PLAIN, tmp_path / "rows", {})


def test_missing_commands_are_the_sources_own_error():
    made = dataclasses.replace(episode(0), control_mode="end_effector_delta")
    with pytest.raises(EpisodeError, match="joint_velocity_command"):
        episode_rows(made, BuildConfig(PLAIN, control_modes={"joint_velocity": 1}))


WORDS = ("instructions", "object_names")


def without_words(folder):
    """Make a store look as if it had been built before the index listed words."""
    index = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({key: index[key] for key in index if key not in WORDS}))


@pytest.mark.parametrize("phrasings", ["any", "first"])
def test_the_index_lists_the_words_of_the_rows(store, tmp_path, phrasings):
    config = BuildConfig(PLAIN, phrasings=phrasings, episodes_per_shard=2)
    build_rows(store, config, tmp_path / "rows")
    listed = RowStore(tmp_path / "rows")
    asked = {PLAIN.parse_prompt(row["prompt"]).instruction for row in listed}
    assert listed.instructions == tuple(sorted(asked)) and (len(asked) == 1) == (phrasings == "first")
    assert listed.object_names == ("desk", "lamp", "wall")
    without_words(tmp_path / "rows")
    older = RowStore(tmp_path / "rows")
    assert (older.instructions, older.object_names) == (listed.instructions, listed.object_names)
    assert older.fingerprint() == listed.fingerprint()


def test_an_older_unfinished_store_is_completed_with_all_words(store, tmp_path):
    folder, config = tmp_path / "rows", BuildConfig(PLAIN, episodes_per_shard=2)
    build_rows(store, config, folder)
    whole = (folder / "store.json").read_bytes()
    without_words(folder)
    (folder / "data/part-00001.parquet").unlink()
    assert build_rows(store, config, folder).shards_written == 1  # the lost one
    assert (folder / "store.json").read_bytes() == whole


def test_words_of_rows_from_elsewhere(tmp_path):
    rows = episode_rows(episode(0), BuildConfig(PLAIN))
    write_rows(rows, PLAIN, tmp_path / "rows", {}, rows_per_shard=4)
    assert set(RowStore(tmp_path / "rows").instructions) <= set(episode(0).instructions)
    with pytest.raises(RowError, match="wave-0/00003"):
        write_rows([*rows[:3], rows[3] | {"prompt": "What now?"}], PLAIN, tmp_path / "bad", {})
