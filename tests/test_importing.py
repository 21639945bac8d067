"""Imports: other data from its own files to rows, a training and a policy, in its own numbers."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llarva.cameras import intrinsics_from_fov, project
from llarva.cards import load_card, load_cards
from llarva.episodes.records import Episode, EpisodeError, Step, decode_image, decode_mask, encode_image
from llarva.episodes.resizing import FITS, Resizing, resize_episode, resize_mask, resize_picture
from llarva.episodes.store import EpisodeStore
from llarva.errors import LlarvaError
from llarva.instructions.dataset import RowStore, build_rows, fit_numbers, own_modes
from llarva.instructions.format import InstructionFormat
from llarva.instructions.rows import BuildConfig, RowError
from llarva.metrics import read_metrics
from llarva.models.checkpoints import load_checkpoint
from llarva.policy import Policy, PolicyError
from llarva.runs import run_notebook
from llarva.sources.imported import card_of
from llarva.sources.importing import ImportConfig, import_episodes
from llarva.sources.opcodes import SourceError
from llarva.sources.rlds_writer import write_rlds
from llarva.traces.projection import Trace

SIDE = 128


def episode(seed: int, height: int = 48, width: int = 64) -> Episode:
    rng = np.random.default_rng(seed)
    steps = [
        Step(
            state=rng.normal(size=5).astype(np.float32),
            gripper_open=float(t % 2),
            image=encode_image(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)),
            action=None if t == 6 else np.append(rng.normal(0, 0.01, 3), t % 2).astype(np.float32),
        )
        for t in range(7)
    ]
    return Episode(f"pot/{seed}", "pots", "widowx", "end_effector_motion", ("close the pot",), "pot", 0, seed, True,
                   tuple(steps))  # fmt: skip


LAYOUT = (("delta x", "m"), ("delta y", "m"), ("delta z", "m"), ("gripper", "1 = open"))


@pytest.fixture(scope="module")
def pots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in RLDS with its card, in four numbers per action and five per state."""
    folder = tmp_path_factory.mktemp("pots")
    write_rlds(folder, [episode(seed) for seed in range(3)], "pots", layout=LAYOUT)
    return folder


def configure(pots: Path, out: Path, **changes: object) -> ImportConfig:
    return ImportConfig("rlds", str(pots / "pots"), str(out), str(pots / "pots.md"), **changes)


def test_from_files_to_a_policy(pots: Path, tmp_path: Path) -> None:
    """Import, label, train and drive in the data set's own state and actions."""
    where = {"source": "rlds", "folder": str(pots / "pots"), "card": str(pots / "pots.md")}
    run_notebook("import", tmp_path / "import", {**where, "image_size": [SIDE, SIDE]})
    metrics = read_metrics(tmp_path / "import")["metrics"]
    assert (metrics["episodes"], metrics["images"], metrics["left_out"]) == (3, 21, [])
    label = {"episodes": [metrics["store"]], "cards": str(pots), "trace_share": 0.0}
    run_notebook("label", tmp_path / "label", label)
    rows = RowStore(tmp_path / "label" / "rows")
    mode = rows.format.control_mode("end_effector_motion")
    assert mode.own_state and mode.action_size == 4 and mode.state_size == 5
    first = next(iter(rows))
    asked = rows.format.parse_prompt(first["prompt"])
    assert asked.control_mode == mode.name and not asked.with_trace and "WidowX" in first["prompt"]
    assert rows.format.parse(first["answer"], mode.name, False).actions.shape == (4, 4)
    small = {"steps": 2, "batch_size": 4, "width": 32, "vision_layers": 1, "text_layers": 1}
    run_notebook("train", tmp_path / "train", {**small, "rows": [str(tmp_path / "label" / "rows")]})
    policy = Policy(load_checkpoint(tmp_path / "train" / "checkpoint"), mode.name, with_trace=False)
    policy.reset(["close the pot"])
    seen = {"image": np.zeros((SIDE, SIDE, 3), np.uint8), "state": np.zeros(5), "gripper_open": np.ones(1)}
    (action,), _ = policy.step([seen])
    assert action.shape == (4,) and np.isfinite(action).all()
    with pytest.raises(PolicyError, match="5 numbers"):
        policy.step([{**seen, "state": np.zeros(7)}])


def test_rows_say_what_the_data_says(pots: Path, tmp_path: Path) -> None:
    summary = import_episodes(configure(pots, tmp_path / "import", image_size=(SIDE, SIDE)), progress=False)
    label = {"episodes": [str(summary.store)], "cards": str(pots), "trace_share": 0.0}
    run_notebook("label", tmp_path / "label", label)
    rows = RowStore(tmp_path / "label" / "rows")
    ranges = rows.format.numbers.ranges["action:end_effector_motion"]
    assert (ranges.lower[3], ranges.upper[3]) == (0.0, 1.0)
    row = next(iter(rows))
    state = rows.format.parse_prompt(row["prompt"]).states[0]
    wide = np.subtract(rows.format.numbers.ranges["state:end_effector_motion"].upper, -3.5)
    stored = EpisodeStore(summary.store)[0].steps[row["step"]].state
    np.testing.assert_allclose(state, stored, atol=wide.max() / 255)


def test_traces_that_somebody_else_finds(pots: Path, tmp_path: Path) -> None:
    """A detector's traces are written where it finds any; the other rows ask for none, and are counted."""
    summary = import_episodes(configure(pots, tmp_path / "import", image_size=(SIDE, SIDE)), progress=False)
    store = EpisodeStore(summary.store)
    modes = own_modes(store, load_cards(pots))
    numbers = fit_numbers(store, modes, (SIDE, SIDE))
    form = InstructionFormat("llarva-workbench-v1", numbers, "widowx", 1, 2, 4, (SIDE, SIDE), modes)
    config = BuildConfig(form, {modes[0].name: 1.0}, traced_by="a person")
    with pytest.raises(RowError, match="calibrated camera"):
        build_rows(store, config, tmp_path / "none")

    def find(episode: Episode) -> Trace | None:
        points = np.linspace((10, 20), (70, 80), len(episode.steps)).astype(np.float32)
        seen = np.ones(len(points), bool)
        return None if episode.episode_id == store[1].episode_id else Trace(points, seen, "detection")

    built = build_rows(store, config, tmp_path / "rows", traces_of=find)
    assert (built.rows, built.untraced) == (18, 6) and "6 rows ask for no trace" in built.report()
    rows = list(RowStore(tmp_path / "rows"))
    assert RowStore(tmp_path / "rows").summary.untraced == 6
    for row in rows:
        asked = form.parse_prompt(row["prompt"])
        assert asked.with_trace == (row["episode_id"] != store[1].episode_id)
        answer = form.parse(row["answer"], modes[0].name, asked.with_trace)
        if asked.with_trace:
            ends = [[10 + 10 * row["step"], 20 + 10 * row["step"]], [70, 80]]
            np.testing.assert_allclose(answer.trace[[0, -1]], ends, atol=0.3)


def test_two_meanings_of_one_mode_are_refused(pots: Path, tmp_path: Path) -> None:
    store = EpisodeStore(import_episodes(configure(pots, tmp_path / "one"), progress=False).store)
    card = load_card(pots / "pots.md")
    assert [mode.name for mode in own_modes([store, store], {"pots": card})] == ["end_effector_motion"]
    for others in ({}, load_cards("data_cards")):
        for ask in (own_modes, card_of):
            with pytest.raises(SourceError, match="imported by the card 'pots', and means nothing without it"):
                ask(store, others)
    for edited, right in ((dataclasses.replace(card, text="told anew"), True),
                          (dataclasses.replace(card, rate_hz=77.0), False)):
        with nullcontext() if right else pytest.raises(SourceError, match="by the card 'pots', before it was edited"):
            assert card_of(store, {"pots": edited}) is edited
    other = dataclasses.replace(store[0], dataset="pans", episode_id="pan")
    write = write_rlds(tmp_path / "pans", [other], "pans", layout=(*LAYOUT[:2], ("delta yaw", "rad"), LAYOUT[3]))
    chosen = ImportConfig("rlds", str(write.parent), str(tmp_path / "two"), str(tmp_path / "pans" / "pans.md"))
    pans = EpisodeStore(import_episodes(chosen, progress=False).store)
    with pytest.raises(RowError, match="something else"):
        own_modes([store, pans], {"pots": card, "pans": load_card(tmp_path / "pans" / "pans.md")})


def test_an_import_goes_on_and_mixes_nothing(pots: Path, tmp_path: Path) -> None:
    whole = import_episodes(configure(pots, tmp_path / "whole", keep_every=3), progress=False)
    begun = import_episodes(configure(pots, tmp_path / "parts", keep_every=3, limit=1), progress=False)
    ended = import_episodes(configure(pots, tmp_path / "parts", keep_every=3), progress=False)
    assert (begun.added, ended.added, ended.episodes) == (1, 2, 3) and whole.images == 9
    one, other = (sorted((s.store / "data").iterdir()) for s in (whole, ended))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    with pytest.raises(SourceError, match="keep_every"):
        import_episodes(configure(pots, tmp_path / "parts", keep_every=2), progress=False)


def test_what_is_left_out_is_listed(pots: Path, tmp_path: Path) -> None:
    broken = tmp_path / "pots"
    files = [p for p in (pots / "pots").rglob("*") if p.is_file()]
    for file in files:
        target = broken / file.relative_to(pots / "pots")
        target.parent.mkdir(parents=True, exist_ok=True)
        data = file.read_bytes()
        target.write_bytes(data[: len(data) * 2 // 3] if "tfrecord" in file.name else data)
    chosen = ImportConfig("rlds", str(broken), str(tmp_path / "out"), str(pots / "pots.md"))
    with pytest.raises(SourceError, match="tfrecord"):
        import_episodes(chosen, progress=False)
    going = dataclasses.replace(chosen, skip_bad=True, out_dir=str(tmp_path / "going"))
    summary = import_episodes(going, progress=False)
    assert 0 < summary.episodes < 3 and len(summary.left_out) >= 1 and "tfrecord" in str(summary.left_out[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"source": "hdf5"}, "'hdf5'"),
        ({"fit": "crop"}, "'crop'"),
        ({"keep_every": 0}, "at least 1"),
        ({"card": None}, "card"),
    ],
)
def test_what_cannot_be_imported(changes: dict, told: str) -> None:
    with pytest.raises(LlarvaError, match=told):
        ImportConfig(**{"source": "rlds", "folder": "x", "out_dir": "y", "card": "z", **changes})


SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))


@given(SIZES, SIZES, st.sampled_from(FITS), st.integers(0, 2**31))
def test_projection_and_resizing_commute(source: tuple, target: tuple, fit: str, seed: int) -> None:
    how, rng = Resizing(source, target, fit), np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-0.3, 0.3, (9, 2)), rng.uniform(0.5, 3, 9)])
    lens = intrinsics_from_fov(0.8, source)
    np.testing.assert_allclose(
        project(points, how.matrix @ lens, np.eye(4))[0], how.pixels(project(points, lens, np.eye(4))[0]), atol=1e-9
    )
    corners = how.pixels([[0, 0], source[::-1]])
    assert (corners >= -1e-9).all() and (corners[1] <= np.array(target[::-1]) + 1e-9).all()


@given(SIZES, SIZES, st.sampled_from(FITS))
def test_masks_follow_pictures(source: tuple, target: tuple, fit: str) -> None:
    """Where a mask of picture size is set, the resized picture is bright, and the other way round, but for borders."""
    how, half = Resizing(source, target, fit), source[1] // 2
    picture = np.zeros((*source, 3), np.uint8)
    picture[:, half:] = 255
    mask = resize_mask((picture[:, :, 0] > 0).astype(np.uint8), Resizing(source, source, "stretch"))
    assert np.array_equal(mask, picture[:, :, 0] > 0)
    small = resize_picture(picture, how)
    assert small.shape == (*target, 3)


def test_everything_in_the_image_moves_together() -> None:
    lens = intrinsics_from_fov(0.8, (48, 64)).astype(np.float32)
    mask = np.zeros((6, 8), np.uint8)
    mask[2, 5] = 1
    known = {"camera_intrinsics": lens, "object_points": {"pot": (44.0, 20.0)}, "segmentation": encode_image(mask)}
    steps = tuple(dataclasses.replace(step, **known) for step in episode(0).steps)
    moved = resize_episode(dataclasses.replace(episode(0), steps=steps), (128, 128))
    step = moved.steps[0]
    assert step.object_points["pot"] == (88.0, 56.0) and decode_image(step.image).shape == (128, 128, 3)
    assert step.camera_intrinsics.dtype == np.float32 and step.camera_intrinsics[1, 2] == pytest.approx(64)
    assert decode_mask(step.segmentation).shape == (6, 8) and decode_mask(step.segmentation)[:, 5].any()
    assert resize_episode(moved, (128, 128)) is moved


def test_episodes_of_several_sizes_are_refused() -> None:
    mixed = dataclasses.replace(episode(0), steps=(*episode(0).steps[:3], *episode(1, 50, 50).steps[3:]))
    with pytest.raises(EpisodeError, match="several sizes"):
        resize_episode(mixed, (32, 32))
