"""RLDS folders that do not fit their card, and damaged ones: named, counted, survived."""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llarva.cards import load_card
from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError
from llarva.sources.rlds import RldsEpisodes
from llarva.sources.tf_example import parse_example, serialize_example
from llarva.sources.tfrecord import masked_crc, scan_records, write_records

sys.path.insert(0, str(Path(__file__).parent))
from rlds_sets import EPISODES, SETS
from test_sources_rlds import GOLDEN, card_of, episodes_of

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
