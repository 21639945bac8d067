"""LLaVA JSON as released: entries, sentences of every wording, paths, episodes; damage of every kind is counted."""

import json
import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.episodes.records import EpisodeError, encode_image
from llarva.instructions.conversations import open_llava
from llarva.instructions.format import InstructionFormat
from llarva.instructions.llava_json import export_llava
from llarva.instructions.numbers import DecimalNumbers
from llarva.sources.json_list import Unreadable, read_entries, read_entry
from llarva.sources.llava_episodes import GripperPlace, episodes_of, group_rows
from llarva.sources.llava_json import LlavaReport, entry_turns, frame_place, read_image
from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError

KEYS = st.sampled_from(["id", "image", "a", "é"])
VALUES = st.recursive(
    st.text(max_size=9) | st.integers(-999, 999) | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


def contents(path, **options):
    return [entry.value for entry in read_entries(path, **options)]


def conversation(number, image, human, answer):
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": image, "conversations": turns}


def pretraining(t, subset="berkeley_autolab_ur5", episode=17, n=2, **changes):
    """An entry in the wording of the pre-training data with traces."""
    states = [[round(0.1 * s, 4)] * 7 for s in range(5)]
    human = (
        '<image>\nYou are a UR5 robot using the end effector control. The task is "take the tiger", and the previous '
        f"five (including current) steps is {states}, can you predict action of the next {n} step and the "
        "trajectories of the end effector?"
    )
    answer = f"The next action step: {[[0.25] * 6 + [float(t)]] * n}. The trajectory: [[{t}, 20], [7, 8]]"
    texts = {"human": human, "answer": answer} | changes
    return conversation(t + 1, f"images/{subset}/{episode}/{t}.jpg", **texts)


# --- entries ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.dictionaries(KEYS, VALUES, max_size=3) | st.integers(), max_size=6),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, 1]),
)
@settings(deadline=None)
def test_entries_are_read_the_same_in_any_chunks(tmp_path_factory, entries, chunk, ascii_only, indent):
    path = tmp_path_factory.mktemp("json") / "list.json"
    path.write_text(json.dumps(entries, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    found = list(read_entries(path, chunk=chunk))
    assert [entry.value for entry in found] == entries
    assert [entry.index for entry in found] == list(range(len(entries)))
    with path.open("rb") as file:
        assert all(read_entry(file, entry.offset, entry.length) == entry.value for entry in found)


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=2), min_size=1, max_size=5), st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_json_lines(tmp_path_factory, entries, chunk):
    path = tmp_path_factory.mktemp("json") / "lines.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert contents(path, chunk=chunk) == entries


def test_byte_order_mark_and_white_space(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf \r\n[ {} \t,\n{} ]\r\n")
    assert contents(tmp_path / "a.json") == [{}, {}]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "neither a JSON list"),
        ("7", "neither a JSON list"),
        ('{"a": 1}{', r"entry 1 \(byte 8\): not JSON"),
        ('[{"a": 1}', r"entry 1 \(byte 9\): the file breaks off"),
        ('[{"a": 1}, {"b', r"entry 1 \(byte 11\): not JSON"),
        ('[{"a": 1} {"b": 2}]', r"entry 1 \(byte 10\): no comma"),
        ('[{"a": 1} nonsense]', "no comma"),
        ('[{"a": 1},]', "not JSON"),
        ("[,{}]", "not JSON"),
        ("[{}] []", "text after the end"),
        ("[" * 100_000, "not JSON"),
        ('[{"a": ' + "9" * 5000 + "}]", "not JSON"),
        ('[{"a": "b\x01"}]', "Invalid control character"),
    ],
)
def test_damage_names_file_entry_and_byte(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        contents(tmp_path / "bad.json", chunk=64)
    assert "bad.json" in str(caught.value)


def test_other_encodings_and_missing_files(tmp_path):
    (tmp_path / "wide.json").write_text("[]", encoding="utf-16")
    with pytest.raises(SourceError, match="neither"):
        contents(tmp_path / "wide.json")
    (tmp_path / "latin.json").write_bytes('[{"id": "caf\xe9"}, {"id": 2}]'.encode("latin-1"))
    seen = []
    assert contents(tmp_path / "latin.json", on_damage=seen.append) == [{"id": 2}]
    assert [error.left_out.reason for error in seen] == ["not UTF-8 text"]
    with pytest.raises(SourceError, match="cannot be opened"):
        contents(tmp_path / "none.json")
    with (tmp_path / "latin.json").open("rb") as file, pytest.raises(RecordError, match="no entry of this length"):
        read_entry(file, 3, 4)


def test_an_entry_without_end_is_given_up(tmp_path):
    (tmp_path / "huge.json").write_text('[{"id": "' + "x" * (18 << 20))
    with pytest.raises(SourceError, match="larger than"):
        contents(tmp_path / "huge.json")


@given(st.data(), st.sampled_from(["\x00", '"}', "{{", "]"]))
@settings(max_examples=60, deadline=None)
def test_damage_costs_only_the_entries_that_it_hits(tmp_path_factory, data, noise):
    entries = [pretraining(t) for t in range(8)]
    texts = [json.dumps(entry) for entry in entries]
    hit = data.draw(st.sets(st.integers(0, 7), max_size=4))
    for number in hit:
        place = data.draw(st.integers(1, len(texts[number]) - 2))
        texts[number] = texts[number][:place] + noise + texts[number][place:]
    path = tmp_path_factory.mktemp("json") / "holes.json"
    path.write_text("[" + ", ".join(texts) + "]")
    seen = []
    found = contents(path, on_damage=seen.append, chunk=data.draw(st.integers(64, 4096)))
    untouched = [entry for number, entry in enumerate(entries) if number not in hit]
    assert [entry for entry in found if entry in untouched] == untouched
    if noise == "\x00":  # legal nowhere
        assert found == untouched and bool(seen) == bool(hit)


# --- one entry -------------------------------------------------------------------------------------------------------


def test_both_kinds_of_entries():
    assert entry_turns(conversation(7, "a/1.jpg", "q", "r")).id == "7"
    assert entry_turns(conversation("7b", "a/1.jpg", "q", "r")).id == "7b"
    asked = entry_turns({"question_id": 3, "image": "a/1.jpg", "text": "q", "gt": "r", "category": "conv"})
    assert (asked.id, asked.human, asked.answer) == ("3", "<image>\nq", "r")


@pytest.mark.parametrize(
    "image, place",
    [
        ("images/bc_z/118/42.jpg", ("bc_z", "118", 42)),
        ("bc_z/118/00042.png", ("bc_z", "118", 42)),
        ("data/images/viola/1/2.jpg", ("viola", "1", 2)),
        ("episode12/front_rgb/90.png", ("rlbench", "episode12", 90)),
        (
            "open_drawer/all_variations/episodes/episode3/front_rgb/5.png",
            ("rlbench", "open_drawer/all_variations/episode3", 5),
        ),
        ("images/push_buttons-7/00003.png", ("", "push_buttons-7", 3)),
        ("images/a/b/c/3.png", ("", "a/b/c", 3)),
    ],
)
def test_paths(image, place):
    found = frame_place(image)
    assert (found.subset, found.episode, found.frame) == place


@pytest.mark.parametrize(
    "image", ["7.jpg", "images/7.jpg", "a/b/x7.jpg", "/a/b/7.jpg", "a/../7.jpg", "", "a/b/", "a/٣.jpg"]
)
def test_paths_that_tell_nothing(image):
    assert frame_place(image) is None


def test_datasets_by_their_short_names():
    assert frame_place("berkeley_rpt_new/1/2.jpg").dataset == "berkeley_rpt"
    assert frame_place("austin_buds_dataset_converted_externally_to_rlds/1/2.jpg").dataset == "austin_buds_dataset"


def test_images_stay_in_their_folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "1.png").write_bytes(encode_image(np.zeros((4, 6, 3), np.uint8)))
    (folder / "link.png").symlink_to(tmp_path / "1.png")
    assert read_image(folder, "1.png")[1] == (4, 6)
    for image, reason in {
        "../1.png": "leaves",
        "link.png": "leaves",
        "2.png": "read",
        "a\0": "read",
        ".": "read",
    }.items():
        with pytest.raises(Unreadable, match=reason):
            read_image(folder, image)


# --- whole lists -----------------------------------------------------------------------------------------------------


def write(path, entries):
    path.write_text(json.dumps(entries))
    return path


def test_every_reason_is_counted_with_its_places(tmp_path):
    entries = [pretraining(t) for t in range(10)]
    entries[2] = "nonsense"
    entries[4]["conversations"].pop()
    entries[5] = pretraining(5, answer="I am sorry.")
    entries[6] = pretraining(6, human="What is this?")
    entries[7] = pretraining(7, human="What is that?")
    path = write(tmp_path / "train-10.json", entries)
    report = LlavaReport()
    rows = list(open_llava(path).rows(report))
    assert [row.index for row in rows] == [0, 1, 3, 8, 9] and rows[0].id == "1"
    assert report.rows == 5 and len(report) == 5 and sum(report.counts().values()) == 5
    assert report.wordings == {"llarva-v3": 5} and report.datasets == {"berkeley_autolab_ur5": 5}
    (most,) = [reason for reason, count in report.counts().items() if count == 2]
    assert "no known wording" in most
    assert any("entry 6" in item.record and "id '7'" in item.record for item in report)
    assert "5 entries read, 5 left out" in report.report()
    with pytest.raises(RecordError, match="entry 2"):
        list(open_llava(path).rows())


def test_the_account_stays_small(tmp_path):
    entries = [{"question_id": t, "image": f"{t}.jpg", "text": "?", "gt": ""} for t in range(300)]
    report = LlavaReport()
    assert list(open_llava(write(tmp_path / "q.json", entries)).rows(report)) == []
    assert len(report) == 300 and len(report.left_out) == 3
    for t in range(300):
        report.add(RecordError("f", "r", f"reason {t}"))
    assert len(report) == 600 and len(report.counts()) <= 101


def test_rows_of_our_own_export(tmp_path):
    plain = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 1, 1, 2, (16, 16))
    state = np.linspace(-0.5, 0.5, 8)[None]
    rows = [
        {
            "id": f"wave-7/{t:05d}",
            "image": encode_image(np.full((16, 16, 3), t, np.uint8)),
            "prompt": plain.prompt("wave", state, "joint_velocity"),
            "answer": plain.answer([[1, 2], [3, t]], state, "joint_velocity"),
        }
        for t in range(5)
    ]
    export_llava(rows, tmp_path)
    (group,) = group_rows(open_llava(tmp_path / "train.json"))
    assert group.episode == "wave-7" and [row.place.frame for row in group.rows] == list(range(5))
    (episode,) = episodes_of(group, GripperPlace(-1, 0.0, 1.0), images=tmp_path, rate=20.0)
    assert [step.image for step in episode.steps] == [row["image"] for row in rows]
    assert episode.robot == "panda" and episode.steps[1].timestamp == 0.05


# --- episodes --------------------------------------------------------------------------------------------------------


def test_shuffled_rows_become_episodes(tmp_path):
    entries = [pretraining(t, episode=e) for e in (2, 10) for t in range(12) if (e, t) not in {(2, 4), (2, 5)}]
    random.Random(0).shuffle(entries)
    entries.append(pretraining(3, episode=10))
    entries.append(pretraining(3, subset="x") | {"image": "photo.jpg"})
    path = write(tmp_path / "quarter-train-24.json", entries)
    report = LlavaReport()
    groups = list(group_rows(open_llava(path), report, scratch=tmp_path))
    assert [(group.episode, len(group.rows)) for group in groups] == [("2", 10), ("10", 12)]
    assert report.counts() == {
        "another entry is of the same frame": 1,
        "the image path names no frame of an episode": 1,
    }
    assert list(tmp_path.iterdir()) == [path]
    parts = episodes_of(groups[0], GripperPlace(6, closed=11.0, open=0.0))
    assert [part.episode_id.split("#")[1] for part in parts] == ["0-3", "6-11"]
    assert parts[0].control_mode == "end_effector_motion" and parts[0].robot == "ur5"
    # The opening at a frame is what the action of the frame before asked for.
    assert [round(step.gripper_open * 11) for step in parts[1].steps] == [5, 5, 4, 3, 2, 1]
    assert parts[1].steps[-1].action is None and parts[1].steps[0].timestamp == 6.0
    np.testing.assert_array_equal(parts[0].steps[1].action, np.float32([0.25] * 6 + [1.0]))
    with pytest.raises(RecordError, match="same frame|no frame"):
        list(group_rows(open_llava(path)))


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("UR5", "Terminator", "no robot is called 'Terminator'.*sawyer"),
        ("end effector control", "mind control", "no control mode is called 'mind control'"),
    ],
)
def test_episodes_that_cannot_be(tmp_path, old, new, reason):
    human = pretraining(0)["conversations"][0]["value"].replace(old, new, 1)
    strange = [pretraining(t, human=human) for t in range(3)]
    (group,) = group_rows(open_llava(write(tmp_path / "a.json", strange)))
    with pytest.raises(Unreadable, match=reason):
        episodes_of(group, None)
    (group,) = group_rows(open_llava(write(tmp_path / "b.json", [*strange[:2], pretraining(2)])))
    with pytest.raises(Unreadable, match="several robots"):
        episodes_of(group, None)


def test_episodes_that_break_the_record(tmp_path):
    human = pretraining(1)["conversations"][0]["value"]
    narrow, empty = (
        human[: human.index("[[")] + states + human[human.index("]]") + 2 :] for states in ("[[1.0]]", "[]")
    )
    for changed, gripper, error in (
        (human, GripperPlace(9, 0.0, 1.0), Unreadable),
        (narrow, None, EpisodeError),
        (empty, None, Unreadable),
    ):
        path = write(tmp_path / "a.json", [pretraining(0), pretraining(1, human=changed)])
        (group,) = group_rows(open_llava(path))
        with pytest.raises(error):
            episodes_of(group, gripper)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_list(tmp_path):
    def peak(count):
        path = tmp_path / f"{count}.json"
        with path.open("w") as file:
            file.write("[")
            for i in range(count):
                file.write("," * (i > 0) + json.dumps(pretraining(i % 40, episode=i // 40)))
            file.write("]")
        source, report = replace(open_llava(path), window=1 << 13), LlavaReport()
        tracemalloc.start()
        assert sum(len(group.rows) for group in group_rows(source, report)) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    list(read_entries(write(tmp_path / "warm.json", [])))
    small = peak(80)
    assert peak(800) < 1.5 * small
