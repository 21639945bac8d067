"""Metadata and records that make no sense: nothing but the package's own errors, and the rest is read."""

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.cards import load_card
from llarva.errors import LlarvaError
from llarva.sources.json_list import Unreadable
from llarva.sources.lerobot import LerobotEpisodes
from llarva.sources.llava_episodes import group_rows
from llarva.sources.llava_json import LlavaJson, LlavaReport, entry_turns
from llarva.sources.opcodes import SourceError
from llarva.sources.rlds import RldsEpisodes
from llarva.sources.tf_example import ExampleError, parse_example, serialize_example
from llarva.sources.tfds_features import Leaf, decode, read_features
from llarva.sources.tfds_folder import open_tfds
from llarva.sources.tfrecord import scan_records, write_records

sys.path.insert(0, str(Path(__file__).parent))
from lerobot_sets import WRIST, card_of
from rlds_sets import SETS

GOLDEN = Path(__file__).parent / "golden"
RLDS = ("flat_seven", "scalars", "code_points", "per_episode", "odd_types")
ODD = ("", "a,,b", "object", "(2)f4", "float32", "bytes", "string", "\ud800", "x\0", "../x", "{DATASET}", "{x}", "1")
JUNK = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 5, 2**31, 2**70, -(2**70), 0.5, 1e-300, float("inf"), float("nan")]),
    st.sampled_from(ODD),
    st.sampled_from([[], [1], [None], ["a"], [[]], [0, None], {}, {"a": 1}, {"features": 5}]),
)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])


def spoilt(value: Any, data: st.DataObject) -> str:
    """JSON text in which one or two values are others."""
    value = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 2))):
        where = list(places(value))
        if where:
            container, key = data.draw(st.sampled_from(where))
            container[key] = copy.deepcopy(data.draw(JUNK))
    return json.dumps(value)


def read_all(name: str, folder: Path, cards: Path) -> None:
    """Open and read a data set, every feature of it decoded; LlarvaError passes for an answer."""
    try:
        (cards / f"{name}.md").write_text(SETS[name].card)
        for _ in RldsEpisodes(folder, load_card(cards / f"{name}.md"), skip_bad=True):
            pass
    except LlarvaError:
        pass
    try:
        opened = open_tfds(folder)
    except LlarvaError:
        return
    for leaf in opened.features.values():
        for record in scan_records(next(folder.rglob("*.tfrecord*"))):
            if isinstance(record, bytes):
                with_errors(leaf, record)


def with_errors(leaf: Leaf, record: bytes) -> None:
    """Decode a feature, or be told why not."""
    try:
        decode(leaf, parse_example(record))
    except ExampleError as error:
        assert leaf.path in str(error) or "not an Example" in str(error)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the data sets that may be spoilt, one file at a time."""
    root = tmp_path_factory.mktemp("hostile")
    for name in RLDS:
        shutil.copytree(GOLDEN / "rlds" / name, root / name)
    shutil.copytree(GOLDEN / "lerobot_v21", root / "lerobot")
    return root


@given(st.data(), st.sampled_from(RLDS), st.sampled_from(["features.json", "dataset_info.json"]))
@settings(max_examples=100, deadline=None)
def test_spoilt_metadata_of_rlds(sets: Path, data: st.DataObject, name: str, file: str) -> None:
    path = next((sets / name).rglob(file))
    whole = path.read_bytes()
    try:
        path.write_text(spoilt(json.loads(whole), data))
        read_all(name, sets / name, sets)
    finally:
        path.write_bytes(whole)


LISTS = st.one_of(
    st.lists(st.sampled_from([b"", b"\xff", b"go", b"\x89PNG", b"\0" * 8, b"\0" * 16]), max_size=4),
    st.lists(st.floats(width=32), max_size=30).map(lambda values: np.array(values, np.float32)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(lambda values: np.array(values, np.int64)),
    st.lists(st.integers(-2, 8), max_size=8).map(lambda values: np.array(values, np.int64)),
    st.none(),
)


@given(st.data(), st.sampled_from(RLDS))
@settings(max_examples=100, deadline=None)
def test_spoilt_records_of_rlds(sets: Path, data: st.DataObject, name: str) -> None:
    path = next((sets / name).rglob("*.tfrecord*"))
    whole = path.read_bytes()
    records = list(scan_records(path))
    values = {}
    for key, feature in parse_example(records[0]).items():
        read = {"bytes": feature.bytes_list, "floats": feature.floats, "integers": feature.integers}
        value = read[feature.kind]() if feature.kind else []
        values[key] = list(map(bytes, value)) if isinstance(value, list) else value
    for key in data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=2)):
        values[key] = data.draw(LISTS)
    try:
        records[0] = serialize_example({key: value for key, value in values.items() if value is not None})
        write_records(path, records)
        read_all(name, sets / name, sets)
    finally:
        path.write_bytes(whole)


def read_lerobot(folder: Path, cards: Path) -> None:
    try:
        for _ in LerobotEpisodes(folder, card_of(cards), camera=WRIST, skip_bad=True):
            pass
    except LlarvaError:
        pass


@given(st.data(), st.sampled_from(["info.json", "episodes.jsonl", "tasks.jsonl"]))
@settings(max_examples=100, deadline=None)
def test_spoilt_metadata_of_lerobot(sets: Path, data: st.DataObject, file: str) -> None:
    path = sets / "lerobot" / "meta" / file
    whole = path.read_bytes()
    lines = [whole] if file == "info.json" else whole.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = spoilt(json.loads(lines[number]), data).encode()
    try:
        path.write_bytes(b"\n".join(lines))
        read_lerobot(sets / "lerobot", sets)
    finally:
        path.write_bytes(whole)


COLUMNS = st.one_of(
    st.sampled_from([pa.string(), pa.list_(pa.int64()), pa.binary(), pa.float32(), pa.int8(), pa.bool_(), pa.null()]),
)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_spoilt_columns_of_lerobot(sets: Path, data: st.DataObject) -> None:
    path = sets / "lerobot/data/chunk-000/episode_000001.parquet"
    whole = path.read_bytes()
    table = pq.read_table(path)
    at = data.draw(st.integers(0, table.num_columns - 1))
    kind = data.draw(COLUMNS)
    value = {"string": "x", "list<item: int64>": [1], "binary": b"\xff", "float": 0.5, "int8": 1, "bool": True}
    cells = pa.array([value.get(str(kind))] * table.num_rows, kind)
    try:
        pq.write_table(table.set_column(at, table.column_names[at], cells), path)
        read_lerobot(sets / "lerobot", sets)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"splits": 5}, "'splits' must be a list"),
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": 7}]}, "filepathTemplate must be"),
        ({"splits": [{"name": "train", "shardLengths": [], "numShards": [1]}]}, "numShards be one"),
        ({"splits": [{"name": "train", "shardLengths": "12"}]}, "shardLengths must list"),
        ({"splits": [{"name": "train", "shardLengths": [1e400]}]}, "must list numbers"),
    ],
)
def test_what_a_data_set_says_of_itself(sets: Path, tmp_path: Path, info: dict[str, Any], told: str) -> None:
    shutil.copytree(sets / "scalars", tmp_path / "scalars")
    path = next((tmp_path / "scalars").rglob("dataset_info.json"))
    path.write_text(json.dumps({"name": "scalars", **info}))
    with pytest.raises(SourceError, match=told) as caught:
        open_tfds(tmp_path / "scalars")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"dtype": "float32", "shape": {"dimensions": [1e400]}}, "is not a length"),
        ({"dtype": "float32", "shape": {"dimensions": [2**70]}}, "is above"),
        ({"dtype": "a,,b", "shape": {}}, "numbers of type 'a,,b' are not read"),
        ({"dtype": "(2)f4", "shape": {}}, "are not read"),
        ({"dtype": "object", "shape": {}, "encoding": "bytes"}, "are not read"),
        ({"dtype": "bfloat16", "shape": {}, "encoding": "zlib"}, "stored as bytes is not read"),
    ],
)
def test_features_that_cannot_be(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    path = tmp_path / "features.json"
    tensor = {"pythonClassName": "x.Tensor", "tensor": content}
    path.write_text(json.dumps({"pythonClassName": "x.FeaturesDict", "featuresDict": {"features": {"force": tensor}}}))
    try:
        assert told in (read_features(path)["force"].problem or "")
    except SourceError as error:
        assert told in str(error) and "'force'" in str(error) and str(path) in str(error)


@pytest.mark.parametrize(
    ("leaf", "lists"),
    [
        (("float32", (None, None), (None,), "bytes"), {"/value": [b"\0" * 8], "/shape": np.array([1, 2, 3])}),
        (("float32", (0, None), (), "none"), {"": np.zeros(0, np.float32)}),
        (("object", (2,), (None,), "bytes"), {"": [b"\0" * 16]}),
        (("float32", (2**31, 2**31, 2**31), (None,), "none"), {"": np.zeros(0, np.float32)}),
    ],
)
def test_tensors_that_cannot_be(leaf: tuple[Any, ...], lists: dict[str, Any]) -> None:
    dtype, shape, lengths, encoding = leaf
    record = parse_example(serialize_example({f"steps/s{key}": value for key, value in lists.items()}))
    with pytest.raises(ExampleError, match="feature 'steps/s'"):
        decode(Leaf("steps/s", "tensor", dtype, shape, lengths, encoding), record)


def test_success_that_is_text(sets: Path, tmp_path: Path) -> None:
    card = tmp_path / "flat_seven.md"
    text = SETS["flat_seven"].card
    assert "success: steps/reward" in text
    card.write_text(text.replace("success: steps/reward", "success: steps/language_instruction"))
    with pytest.raises(SourceError, match=r"fields\.success 'steps/language_instruction' is not a number but text"):
        RldsEpisodes(sets / "flat_seven", load_card(card))


@pytest.mark.parametrize("size", [0, -3, "many", 2.5, None])
def test_folders_of_no_episodes(sets: Path, tmp_path: Path, size: object) -> None:
    shutil.copytree(sets / "lerobot", tmp_path / "lerobot")
    path = tmp_path / "lerobot/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunks_size": size}))
    with pytest.raises(SourceError, match=r"info\.json: 'chunks_size' must be a positive whole number"):
        LerobotEpisodes(tmp_path / "lerobot", card_of(tmp_path))


def test_half_a_surrogate_pair_in_a_path(tmp_path: Path) -> None:
    entry = {"id": "1", "image": "set/1/\ud800/2.png", "conversations": [{"from": "human", "value": "a"}]}
    entry["conversations"].append({"from": "gpt", "value": "b"})
    with pytest.raises(Unreadable, match="image holds half a surrogate pair"):
        entry_turns(entry)
    path = tmp_path / "list.json"
    path.write_text(json.dumps([entry]))
    report = LlavaReport()
    assert list(group_rows(LlavaJson(path, lambda human, answer: pytest.fail("not parsed")), report)) == []
    assert report.counts() == {"image holds half a surrogate pair, which is no text": 1}
