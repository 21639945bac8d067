"""Draw the pictures of the README: one scene of every task with the trace to be predicted (docs/images/tasks.png)."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llarva.episodes.records import decode_image
from llarva.evaluation.video import along
from llarva.tabletop.demos import DemoConfig, record_episode
from llarva.tabletop.simulation import Simulation
from llarva.tabletop.tasks.registry import TASKS, get_task
from llarva.traces.cleaning import resample_by_arc_length
from llarva.traces.projection import project_episode

ROOT = Path(__file__).resolve().parent.parent
SIDE, GAP, WORDS = 256, 6, 40


def with_trace(image: np.ndarray, points: np.ndarray, fine: int = 4) -> Image.Image:
    """`image` with a trace drawn `fine` times larger and reduced again, so that its edges are smooth."""
    canvas = Image.fromarray(image).resize((fine * image.shape[1], fine * image.shape[0]), Image.Resampling.BICUBIC)
    pen, places = ImageDraw.Draw(canvas), [(fine * x, fine * y) for x, y in points.tolist()]
    for i, (start, end) in enumerate(pairwise(places)):
        pen.line([start, end], fill=along(i / (len(places) - 1)), width=3 * fine, joint="curve")
    for i, (x, y) in enumerate(places):
        radius = fine * (5 if i + 1 == len(places) else 2.2)
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=along(i / (len(places) - 1)))
    return canvas.resize((image.shape[1], image.shape[0]), Image.Resampling.LANCZOS)


def panel(task: str) -> Image.Image:
    """The first image of a demonstration with its trace, and the instruction below."""
    simulation = Simulation(get_task(task), SIDE)
    config = DemoConfig(task=task, episodes=1, out_dir="", seed=3, frames_per_episode=1, image_size=SIDE, kicks=0)
    episode = next(e for k in range(20) if (e := record_episode(simulation, config, k)) is not None)
    trace = resample_by_arc_length(project_episode(episode), 14)
    image = decode_image(episode.steps[0].image or b"")
    canvas = Image.new("RGB", (SIDE, SIDE + WORDS), "white")
    canvas.paste(with_trace(image, trace.points))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    lines: list[str] = [""]
    for word in min(episode.instructions, key=len).split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if pen.textlength(longer, font) < SIDE - 8 else [*lines, word]
    pen.text((4, SIDE + 4), "\n".join(lines[:2]), fill="#1b2433", font=font)
    return canvas


if __name__ == "__main__":
    panels = [panel(task) for task in TASKS]
    width = len(panels) * (SIDE + GAP) - GAP
    picture = Image.new("RGB", (width, SIDE + WORDS), "white")
    for k, one in enumerate(panels):
        picture.paste(one, (k * (SIDE + GAP), 0))
    path = ROOT / "docs" / "images" / "tasks.png"
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
