"""A row store of any size, made up, and how much memory it takes to use: `python big_rows.py PHASE FOLDER`."""

import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llarva.episodes.records import encode_image
from llarva.instructions.dataset import RowStore
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import DecimalNumbers
from llarva.instructions.shards import complete_index, note_shard, open_index, write_shard

FORMAT = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 1, 2, 4, (48, 64))
STEPS, EPISODES, TASKS = 200, 32, 37  # of an episode, of a shard, of the store


def write_big(folder: Path, rows: int) -> int:
    """Write a store of about `rows` rows, each of whose tasks has a few hundred instructions; returns how many."""
    rng, image = np.random.default_rng(0), encode_image(np.zeros((8, 8, 3), np.uint8))
    states = rng.normal(size=(STEPS, 1, 8)).astype(np.float32)
    traces = rng.uniform(0, 48, (STEPS, 4, 2)).astype(np.float32)
    answers = [FORMAT.answer(trace, rng.normal(size=(2, 8)).astype(np.float32), "joint_velocity") for trace in traces]
    index = open_index(folder, {"format": FORMAT.to_json()}, [])
    count = -(-rows // (STEPS * EPISODES))
    for number in range(count):
        made, words = [], set()
        for episode in range(number * EPISODES, (number + 1) * EPISODES):
            task = f"task_{episode % TASKS}"
            said = f"do what is called {task} for the {episode % 5000}th time"
            prompt = FORMAT.prompt(said, states[episode % STEPS], "joint_velocity", with_trace=True)
            words.add(said)
            made += [
                {"id": f"made-up-{episode:07d}/{step:05d}", "image": image, "prompt": prompt, "answer": answers[step],
                 "episode_id": f"made-up-{episode:07d}", "step": step, "task": task, "variation": 0,
                 "template": FORMAT.template, "control_mode": "joint_velocity", "object_names": ["lamp"],
                 "object_points": [[3.0, 4.0]], "segmentation": None}
                for step in range(STEPS)
            ]  # fmt: skip
        entry = write_shard(folder, number, made) | {"episodes": EPISODES, "clipped": {}}
        note_shard(folder, number, entry, {"instructions": words, "object_names": {"lamp"}})
    complete_index(folder, index, count)
    return count * STEPS * EPISODES


def opening(folder: Path) -> None:
    store = RowStore(folder)
    assert len(store) and store.instructions and store.fingerprint()


def iterating(folder: Path) -> None:
    assert sum(1 for _ in RowStore(folder)) == len(RowStore(folder))


def sampling(folder: Path) -> None:
    from llarva.training.sampling import RowSampler, Sampling, count_rows, open_rows

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        rows = open_rows([folder], Path(cache))
        sampler = RowSampler(rows["task"], rows["step"], Sampling(), 0, count_rows([folder]))
        for step in range(20):
            assert [rows[int(k)]["id"] for k in sampler.draw(step)]


def passes(folder: Path) -> None:
    from llarva.training.passes import make_sampler
    from llarva.training.sampling import Sampling, count_rows, open_rows

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        rows = open_rows([folder], Path(cache))
        sampling = Sampling(order="passes", first_frame_share=0.0)
        sampler = make_sampler(rows["task"], rows["step"], sampling, 0, count_rows([folder]))
        for step in range(20):
            assert [rows[int(k)]["id"] for k in sampler.draw(step)]


PHASES: dict[str, Callable[[Path], None]] = {
    "opening": opening, "iterating": iterating, "sampling": sampling, "passes": passes
}  # fmt: skip


class Watch(threading.Thread):
    """The most memory of its own (kB, without pages of files that are only mapped) that this process ever had."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0, False

    def run(self) -> None:
        while not self.over:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]))
            time.sleep(0.01)


if __name__ == "__main__":
    phase, folder = sys.argv[1], Path(sys.argv[2])
    if phase in ("sampling", "passes"):
        import llarva.training.passes  # noqa: F401  what is imported is not what grows
    watch = Watch()
    watch.start()
    began = time.perf_counter()
    PHASES[phase](folder)
    seconds = time.perf_counter() - began
    watch.over = True
    watch.join()
    print(watch.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, f"{seconds:.1f}")
