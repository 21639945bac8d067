"""LLaVA JSON: there and back, hostile lists, damaged files."""

import json

import numpy as np
import pytest

from llarva.episodes.records import encode_image
from llarva.instructions.dataset import RowStore
from llarva.instructions.format import InstructionFormat
from llarva.instructions.llava_json import export_llava, import_llava, import_row
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.rows import RowError
from llarva.sources.json_list import read_entries
from llarva.sources.opcodes import SourceError

PLAIN = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 1, 1, 2, (16, 16))
STATE = np.linspace(-0.5, 0.5, 8)[None]


def row(name, colour=0):
    return {
        "id": name,
        "image": encode_image(np.full((16, 16, 3), colour, np.uint8)),
        "prompt": PLAIN.prompt("wave", STATE, "joint_velocity"),
        "answer": PLAIN.answer([[1, 2], [3, 4]], STATE, "joint_velocity"),
    }


def test_there_and_back(tmp_path):
    rows = [row(f"wave-{e}/{t:05d}", 10 * t) for e in range(2) for t in range(3)]
    assert export_llava(iter(rows), tmp_path / "out") == 6
    listed = json.loads((tmp_path / "out/train.json").read_text())
    assert listed[0]["conversations"] == [
        {"from": "human", "value": rows[0]["prompt"]},
        {"from": "gpt", "value": rows[0]["answer"]},
    ]
    assert (tmp_path / "out" / listed[4]["image"]).read_bytes() == rows[4]["image"]
    outcome = import_llava(tmp_path / "out/train.json", tmp_path / "out", PLAIN, tmp_path / "back")
    assert outcome.rows == 6 and not outcome.refused
    for back, original in zip(RowStore(tmp_path / "back"), rows, strict=True):
        assert all(back[key] == original[key] for key in original)
        assert back["episode_id"] == original["id"].split("/")[0] and back["control_mode"] == "joint_velocity"


def test_nothing_to_export_is_an_empty_list(tmp_path):
    assert export_llava([], tmp_path) == 0
    assert list(read_entries(tmp_path / "train.json")) == []


def test_ids_are_not_trusted_as_paths(tmp_path):
    export_llava(
        [row("../../evil"), row("/etc/passwd", 1), row("a\\..\\b\x00", 2), row("..", 3)], tmp_path / "deep/out"
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 and all(path.is_relative_to(tmp_path / "deep/out") for path in files)
    with pytest.raises(RowError, match="would overwrite"):
        export_llava([row("a b"), row("a_b")], tmp_path / "clash")


def refusal(entry, folder):
    with pytest.raises(RowError) as caught:
        import_row(entry, folder, PLAIN)
    return str(caught.value)


def test_every_reason_for_refusing_an_entry(tmp_path):
    export_llava([row("a/0")], tmp_path)
    good = json.loads((tmp_path / "train.json").read_text())[0]
    assert import_row(good, tmp_path, PLAIN)["id"] == "a/0"
    human, answer = good["conversations"]

    def changed(human_text=human["value"], answer_text=answer["value"]):
        return good | {"conversations": [human | {"value": human_text}, answer | {"value": answer_text}]}

    for shapeless, reason in (
        (None, "not an object"),
        ([], "not an object"),
        ({}, "two turns"),
        (good | {"conversations": [human]}, "two turns"),
        (good | {"conversations": 5}, "two turns"),
        (good | {"conversations": [human, answer, human, answer]}, "two turns"),
        (good | {"image": 7}, "image is missing"),
        (good | {"id": None}, "id is missing"),
        (changed(answer_text=None), "gpt is missing"),
    ):
        assert reason in refusal(shapeless, tmp_path)
    assert "human and gpt" in refusal(good | {"conversations": [answer, human]}, tmp_path)
    assert "prompt does not read back" in refusal(changed(human_text="What is this?"), tmp_path)
    assert "answer does not read back" in refusal(changed(answer_text=answer["value"][:-9]), tmp_path)
    outside = tmp_path.parent / "outside.png"
    outside.write_bytes(row("x")["image"])
    (tmp_path / "link.png").symlink_to(outside)
    for path in ("../outside.png", str(outside), "link.png"):
        assert "leaves the image folder" in refusal(good | {"image": path}, tmp_path)
    assert "cannot be read" in refusal(good | {"image": "none.png"}, tmp_path)
    assert "cannot be read" in refusal(good | {"image": "a\x00b"}, tmp_path)
    assert "no PNG or JPEG" in refusal(good | {"image": "train.json"}, tmp_path)
    (tmp_path / "large.png").write_bytes(encode_image(np.zeros((8, 24, 3), np.uint8)))
    assert "8×24 instead of 16×16" in refusal(good | {"image": "large.png"}, tmp_path)


def test_refusals_are_counted_by_reason_with_the_first_example(tmp_path):
    export_llava([row(f"a/{t}") for t in range(5)], tmp_path)
    entries = json.loads((tmp_path / "train.json").read_text())
    for t in (1, 3):
        entries[t]["conversations"][1]["value"] += "!"
    entries[4] = "nonsense"
    (tmp_path / "train.json").write_text(json.dumps(entries))
    outcome = import_llava(tmp_path / "train.json", tmp_path, PLAIN, tmp_path / "back")
    reason = "the answer does not read back: expected the end of the text"
    assert outcome.rows == 2 and outcome.refused[reason] == 2 and outcome.examples[reason] == "a/1"
    assert outcome.report().splitlines()[0] == "2 rows imported, 3 refused"


def test_a_damaged_list_is_the_sources_error(tmp_path):
    (tmp_path / "bad.json").write_text('[{"a": 1}, {"b')
    with pytest.raises(SourceError, match=r"bad.json: entry 1 \(byte 11\)"):
        import_llava(tmp_path / "bad.json", tmp_path, PLAIN, tmp_path / "back")
