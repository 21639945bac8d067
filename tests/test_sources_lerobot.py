"""LeRobot data sets that `lerobot` wrote: what is read from them, and what happens to damaged ones."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llarva.episodes.records import decode_image
from llarva.sources.lerobot import LerobotEpisodes
from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError
from llarva.sources.video import VideoReader

sys.path.insert(0, str(Path(__file__).parent))
from lerobot_sets import CARD, FRONT, GOLDEN, LENGTHS, TASKS, WRIST, card_of, golden_action, golden_front, golden_state

VERSIONS = ("v21", "v30")
DATA = {"v21": "data/chunk-000/episode_000001.parquet", "v30": "data/chunk-000/file-000.parquet"}
FILM = {"v21": f"videos/chunk-000/{FRONT}/episode_000001.mp4", "v30": f"videos/{FRONT}/chunk-000/file-000.mp4"}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def copy(version, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(GOLDEN / f"lerobot_{version}", folder)
    return folder


def test_everything_is_as_it_was_written(version, tmp_path):
    episodes = list(LerobotEpisodes(GOLDEN / f"lerobot_{version}", card_of(tmp_path)))
    assert [len(episode.steps) for episode in episodes] == list(LENGTHS)
    assert [episode.instructions for episode in episodes] == [(task,) for task in TASKS]
    for number, episode in enumerate(episodes):
        length = LENGTHS[number]
        assert (episode.dataset, episode.robot, episode.control_mode) == ("tiny", "panda", "joint_velocity")
        for t, step in enumerate(episode.steps):
            assert np.array_equal(step.state, golden_state(t, length)[:7])
            assert step.gripper_open == golden_state(t, length)[7] and step.timestamp == pytest.approx(t / 10)
            if t < length - 1:
                assert np.array_equal(step.action, golden_action(t, length))
            # nearer to its own picture than to any other of the data set
            errors = {
                (e, k): np.abs(decode_image(step.image).astype(int) - golden_front(e, k)).mean()
                for e in range(3)
                for k in range(LENGTHS[e])
            }
            assert min(errors, key=errors.get) == (number, t) and errors[number, t] < 8


def test_episodes_in_any_order_hold_the_same_pictures(version, tmp_path):
    source = LerobotEpisodes(GOLDEN / f"lerobot_{version}", card_of(tmp_path))
    forward = [[step.image for step in episode.steps] for episode in source]
    for number in (2, 0, 1, 1, 2):
        (episode,) = source.read(number)
        assert [step.image for step in episode.steps] == forward[number]
    picked = LerobotEpisodes(source.folder.root, source.recipe.card, episodes=[2, 0])
    assert [len(episode.steps) for episode in picked] == [4, 6] and len(picked) == 2
    source.close()


def test_another_camera_and_another_mode(version, tmp_path):
    card = card_of(tmp_path)
    (_, episode, _) = LerobotEpisodes(GOLDEN / f"lerobot_{version}", card, camera=WRIST, control_mode="joint_motion")
    assert [decode_image(step.image)[0, 0].tolist() for step in episode.steps] == [[60, 20 * t, 128] for t in range(9)]
    expected = [[-2 * golden_action(t, 9)[0], 1 - golden_action(t, 9)[7]] for t in range(8)]
    np.testing.assert_allclose([step.action for step in episode.steps[:-1]], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("key: observation.images.front", "key: observation.images.frnt"), "observation.images.front"),
        (("key: observation.images.front", "key: observation.state"), "not a picture"),
        (("{field: action, take: [7]", "{field: action, take: [8]"), "wants 9 numbers of 'action', which has 8"),
        (("{field: observation.state, take: [7]", "{field: observation.effort, take: [7]"), "observation.effort"),
        (("rate_hz: 10", "rate_hz: 30"), "10 frames per second, card 'tiny' says 30"),
        (("language: task", "language: language_instruction"), "language_instruction"),
        (("format: lerobot", "format: rlds"), "format 'rlds'"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_before_reading(tmp_path, change, message):
    with pytest.raises(SourceError, match=message):
        LerobotEpisodes(GOLDEN / "lerobot_v30", card_of(tmp_path, CARD.replace(*change)))


def test_a_picture_size_that_the_card_denies(tmp_path):
    card = card_of(tmp_path, CARD.replace("image_size: [48, 64]", "image_size: [64, 48]"))
    with pytest.raises(RecordError, match="episode 0.*48 × 64 pixels, the card says 64 × 48"):
        next(iter(LerobotEpisodes(GOLDEN / "lerobot_v30", card)))


def test_unknown_choices_are_listed(tmp_path):
    card = card_of(tmp_path)
    with pytest.raises(SourceError, match="observation.state.*takes a data card"):
        LerobotEpisodes(GOLDEN / "lerobot_v30")
    with pytest.raises(SourceError, match="Unknown camera 'top'.*front.*wrist"):
        LerobotEpisodes(GOLDEN / "lerobot_v30", card, camera="top")
    with pytest.raises(SourceError, match="Unknown control mode"):
        LerobotEpisodes(GOLDEN / "lerobot_v30", card, control_mode="end_effector_delta")
    with pytest.raises(SourceError, match="no episode 3; there are 3"):
        LerobotEpisodes(GOLDEN / "lerobot_v30", card, episodes=[0, 3])
    with pytest.raises(SourceError, match="info.json.*no such file"):
        LerobotEpisodes(tmp_path, card)


def outcome(folder, tmp_path, camera=WRIST):
    """What `skip_bad` read and left out; without it the first of these is raised."""
    card = card_of(tmp_path)
    source = LerobotEpisodes(folder, card, camera=camera, skip_bad=True)
    read = [episode.episode_id[-1] for episode in source]
    if source.report.left_out:
        with pytest.raises(RecordError) as caught:
            list(LerobotEpisodes(folder, card, camera=camera))
        assert caught.value.left_out == source.report.left_out[0]
    return read, source.report.left_out


def test_a_data_file_that_is_cut_off_or_missing(copy, version, tmp_path):
    path = copy / DATA[version]
    path.write_bytes(path.read_bytes()[:-50])
    read, left = outcome(copy, tmp_path)
    lost = ["1"] if version == "v21" else ["0", "1", "2"]
    assert read == [n for n in "012" if n not in lost] and [item.record for item in left] == [
        f"episode {n}" for n in lost
    ]
    assert all(item.file == str(path) and "not a whole Parquet file" in item.reason for item in left)
    path.unlink()
    read, left = outcome(copy, tmp_path)
    assert len(left) == len(lost) and all("missing" in item.reason for item in left)


def test_a_film_that_is_cut_off_missing_or_no_film(copy, version, tmp_path):
    path = copy / FILM[version]
    whole, lost = path.read_bytes(), ["1"] if version == "v21" else ["0", "1", "2"]
    playlist = b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n"
    for bad in (whole[: len(whole) // 2], playlist, b"", None):
        path.unlink(missing_ok=True)
        if bad is not None:
            path.write_bytes(bad)
        read, left = outcome(copy, tmp_path, FRONT)
        assert [item.record for item in left][-1] == f"episode {lost[-1]}" and len(left) + len(read) == 3
        assert all(item.file == str(path) for item in left)


def test_a_film_of_another_length(copy, version, tmp_path):
    if version == "v21":
        for other, message in ((0, "ends after the frame at 0.5"), (2, "ends after the frame at 0.3")):
            shutil.copy(copy / FILM["v21"].replace("000001", f"00000{other}"), copy / FILM["v21"])
            read, left = outcome(copy, tmp_path, FRONT)
            assert read == ["0", "2"] and left[0].record == "episode 1" and message in left[0].reason
        shutil.copy(GOLDEN / "lerobot_v21" / FILM["v21"], copy / FILM["v21"].replace("000001", "000002"))
        assert "goes on after the episode's 4 frames" in outcome(copy, tmp_path, FRONT)[1][-1].reason
    else:
        path = copy / "meta/episodes/chunk-000/file-000.parquet"
        table = pq.read_table(path)
        name = f"videos/{FRONT}/to_timestamp"
        ends = pa.array([0.6, 1.3, 1.9])
        pq.write_table(table.set_column(table.column_names.index(name), name, ends), path)
        read, left = outcome(copy, tmp_path, FRONT)
        assert read == ["0", "2"] and "0.7 s of video for 9 frames at 10 Hz" in left[0].reason


def test_a_film_shifted_by_half_a_frame_is_not_taken_for_the_right_one(copy, tmp_path, version):
    if version == "v21":
        pytest.skip("films of version 2 begin with their episode")
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for part in ("from_timestamp", "to_timestamp"):
        name = f"videos/{FRONT}/{part}"
        shifted = pa.array(table[name].to_numpy() + 0.05)
        table = table.set_column(table.column_names.index(name), name, shifted)
    pq.write_table(table, path)
    read, left = outcome(copy, tmp_path, FRONT)
    assert read == [] and all(
        "no frame within 0.0001 s" in item.reason or "no frame from" in item.reason for item in left[:2]
    )


def rewrite(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.remove_column(index) if values is None else table.set_column(index, name, values(table[name]))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("action", None, "Unknown column 'action'"),
        ("action", lambda c: pa.array([[1.0]] * len(c)), "9 numbers in 9 rows"),
        ("action", lambda c: pa.array([[np.nan] * 8] * len(c), pa.list_(pa.float32())), "nan"),
        ("action", lambda c: pa.array([None, *c.to_pylist()[1:]], c.type), "empty cells"),
        ("action", lambda c: pa.array(["x"] * len(c)), "must hold numbers"),
        ("frame_index", lambda c: pa.array(c.to_pylist()[::-1]), "frame_index"),
        ("episode_index", lambda c: pa.array([7] * len(c)), "belong to episode 7"),
        ("timestamp", lambda c: pa.array([0.0] * len(c)), "timestamp"),
        ("task_index", lambda c: pa.array([5] * len(c)), "task_index 5 has no sentence"),
        ("task_index", lambda c: pa.array([0] * 3 + [1] * (len(c) - 3)), "step 3: the instruction changes"),
    ],
)
def test_wrong_rows_are_named(tmp_path, column, values, message):
    folder = tmp_path / "copy"
    shutil.copytree(GOLDEN / "lerobot_v21", folder)
    rewrite(folder / DATA["v21"], **{column: values})
    read, left = outcome(folder, tmp_path)
    assert read == ["0", "2"] and left[0].record == "episode 1" and message in left[0].reason


def test_rows_missing_from_a_file(copy, version, tmp_path):
    path = copy / DATA[version]
    pq.write_table(pq.read_table(path).slice(0, 8), path)
    read, left = outcome(copy, tmp_path)
    assert read == (["0", "2"] if version == "v21" else ["0"]) and "the file has 8 rows" in left[0].reason


def test_one_row_group_for_all_episodes_reads_the_same(tmp_path):
    shutil.copytree(GOLDEN / "lerobot_v30", tmp_path / "copy")
    path = tmp_path / "copy" / DATA["v30"]
    table = pq.read_table(path)
    for size in (100, 4):
        pq.write_table(table, path, row_group_size=size)
        source = LerobotEpisodes(tmp_path / "copy", card_of(tmp_path), camera=WRIST)
        states = [[step.state.tolist() for step in episode.steps] for episode in source]
        assert states == [[golden_state(t, n)[:7].tolist() for t in range(n)] for n in LENGTHS]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codebase_version", "v1.6", "Unknown LeRobot version"),
        ("fps", 0, "'fps' must be a positive number"),
        ("features", {}, "'features' is missing"),
        ("features", {"action": {"dtype": "float32"}}, "'action' needs 'dtype' and 'shape'"),
        ("total_episodes", 5, "3 episodes in the index, 5 in info.json"),
    ],
)
def test_an_info_file_that_makes_no_sense(copy, tmp_path, key, value, message):
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SourceError, match=message):
        LerobotEpisodes(copy, card_of(tmp_path))


@pytest.mark.parametrize(
    "template", ["../../{episode_index}", "/etc/{episode_index}", "{episode_index.__class__}", 7, "{"]
)
def test_a_template_may_not_lead_out(copy, tmp_path, template):
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_path": template}))
    read, left = outcome(copy, tmp_path)
    assert read == [] and len(left) == 3 and left[0].file == str(path) and "template" in left[0].reason


def test_damage_in_meta_names_the_file(copy, version, tmp_path):
    name = "tasks.jsonl" if version == "v21" else "tasks.parquet"
    (copy / "meta" / name).write_bytes(b"{")
    with pytest.raises(SourceError, match=name):
        LerobotEpisodes(copy, card_of(tmp_path))
    (copy / "meta" / name).unlink()
    with pytest.raises(SourceError, match=f"{name}.*missing"):
        LerobotEpisodes(copy, card_of(tmp_path))


@pytest.mark.parametrize("tolerance", [1e-4, 0.02])
def test_every_frame_at_random_is_the_frame_in_order(tolerance):
    path = GOLDEN / "lerobot_v30" / FILM["v30"]
    with VideoReader(path) as video:
        frames = list(video.frames(k / 10 for k in range(19)))
        assert video.next_time() is None
    rng = np.random.default_rng(0)
    with VideoReader(path, tolerance=tolerance) as video:
        for k in rng.permutation(19)[:8]:
            time = k / 10 + 0.9 * tolerance * rng.choice([-1, 1]) * (k > 0)
            (frame,) = video.frames([time])
            assert np.array_equal(frame, frames[k])


def test_frames_are_those_that_lerobot_decodes():
    utils = pytest.importorskip("lerobot.datasets.video_utils")
    path, times = GOLDEN / "lerobot_v30" / FILM["v30"], [k / 10 for k in range(19)]
    theirs = (utils.decode_video_frames(path, times, 1e-4, "pyav") * 255).round().numpy().astype(np.uint8)
    with VideoReader(path) as video:
        assert np.array_equal(np.stack(list(video.frames(times))), theirs.transpose(0, 2, 3, 1))
