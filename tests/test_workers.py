"""Who labels and audits does not matter: one process, several, Ray tasks, or the ones that are left after a kill."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import PLACES
from labelling import CONFIG, KillBeside, Result, Slowly, kill_at_zero, make_result, refuse
from test_instructions_rows import MODES, contents, episode

from llarva.cards import load_card
from llarva.episodes.records import EpisodeError
from llarva.episodes.store import EpisodeStore, EpisodeWriter
from llarva.episodes.stretches import Stretches
from llarva.instructions.dataset import RowStore, build_rows, fit_numbers
from llarva.instructions.rows import RowError
from llarva.traces.audit_findings import AuditError
from llarva.traces.audit_table import audit_store
from llarva.traces.decisions import decide
from llarva.traces.detection import EpisodeTracer
from llarva.traces.detection_model import Detector, DetectorSize, make_detector
from llarva.workers import PATIENCE, WorkError, share

EPISODES = 9
CARDS = Path(__file__).parents[1] / "data_cards"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    folder = tmp_path_factory.mktemp("workers") / "episodes"
    with EpisodeWriter(folder, "toy", episodes_per_shard=4) as writer:
        for seed in range(EPISODES):
            writer.write(episode(seed))
    return EpisodeStore(folder)


@pytest.fixture(scope="module")
def whole(store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as this process builds them."""
    folder = tmp_path_factory.mktemp("whole") / "rows"
    build_rows(store, CONFIG, folder, traces_of=Slowly())
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_killed_workers_are_replaced_and_change_nothing(store: EpisodeStore, whole: Path, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"lot-{number}").touch()
    summary = build_rows(store, CONFIG, tmp_path / "rows", traces_of=Slowly(str(tmp_path)), workers=3)
    assert not list(tmp_path.glob("lot-*")), "workers were killed"
    assert everything(tmp_path / "rows") == everything(whole) and summary.shards_written == 5
    again = build_rows(store, CONFIG, tmp_path / "rows", traces_of=refuse, workers=3)
    assert again.shards_written == 0 and everything(tmp_path / "rows") == everything(whole)


def test_what_always_kills_is_an_error_and_the_rest_is_kept(store: EpisodeStore, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=f"died {PATIENCE} times.* 1 pieces"):
        build_rows(store, CONFIG, tmp_path / "rows", traces_of=Slowly(poison=store.ids[5]), workers=2)
    with pytest.raises(RowError, match="unfinished"):
        RowStore(tmp_path / "rows")
    done = contents(whole)
    assert {path.name for path in tmp_path.glob("rows/data/*.parquet")} == set(done) - {"part-00002.parquet"}
    assert build_rows(store, CONFIG, tmp_path / "rows", traces_of=Slowly()).shards_written == 1
    assert everything(tmp_path / "rows") == everything(whole)


BUILD = """
import sys
from labelling import CONFIG, Slowly
from llarva.episodes.store import EpisodeStore
from llarva.instructions.dataset import build_rows
if __name__ == "__main__":
    build_rows(EpisodeStore(sys.argv[1]), CONFIG, sys.argv[2], traces_of=Slowly(seconds=0.05), workers=2)
"""


def workers_of(mark: str) -> list[str]:
    """Processes whose environment holds `mark`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes() and "State:\tZ" not in (place / "status").read_text():
                found.append(place.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_killed_parent_takes_its_workers_along_and_loses_no_shard(
    store: EpisodeStore, whole: Path, tmp_path: Path
) -> None:
    script, out, moments = tmp_path / "build.py", tmp_path / "rows", random.Random(int(time.time()))
    script.write_text(BUILD)
    mark = f"MARK={tmp_path}"
    env = {**os.environ, "PYTHONPATH": PLACES, "MARK": str(tmp_path)}
    kept = set[str]()
    for kill in (True, True, False):
        parent = subprocess.Popen([sys.executable, str(script), str(store.folder), str(out)], env=env)
        if kill:
            begun = len(list(out.glob("notes/*.json")))
            while parent.poll() is None and len(list(out.glob("notes/*.json"))) == begun:
                time.sleep(0.01)
            time.sleep(moments.random() * 0.2)
            parent.kill()
            parent.wait()
            late = time.monotonic() + 20
            while workers_of(mark) and time.monotonic() < late:
                time.sleep(0.05)
            assert not workers_of(mark)
        assert parent.wait() == (0 if parent.returncode == 0 else -signal.SIGKILL)
        times = {f"{path.name} {path.stat().st_mtime_ns}" for path in out.glob("data/part-*.parquet")}
        noted = {path.stem for path in out.glob("notes/*.json")}
        assert kept <= times, "a whole shard is made once"
        kept = {name for name in times if name.split(".")[0] in noted}
    assert everything(out) == everything(whole)


def test_shards_of_another_moment_count_for_nothing(store: EpisodeStore, whole: Path, tmp_path: Path) -> None:
    """A shard without its note, a note without its shard, a shard that was cut off, and half of one."""
    out = tmp_path / "rows"
    build_rows(store, CONFIG, out, traces_of=Slowly())
    index = json.loads((out / "store.json").read_text())
    entries = index["shards"]
    (out / "store.json").write_text(json.dumps(index | {"shards": entries[:1], "complete": False}))
    (out / "notes").mkdir()
    words = {"instructions": [], "object_names": []}
    for number in (2, 3):
        (out / "notes" / f"part-{number:05d}.json").write_text(json.dumps({"entry": entries[number], "words": words}))
    (out / entries[2]["file"]).unlink()
    (out / entries[3]["file"]).write_bytes((out / entries[3]["file"]).read_bytes()[:-10])
    (out / (entries[4]["file"] + ".17.partial")).write_bytes(b"half")
    assert build_rows(store, CONFIG, out, traces_of=Slowly()).shards_written == 4
    assert everything(out) == everything(whole)
    (out / "notes").mkdir()
    (out / "notes" / "part-00000.json").write_text("{")
    with pytest.raises(RowError, match="part-00000.json cannot be read"):
        build_rows(store, CONFIG, out, traces_of=Slowly())


def test_ranges_and_audits_are_the_same(store: EpisodeStore, tmp_path: Path) -> None:
    assert fit_numbers(store, MODES, (48, 64), sample=50, workers=2) == fit_numbers(store, MODES, (48, 64), sample=50)
    card = load_card(CARDS / "tabletop.md")
    one = audit_store(store, tmp_path / "one", card=card, episodes_per_part=2, traces=Slowly())
    (tmp_path / "lot-0").touch()
    dying = Slowly(str(tmp_path))
    two = audit_store(store, tmp_path / "two", card=card, episodes_per_part=2, traces=dying, workers=2)
    assert everything(one.folder) == everything(two.folder) and not (tmp_path / "lot-0").exists()
    (one.folder / "audit.json").unlink()
    with pytest.raises(AuditError, match="no audit.json belongs"):
        audit_store(store, one.folder, episodes_per_part=2, traces=Slowly())


def test_halves_of_an_audit_are_swept_away(store: EpisodeStore, tmp_path: Path) -> None:
    whole = audit_store(store, tmp_path / "whole", episodes_per_part=2)
    out = tmp_path / "cut"
    audit_store(store, out, episodes_per_part=2)
    index = json.loads((out / "audit.json").read_text())
    (out / "audit.json").write_text(json.dumps(index | {"parts": 0, "complete": False}))
    (out / "episodes" / "part-00001.parquet").unlink()
    for half in ("episodes/.part-00001.parquet", "findings/.whole.parquet", ".datasets.parquet"):
        (out / f"{half}.17.tmp").write_bytes(b"half")
    audit_store(store, out, episodes_per_part=2, workers=2)
    assert everything(out) == everything(whole.folder)


def test_whatever_comes_first_the_others_are_done() -> None:
    done = []
    with pytest.raises(WorkError, match=f"died {PATIENCE} times.* 1 pieces"):
        for number in share(kill_at_zero, range(12), workers=2):
            done.append(number)
    assert sorted(done) == list(range(1, 12))


def test_the_last_pieces_are_tried_alone(tmp_path: Path) -> None:
    done = []
    with pytest.raises(WorkError, match=f"died {PATIENCE} times.* 1 pieces"):
        for number in share(KillBeside(tmp_path), range(2), workers=2):
            done.append(number)
    assert done == [1]


def test_results_are_not_kept() -> None:
    results = share(make_result, range(20), workers=2)
    for _ in range(20):
        next(results)
    assert sum(type(one) is Result for one in gc.get_objects()) <= 2


def test_a_detector_travels(store: EpisodeStore, tmp_path: Path) -> None:
    tracer = EpisodeTracer(Detector(*make_detector(DetectorSize())), threshold=0.0)
    for workers in (1, 2):
        build_rows(store, CONFIG, tmp_path / str(workers), traces_of=tracer, workers=workers)
    assert everything(tmp_path / "1") == everything(tmp_path / "2")


def test_errors_of_workers_arrive(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(RowError, match="will not do"):
        build_rows(store, CONFIG, tmp_path / "rows", traces_of=refuse, workers=2)
    with pytest.raises(WorkError, match="cannot be sent"):
        build_rows(store, CONFIG, tmp_path / "rows", traces_of=lambda made: None, workers=2)
    with pytest.raises(WorkError, match="'thread'.*processes, ray"):
        build_rows(store, CONFIG, tmp_path / "rows", traces_of=Slowly(), executor="thread")
    for wrong in (0, -1, 1.5, "2", None):
        with pytest.raises(WorkError, match=f"at least 1, got {wrong!r}"):
            share(abs, [1], workers=wrong)  # type: ignore[arg-type]


def test_a_store_that_changes_under_way_is_refused(tmp_path: Path) -> None:
    def grow(seeds: range) -> EpisodeStore:
        with EpisodeWriter(tmp_path / "store", "toy", resume=True) as writer:
            for seed in seeds:
                writer.write(episode(seed))
        return EpisodeStore(tmp_path / "store")

    stretches = Stretches.of([grow(range(3))], [frozenset()], 2)
    grow(range(3, 5))
    with pytest.raises(EpisodeError, match="has changed"):
        list(stretches.read(0))


def test_stretches_cover_every_kept_episode_once(store: EpisodeStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 20):
        without = [frozenset(rng.choice(store.ids, 4, replace=False)), frozenset(store.ids), frozenset()]
        stretches = Stretches.of([store] * 3, without, size)
        read = [[made.episode_id for made in stretches.read(k)] for k in range(len(stretches))]
        assert [name for part in read for name in part] == [n for some in without for n in store.ids if n not in some]
        assert all(len(part) == size for part in read[:-1]) and 0 < len(read[-1]) <= size


def test_rejected_episodes_are_left_out_by_every_worker(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "store", "toy") as writer:
        for seed in range(5):
            writer.write(episode(seed))
    store = EpisodeStore(tmp_path / "store")
    decide(store.folder, "wave-1", "reject", "no")
    for workers in (1, 2):
        summary = build_rows(store, CONFIG, tmp_path / str(workers), traces_of=Slowly(), workers=workers)
        assert (summary.episodes, summary.rejected, summary.shards_written) == (4, 1, 2)
    assert everything(tmp_path / "1") == everything(tmp_path / "2")


def test_ray_gives_the_same_bytes(ray: object, store: EpisodeStore, whole: Path, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"lot-{number}").touch()
    summary = build_rows(store, CONFIG, tmp_path / "rows", traces_of=Slowly(str(tmp_path)), workers=2, executor="ray")
    assert not list(tmp_path.glob("lot-*")) and summary.shards_written == 5
    assert everything(tmp_path / "rows") == everything(whole)
    options = {"episodes_per_part": 2, "traces": Slowly()}
    one = audit_store(store, tmp_path / "a", **options)
    two = audit_store(store, tmp_path / "b", executor="ray", **options)
    assert everything(one.folder) == everything(two.folder)
    with pytest.raises(RowError, match="will not do"):
        build_rows(store, CONFIG, tmp_path / "refused", traces_of=refuse, workers=2, executor="ray")
    with pytest.raises(WorkError, match="died"):
        poison = Slowly(poison=store.ids[5])
        build_rows(store, CONFIG, tmp_path / "poison", traces_of=poison, workers=2, executor="ray")


def test_ray_says_how_to_get_it(store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkError, match=r"llarva\[scale\]"):
        build_rows(store, CONFIG, tmp_path / "rows", traces_of=Slowly(), executor="ray")
