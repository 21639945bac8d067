"""Who plays does not matter: one process, several, or Ray; and a worker that dies costs a batch, not the run."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_world import Patches, make_checkpoint
from test_evaluation import facts

from llarva.evaluation.players import Played
from llarva.evaluation.rollouts import Repeat, evaluate, read_repeat
from llarva.evaluation.rows import EvaluationError
from llarva.evaluation.scenes import EvaluationConfig
from llarva.evaluation.sharding import PATIENCE, Report, Team, next_part
from llarva.models.checkpoints import save_checkpoint


def patches(task: str, config: EvaluationConfig, size: int) -> Patches:
    return Patches()


class Deadly(Patches):
    """Ends its process at the third step, once per file that it can take away."""

    folder: Path

    def step(self, action: Any) -> Any:
        if self.steps == 2:
            for lot in self.folder.glob("lot-*"):
                lot.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def deadly(task: str, config: EvaluationConfig, size: int) -> Patches:
    env = Deadly()
    env.folder = Path(config.out_dir).parent
    return env


def broken(task: str, config: EvaluationConfig, size: int) -> Patches:
    raise RuntimeError("out of order")


def started(folder: Path, **changes: Any) -> EvaluationConfig:
    home = folder / "checkpoint"
    if not home.exists():
        made = make_checkpoint()
        save_checkpoint(home, made.model, made.processor, made.format, made.info)
    config = EvaluationConfig(str(home), str(folder / "out"), tasks=("one", "two"), episodes=5, batch=2, videos=1)
    return replace(config, **changes)


def test_workers_change_nothing_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    one = evaluate(started(tmp_path), make_env=patches, progress=False)
    (tmp_path / "lot-1").touch()
    config = started(tmp_path, out_dir=str(tmp_path / "two"), workers=2, repeats=2)
    two = evaluate(config, make_env=deadly, progress=False)
    assert not (tmp_path / "lot-1").exists(), "a worker was killed"
    assert facts(one) == facts(two)
    assert sorted(path.name for path in one.rglob("*.gif")) == sorted(path.name for path in two.rglob("*.gif"))
    assert read_repeat(two) == Repeat((0, 5), 3, 3) and not list(tmp_path.rglob("*.partial"))
    # Another number of workers goes on with the same folder.
    assert evaluate(replace(config, workers=1, repeats=0), make_env=patches, progress=False) == two


def test_errors_of_workers_are_told_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of order") as raised:
        evaluate(started(tmp_path, workers=2, episodes=2), make_env=broken, progress=False)
    assert any("test_evaluation_sharding" in note for note in raised.value.__notes__), "and where they arose"
    config = started(tmp_path, workers=2, out_dir=str(tmp_path / "other"), episodes=2)
    with pytest.raises(EvaluationError, match="is not the checkpoint that this evaluation began with"):
        evaluate(config, checkpoint=make_checkpoint(1), make_env=patches, progress=False)


def test_ray_gives_the_same_rows(ray: object, tmp_path: Path) -> None:
    one = evaluate(started(tmp_path), make_env=patches, progress=False)
    (tmp_path / "lot-1").touch()
    config = started(tmp_path, out_dir=str(tmp_path / "ray"), workers=2, executor="ray")
    assert facts(evaluate(config, make_env=deadly, progress=False)) == facts(one)
    assert not (tmp_path / "lot-1").exists(), "an actor was killed"
    with pytest.raises(RuntimeError, match="out of order"):
        evaluate(replace(config, out_dir=str(tmp_path / "broken")), make_env=broken, progress=False)
    config = replace(config, out_dir=str(tmp_path / "other"))
    with pytest.raises(EvaluationError, match="is not the checkpoint that this evaluation began with"):
        evaluate(config, checkpoint=make_checkpoint(1), make_env=patches, progress=False)


def test_ray_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(EvaluationError, match=r"llarva\[scale\]"):
        evaluate(started(tmp_path, executor="ray"), make_env=patches, progress=False)


class Paper:
    """A crew whose workers die as told: the k-th order is the end of its worker where `deaths[k]` is true."""

    def __init__(self, deaths: Sequence[bool]) -> None:
        self.deaths, self.count, self.given, self.news = list(deaths), 0, 0, list[Report]()
        self.busy = set[int]()

    def hire(self) -> None:
        self.count += 1
        self.news.append(Report(self.count))

    def give(self, worker: int, part: int) -> None:
        assert worker not in self.busy
        self.busy.add(worker)
        dies = self.given < len(self.deaths) and self.deaths[self.given]
        self.given += 1
        self.news.append(Report(worker, died=True) if dies else Report(worker, Played(part, [], {})))

    def wait(self) -> Report:
        report = self.news.pop(0)
        self.busy.discard(report.worker)
        return report

    def dismiss(self) -> None:
        self.news.clear()


@settings(max_examples=60, deadline=None)
@given(st.text("abc", min_size=1, max_size=9), st.integers(1, 4), st.lists(st.booleans(), max_size=12))
def test_every_batch_is_played_once_whoever_dies(names: str, workers: int, deaths: list[bool]) -> None:
    tasks, crew = dict(enumerate(names)), Paper(deaths)
    team, played = Team(crew, workers, tasks), list[int]()
    try:
        played += [one.part for one in team.play(list(tasks))]
    except EvaluationError as error:
        assert f"{PATIENCE} workers died" in str(error) and sum(deaths) >= PATIENCE
    else:
        assert sorted(played) == list(tasks)
        assert any(deaths) or [one.part for one in team.play([0])] == [0], "a team plays again"
    assert len(set(played)) == len(played) and crew.count <= workers + sum(deaths)


def test_workers_stay_with_their_task() -> None:
    waiting = {3: "a", 4: "b", 5: "b", 6: "c"}
    assert next_part(waiting, "b", ["a"]) == 4 and next_part(waiting, "z", ["a", "b"]) == 6
    assert next_part(waiting, None, ["a", "b", "c"]) == 3 and next_part(waiting, None, []) == 3


@pytest.mark.parametrize("changes,says", [
    ({"executor": "rai"}, "Did you mean 'ray'"), ({"workers": 0}, "workers must be at least 1"),
    ({"repeats": -1}, "repeats must be at least 0"),
])
def test_wrong_settings(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        EvaluationConfig("c", "o", **changes)
