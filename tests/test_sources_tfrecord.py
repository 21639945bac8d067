"""TFRecord framing, the wire format of Examples, features.json and folders of TFDS."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.sources.opcodes import SourceError
from llarva.sources.report import RecordError
from llarva.sources.tf_example import ExampleError, parse_example, serialize_example
from llarva.sources.tfds_features import decode, read_features
from llarva.sources.tfds_folder import open_tfds
from llarva.sources.tfrecord import crc32c, masked_crc, scan_records, write_records


def bitwise(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_crc_is_that_of_its_definition(data):
    assert crc32c(data) == bitwise(data)


TABLE = [bitwise(bytes([i])) ^ bitwise(b"\0") for i in range(256)]


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 4096, 4097, 2**20 - 1, 2**20, 2**20 + 1, 2**20 + 3, 2**20 + 4, 2**21 + 77]
)
def test_crc_of_every_length(size):
    data = np.random.default_rng(size).bytes(size)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_crc_agrees_with_the_usual_package():
    reference = pytest.importorskip("google_crc32c")
    for size in (*range(4090, 4100), *range(2**20 - 5, 2**20 + 6), *range(2**22 - 5, 2**22 + 6)):
        data = np.random.default_rng(size).bytes(size)
        assert crc32c(data) == reference.value(data)


@given(st.lists(st.binary(max_size=200), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_records_and_any_one_wrong_byte(tmp_path_factory, records, data):
    path = tmp_path_factory.mktemp("records") / "file"
    assert write_records(path, records) == len(records) and list(scan_records(path)) == records
    whole = bytearray(path.read_bytes())
    if whole:
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        found = list(scan_records(path))
        wrong = [i for i, item in enumerate(found) if isinstance(item, RecordError)]
        assert len(wrong) == 1  # it is found, it is named, and no other record is spoilt before it
        assert found[: wrong[0]] == records[: wrong[0]] and f"record {wrong[0]}" in str(found[wrong[0]])


def test_records_that_cannot_be_opened(tmp_path):
    with pytest.raises(RecordError, match="cannot be read"):
        list(scan_records(tmp_path / "nowhere"))
    (tmp_path / "huge").write_bytes(struct.pack("<QI", 2**40, masked_crc(struct.pack("<Q", 2**40))) + b"x" * 50)
    assert "too large" in str(next(iter(scan_records(tmp_path / "huge"))))


LISTS = st.one_of(
    st.lists(st.binary(max_size=300), max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40).map(lambda v: np.array(v, np.int64)),
    st.lists(st.floats(width=32), max_size=40).map(lambda v: np.array(v, np.float32)),
)


def equal(feature, value):
    if isinstance(value, list):
        return [bytes(item) for item in feature.bytes_list()] == value
    found = feature.integers() if value.dtype == np.int64 else feature.floats()
    return found.dtype == value.dtype and found.tobytes() == value.tobytes()


@given(st.dictionaries(st.text(max_size=12), LISTS, max_size=5))
@settings(max_examples=150, deadline=None)
def test_examples_there_and_back(values):
    features = parse_example(serialize_example(values))
    assert features.keys() == values.keys()
    assert all(equal(features[name], value) for name, value in values.items())


@given(st.dictionaries(st.text(max_size=12), LISTS, max_size=5))
@settings(max_examples=100, deadline=None)
def test_examples_agree_with_protocol_buffers(values):
    example = pytest.importorskip("tensorflow.core.example.example_pb2").Example
    theirs = example.FromString(serialize_example(values))
    for name, value in values.items():
        kind = "bytes_list" if isinstance(value, list) else "int64_list" if value.dtype == np.int64 else "float_list"
        found = list(getattr(theirs.features.feature[name], kind).value)
        assert (
            np.array(found, np.float32).tobytes() == value.tobytes() if kind == "float_list" else found == list(value)
        )
    features = parse_example(theirs.SerializeToString())
    assert all(equal(features[name], value) for name, value in values.items())


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_or_read_but_never_breaks(noise, place):
    good = serialize_example({"a": [b"xyz", b""], "b": np.int64([1, -1, 300]), "c": np.float32([1, 2])})
    for data in (noise, good[:place] + noise + good[place:], good[:place]):
        try:
            for feature in parse_example(data).values():
                for read in (feature.bytes_list, feature.floats, feature.integers):
                    try:
                        read()
                    except ExampleError:
                        pass
        except ExampleError:
            pass


def tag(number, content):
    return bytes([number << 3 | 2, len(content)]) + content


def test_pieces_are_merged_as_protocol_buffers_do():
    def entry(name, *features):
        return tag(1, tag(1, name) + b"".join(tag(2, feature) for feature in features))

    ints, unpacked = tag(3, tag(1, b"\x01\x02")), tag(3, b"\x08\x03\x08\xac\x02")
    floats = tag(2, tag(1, struct.pack("<f", 1.5)) + b"\x0d" + struct.pack("<f", 2.5))
    unknown = b"\x50\x07" + tag(9, b"later versions") + b"\x5d....\x61........"
    data = (
        tag(1, entry(b"a", ints, unpacked) + unknown)
        + unknown
        + tag(1, entry(b"b", ints, floats) + entry(b"c", floats))
    )
    features = parse_example(data + tag(1, entry(b"c", ints)))
    assert features["a"].integers().tolist() == [1, 2, 3, 300]
    assert features["b"].floats().tolist() == [1.5, 2.5]  # the later kind wins
    assert features["c"].integers().tolist() == [1, 2]  # so does the later entry


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x0a", "no end"),
        (b"\x0a\x05", "wants 5 bytes more"),
        (b"\x0b", "tag 11"),
        (b"\x02\x00", "tag 2"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "bytes more than there are"),
        (tag(1, tag(1, tag(1, b"\xff\xfe"))), "not text"),
    ],
)
def test_what_is_not_an_example(data, message):
    with pytest.raises(ExampleError, match=message):
        parse_example(data)


@pytest.mark.parametrize("content", [b"\x80", b"\x80" * 10 + b"\x01"])
def test_integers_without_end(content):
    data = tag(1, tag(1, tag(1, b"a") + tag(2, tag(3, tag(1, content)))))
    with pytest.raises(ExampleError, match="integer"):
        parse_example(data)["a"].integers()


# ---- features.json


def features(tmp_path, node):
    path = tmp_path / "features.json"
    path.write_text(node if isinstance(node, str) else json.dumps(node))
    return read_features(path)


def feature(kind, **content):
    return {"type": f"tfds.{kind}", "content": content}


@pytest.mark.parametrize(
    "node, message",
    [
        ("{", "JSON"),
        ("[1]", "must be an object"),
        ('{"type": "FeaturesDict", "content": {"a": 3}}', "'a' must be an object"),
        ('{"type": "Tensor", "content": {"shape": 7}}', "is not a shape"),
        ('{"type": "Tensor", "content": {"shape": ["x"]}}', "is not a length"),
        ("[" * 100_000, "JSON"),
        ('{"type":"Sequence","content":{"feature":' * 60 + "{}" + "}}" * 60, "nested more than"),
    ],
)
def test_wrong_feature_files(tmp_path, node, message):
    with pytest.raises(SourceError, match=message) as caught:
        features(tmp_path, node)
    assert "features.json" in str(caught.value)


def test_what_cannot_be_read_is_no_hindrance_until_it_is_wanted(tmp_path):
    leaves = features(
        tmp_path,
        feature(
            "FeaturesDict",
            sound=feature("Audio", file_format="wav"),
            odd=feature("Tensor", shape=[2], dtype="qint8"),
            number=feature("Tensor", shape=[], dtype="int32"),
        ),
    )
    example = parse_example(
        serialize_example({"number": np.int64([5]), "sound": np.int64([1]), "odd": np.int64([1, 2])})
    )
    assert decode(leaves["number"], example) == 5
    for name in ("sound", "odd"):
        with pytest.raises(ExampleError, match=f"'{name}'"):
            decode(leaves[name], example)


@pytest.mark.parametrize(
    "node, values, message",
    [
        (feature("Tensor", shape=[], dtype="uint8"), np.int64([300]), "uint8 cannot hold"),
        (feature("Tensor", shape=[], dtype="bool"), np.int64([2]), "bool cannot hold"),
        (feature("Tensor", shape=[], dtype="int32"), np.int64([1, 2]), "2 values, not one"),
        (feature("Tensor", shape=[3], dtype="float32"), np.float32([1, 2]), "do not make elements"),
        (feature("Tensor", shape=[3], dtype="float32"), np.int64([1, 2, 3]), "integers, not floats"),
        (feature("Tensor", shape=[2], dtype="uint8", encoding="bytes"), [b"123"], "3 bytes does not fit"),
        (feature("Tensor", shape=[2], dtype="uint8", encoding="zlib"), [b"123"], "does not decompress"),
        (feature("Tensor", shape=[2**40], dtype="uint8", encoding="zlib"), [b"123"], "larger than"),
        (feature("Sequence", feature=feature("Tensor", shape=[], dtype="int8"), length=3), np.int64([1]), "not 3"),
    ],
)
def test_values_that_do_not_fit(tmp_path, node, values, message):
    leaf = features(tmp_path, feature("FeaturesDict", a=node))["a"]
    with pytest.raises(ExampleError, match=message):
        decode(leaf, parse_example(serialize_example({"a": values})))


def test_a_compressed_bomb_stays_small(tmp_path):
    import tracemalloc
    import zlib

    bomb = zlib.compress(bytes(20 * 2**20), 9)
    leaf = features(tmp_path, feature("FeaturesDict", a=feature("Tensor", shape=[10], dtype="uint8", encoding="zlib")))[
        "a"
    ]
    tracemalloc.start()
    with pytest.raises(ExampleError, match="does not fit"):
        decode(leaf, parse_example(serialize_example({"a": [bomb]})))
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_ragged_rows_must_add_up(tmp_path):
    inner = feature("Sequence", feature=feature("Tensor", shape=[], dtype="int8"), length=None)
    leaf = features(tmp_path, feature("FeaturesDict", a=feature("Sequence", feature=inner, length=None)))["a"]
    for rows in ([1, 1], [5, -2], [2**62, 2**62]):
        lists = {"a/ragged_flat_values": np.int64([1, 2, 3]), "a/ragged_row_lengths_0": np.int64(rows)}
        with pytest.raises(ExampleError, match="rows of"):
            decode(leaf, parse_example(serialize_example(lists)))


# ---- folders


def folder(tmp_path, **info):
    content = {"name": "arm", "version": "1.0.0", "splits": [{"name": "train", "shardLengths": ["1"]}]} | info
    (tmp_path / "dataset_info.json").write_text(json.dumps(content))
    (tmp_path / "features.json").write_text(json.dumps(feature("FeaturesDict")))
    return open_tfds(tmp_path)


def test_file_names_follow_the_template(tmp_path):
    split = {"name": "val", "shardLengths": ["1", "2"]}
    for template, name in {
        "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}": "arm-val.tfrecord-00001-of-00002",
        "{SPLIT}_{SHARD_INDEX}_{NUM_SHARDS}.x": "val_00001_00002.x",
    }.items():
        data = folder(tmp_path, splits=[split | {"filepathTemplate": template}])
        assert [s.records for s in data.shards("val")] == [1, 2] and data.shards("val")[1].path.name == name


@pytest.mark.parametrize(
    "info, message",
    [
        ({"name": 3}, "data set's name"),
        ({"fileFormat": "riegeli"}, "Unknown fileFormat 'riegeli'"),
        ({"splits": [3]}, "a split must be"),
        ({"splits": [{"name": "a", "shardLengths": ["x"]}]}, "must list numbers"),
        ({"splits": [{"name": "a", "shardLengths": [-1]}]}, "records of every shard"),
        ({"splits": [{"name": "a", "numShards": 3}]}, "records of every shard"),
        ({"splits": [{"name": "../a", "shardLengths": [1]}]}, "not a plain file name"),
        ({"splits": [{"name": "a", "shardLengths": [1], "filepathTemplate": "/etc/{SPLIT}"}]}, "not a plain file name"),
        ({"splits": [{"name": "a", "shardLengths": [1], "filepathTemplate": "{X}"}]}, "Unknown variable 'X'"),
    ],
)
def test_wrong_info(tmp_path, info, message):
    with pytest.raises(SourceError, match=message):
        folder(tmp_path, **info)


def test_missing_files_and_several_versions(tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        open_tfds(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no TFDS data set"):
        open_tfds(tmp_path)
    for version in ("1.0.0", "2.0.0"):
        (tmp_path / version).mkdir()
        folder(tmp_path / version)
    with pytest.raises(SourceError, match=r"several versions: 1.0.0, 2.0.0"):
        open_tfds(tmp_path)
    (tmp_path / "1.0.0" / "features.json").unlink()
    with pytest.raises(SourceError, match="features.json: missing"):
        open_tfds(tmp_path / "1.0.0")
