"""Imports that stop, and go on after the cause is mended; imports of what is damaged inside."""

import dataclasses
import json
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llarva.card_fields import CardError
from llarva.cards import load_card
from llarva.episodes.records import encode_image, image_size
from llarva.episodes.store import EpisodeStore, verify_store
from llarva.instructions.conversations import read_conversation
from llarva.sources.importing import ImportConfig, ImportSummary, import_episodes
from llarva.sources.lerobot import LerobotEpisodes
from llarva.sources.lerobot_writer import write_lerobot
from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError
from llarva.sources.rlbench import RlbenchDemos
from llarva.sources.rlbench_writer import write_episode
from llarva.sources.rlds_writer import write_rlds
from llarva.sources.tf_example import parse_example, serialize_example
from llarva.sources.tfrecord import scan_records, write_records

sys.path.insert(0, str(Path(__file__).parent))
from lerobot_sets import CARD, GOLDEN, WRIST, card_of, make_episode
from rlds_sets import SETS
from test_sources_llava_json import pretraining

PICTURE = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)


def broken_inside(picture: bytes) -> bytes:
    """The picture with a stretch of zeros in its middle; beginning and end are as they were."""
    middle = len(picture) // 2
    return picture[: middle - 40] + b"\0" * 80 + picture[middle + 40 :]


@pytest.fixture
def pots(tmp_path: Path) -> Path:
    """Three episodes in RLDS with a card; every picture is noise."""
    steps = [dataclasses.replace(step, image=encode_image(PICTURE)) for step in make_episode(0, 5).steps]
    made = [
        dataclasses.replace(make_episode(k, 5), dataset="pots", control_mode="joint_velocity", steps=tuple(steps))
        for k in range(3)
    ]
    write_rlds(tmp_path / "data", made, "pots")
    return tmp_path / "data"


def configure(pots: Path, out: Path, **changes: object) -> ImportConfig:
    return ImportConfig("rlds", str(pots / "pots"), str(out), str(pots / "pots.md"), **changes)


def run(config: ImportConfig) -> ImportSummary:
    return import_episodes(config, progress=False, parse=read_conversation)


def shard_of(pots: Path) -> Path:
    (shard,) = (pots / "pots").rglob("*tfrecord*")
    return shard


def break_picture(pots: Path, *numbers: int) -> None:
    """Break the third picture of some records, checksums as they should be."""
    records = []
    for number, record in enumerate(scan_records(shard_of(pots))):
        values = {}
        for name, feature in parse_example(record).items():
            read = {"bytes": feature.bytes_list, "floats": feature.floats, "integers": feature.integers}
            value = read[feature.kind]()
            values[name] = list(map(bytes, value)) if feature.kind == "bytes" else value
            if number in numbers and feature.kind == "bytes" and values[name][0].startswith(b"\x89PNG"):
                values[name][2] = broken_inside(values[name][2])
        records.append(serialize_example(values))
    write_records(shard_of(pots), records)


def test_a_slip_in_the_parameters_can_be_mended(pots: Path, tmp_path: Path) -> None:
    for wrong, told in (({"card": str(pots / "pot.md")}, CardError), ({"folder": str(pots / "pans")}, SourceError)):
        with pytest.raises(told):
            run(dataclasses.replace(configure(pots, tmp_path / "out"), **wrong))
    assert run(configure(pots, tmp_path / "out")).episodes == 3


@pytest.mark.parametrize("image_size", [None, (8, 8), (16, 24)])
def test_a_picture_broken_inside_is_left_out_and_named(pots: Path, tmp_path: Path, image_size: object) -> None:
    break_picture(pots, 1)
    config = configure(pots, tmp_path / "out", image_size=image_size)
    with pytest.raises(RecordError, match=r"record 1: step 2.*does not decode") as caught:
        run(config)
    assert caught.value.left_out.file == str(shard_of(pots))
    summary = run(dataclasses.replace(config, skip_bad=True))
    assert (summary.episodes, summary.added, len(summary.left_out)) == (2, 1, 1)
    assert summary.left_out[0] == caught.value.left_out
    verify_store(summary.store)


def test_when_everything_is_bad_the_reasons_are_told(pots: Path, tmp_path: Path) -> None:
    break_picture(pots, 0, 1, 2)
    with pytest.raises(SourceError, match=r"(?s)gives no episode.*3 left out.*record 0.*does not decode.*record 2"):
        run(configure(pots, tmp_path / "out", skip_bad=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("harm", "told"),
    [(broken_inside, "does not decode"), (lambda _: encode_image(PICTURE[:9]), r"\(9, 24\), the first one")],
)
def test_a_column_of_pictures_is_decoded_while_reading(
    tmp_path: Path, own: bool, harm: Callable[[bytes], bytes], told: str
) -> None:
    made = []
    for k in range(3):
        steps = tuple(dataclasses.replace(step, image=encode_image(PICTURE)) for step in make_episode(k, 6).steps)
        made.append(dataclasses.replace(make_episode(k, 6), steps=steps))
    root = write_lerobot(made, tmp_path / "set", traces=None)
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    (name,) = (name for name in table.column_names if name.startswith("observation.images"))
    cells = table[name].to_pylist()
    cells[8]["bytes"] = harm(cells[8]["bytes"])
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, table.schema.field(name), pa.array(cells, table.schema.field(name).type)), path)
    card = None
    if not own:
        text = CARD.replace("observation.images.front", name).replace("[48, 64]", "[16, 24]")
        text = text.replace("rate_hz: 10", "rate_hz: 20").replace("language: task", "language: {field: task}")
        (tmp_path / "tiny.md").write_text(text.replace("{field: task}", "task"))
        card = load_card(tmp_path / "tiny.md")
    with pytest.raises(RecordError, match=rf"episode 1: .*2.*{told}") as caught:
        list(LerobotEpisodes(root, card))
    assert caught.value.left_out.file == str(path)
    source = LerobotEpisodes(root, card, skip_bad=True)
    assert len(list(source)) == 2 and len(source.report) == 1


def test_a_corrected_card_is_another_import(pots: Path, tmp_path: Path) -> None:
    """What changes the episodes is noticed; a word in the text, or another place, is not."""
    run(configure(pots, tmp_path / "out", limit=1))
    card = pots / "pots.md"
    text = card.read_text()
    card.write_text(text + "\nOne more sentence.\n")
    assert run(configure(pots, tmp_path / "out", limit=2)).added == 1
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(card, tmp_path / "elsewhere" / "pots.md")
    assert run(dataclasses.replace(configure(pots, tmp_path / "out"), card=str(moved), limit=2)).added == 0
    card.write_text(swap_gripper(text))
    assert load_card(card) != load_card(moved)
    with pytest.raises(SourceError, match=r"another import; it differs in card"):
        run(configure(pots, tmp_path / "out"))
    assert len(EpisodeStore(tmp_path / "out" / "episodes")) == 2


def swap_gripper(text: str) -> str:
    """The card's text with open and closed exchanged."""
    return re.sub(r"closed: (\S+)(,?\s+)open: (\S+)", r"closed: \3\2open: \1", text)


def test_a_demonstration_with_a_picture_broken_inside(tmp_path: Path) -> None:
    """Its checksums are right, what they guard is not."""
    demos = [dataclasses.replace(make_episode(k, 5), dataset="rlbench", success=True) for k in range(2)]
    for demo in demos:
        write_episode(demo, tmp_path / "set")
    picture = next(iter(sorted((tmp_path / "set").rglob("front_rgb/2.png"))))
    data = picture.read_bytes()
    at = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    content = b"IDAT" + b"\x78\x9c" + b"\xff" * (length - 2)
    end = data[at + 8 + length :]
    picture.write_bytes(data[:at] + content + struct.pack(">I", zlib.crc32(content)) + end)
    with pytest.raises(SourceError, match=r"front_rgb/2\.png: not a whole PNG"):
        list(RlbenchDemos(tmp_path / "set"))
    assert len(list(RlbenchDemos(tmp_path / "set", skip_bad=True))) == 1


def test_another_camera_has_its_own_size_colours_and_turn(tmp_path: Path) -> None:
    """What the card says of its own camera does not hold for the one that is asked for."""
    card, wrist = tmp_path / "flat_seven.md", "steps/observation/wrist_image"
    text = SETS["flat_seven"].card
    own = re.search(r"camera: \{key: (\S+), image_size: \[12, 16\], calibrated: false", text)
    assert own is not None and own[1] != wrist
    card.write_text(text.replace(own[0], own[0].replace("[12, 16]", "[99, 98]") + ", channels: bgr, turn: 90"))
    folder = GOLDEN / "rlds" / "flat_seven"
    config = ImportConfig("rlds", str(folder), str(tmp_path / "out"), str(card), camera=wrist)
    stored = EpisodeStore(run(config).store)[0]
    record = parse_example(next(iter(scan_records(next(folder.rglob("*.tfrecord*"))))))
    assert [step.image for step in stored.steps] == list(map(bytes, record[wrist].bytes_list()))
    with pytest.raises(RecordError, match="the card says 99 × 98"):
        run(dataclasses.replace(config, camera=own[1], out_dir=str(tmp_path / "own")))


def test_ids_say_of_which_data_set_they_are(tmp_path: Path) -> None:
    """Stores of two data sets hold no id twice, so that rows can be built of both."""
    found = []
    for name in ("pots", "pans"):
        made = dataclasses.replace(make_episode(0, 5), dataset=name, control_mode="joint_velocity")
        write_rlds(tmp_path / name, [made], name)
        found += EpisodeStore(run(dataclasses.replace(configure(tmp_path / name, tmp_path / f"out-{name}"),
                                                      folder=str(tmp_path / name / name),
                                                      card=str(tmp_path / name / f"{name}.md"))).store).ids  # fmt: skip
    assert found == ["pots/train-00000-00000", "pans/train-00000-00000"]
    tiny = LerobotEpisodes(GOLDEN / "lerobot_v21", card_of(tmp_path), camera=WRIST)
    assert [episode.episode_id for episode in tiny] == [f"tiny/episode-00000{k}" for k in range(3)]


def write_list(folder: Path) -> Path:
    """A LLaVA list of two data sets: one picture is broken, one answer says nothing, a frame is twice."""
    entries = []
    for subset, episode in (("berkeley_autolab_ur5", 3), ("berkeley_autolab_ur5", 4), ("toto", 1)):
        for t in range(6):
            entries.append(pretraining(t, subset, episode))
            image = folder / entries[-1]["image"]
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(encode_image(PICTURE))
    (folder / entries[3]["image"]).write_bytes(broken_inside(encode_image(PICTURE)))
    entries[8]["conversations"][1]["value"] = "I cannot say."
    (folder / "list.json").write_text(json.dumps([*entries, entries[10]]))
    return folder / "list.json"


def test_a_llava_list_is_imported_and_accounted_for(tmp_path: Path) -> None:
    config = ImportConfig("llava_json", str(write_list(tmp_path)), str(tmp_path / "out"), image_size=(8, 8))
    with pytest.raises(SourceError, match="several data sets, berkeley_autolab_ur5 and toto"):
        run(config)
    config = dataclasses.replace(config, dataset="berkeley_autolab_ur5")
    with pytest.raises(RecordError, match=r"list\.json: entry 3 .*does not decode"):
        run(config)
    summary = run(dataclasses.replace(config, skip_bad=True))
    stored = list(EpisodeStore(summary.store))
    assert [(e.episode_id.partition("/")[2], len(e.steps)) for e in stored] == [
        ("3#0-2", 3), ("3#4-5", 2), ("4#0-1", 2), ("4#3-5", 3)
    ]  # fmt: skip
    assert {e.robot for e in stored} == {"ur5"} and image_size(stored[0].steps[0].image) == (8, 8)
    assert len(summary.left_out) == 3 and summary.notes["left out: the image file does not decode"] == 1
    assert summary.notes["left out: another entry is of the same frame"] == 1
    assert sum(count for note, count in summary.notes.items() if note.startswith("left out")) == 3
    assert summary.notes["entries of toto, which was not asked for"] == 6
    verify_store(summary.store)
    toto = dataclasses.replace(config, dataset="toto", out_dir=str(tmp_path / "toto"))
    assert run(toto).notes["episodes whose gripper opening is not known, written as 0"] == 1


def test_what_a_llava_list_has_not(tmp_path: Path) -> None:
    for changes in ({"card": "x.md"}, {"camera": "front"}, {"control_mode": "joint_velocity"}):
        with pytest.raises(SourceError, match="not of source 'llava_json'"):
            ImportConfig("llava_json", "x.json", "out", **changes)
    with pytest.raises(SourceError, match="pass `parse`"):
        import_episodes(ImportConfig("llava_json", str(write_list(tmp_path)), str(tmp_path / "out")))
    with pytest.raises(SourceError, match=r"x\.json: no such file"):
        run(ImportConfig("llava_json", str(tmp_path / "x.json"), str(tmp_path / "out")))
    with pytest.raises(SourceError, match="gives no episode"):
        run(ImportConfig("llava_json", str(write_list(tmp_path)), str(tmp_path / "out"), dataset="x", skip_bad=True))
