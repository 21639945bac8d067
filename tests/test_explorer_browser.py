"""The trace explorer in a real browser: JupyterLab, headless Chromium, a slider moved by keyboard."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image, ImageDraw

from llarva.cameras import intrinsics_from_fov, look_at, project
from llarva.episodes.records import Episode, Step, encode_image
from llarva.episodes.store import EpisodeWriter
from llarva.sources.rlbench_writer import write_episode

sync_api = pytest.importorskip("playwright.sync_api", reason="The Python package playwright is not installed.")
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="No Chromium on this machine; install the package `chromium`."),
    pytest.mark.timeout(480),
]
NOTEBOOK = Path(__file__).parent.parent / "nbs" / "explore" / "traces.ipynb"
SIZE = 96


def episode(name: str, steps: int, *, every: int = 1) -> Episode:
    """A tip that wanders over a drawn floor and leaves the picture; every `every`-th frame is kept."""
    intrinsics, pose = intrinsics_from_fov(0.7, (SIZE, SIZE)), look_at((1.35, 0, 1.58), (0, 0, 0.9))
    turn = np.linspace(0, 1.6 * np.pi, steps)
    tips = np.stack([0.2 * np.cos(turn), 0.62 * np.sin(turn), 1.0 + 0.1 * np.sin(2 * turn)], axis=1)
    records = []
    for t in range(steps):
        canvas = Image.new("RGB", (SIZE, SIZE), (176, 148, 118))
        x, y = project(tips[t], intrinsics, pose)[0]
        ImageDraw.Draw(canvas).ellipse([x - 4, y - 4, x + 4, y + 4], fill=(60, 60, 70))
        last, velocity = t + 1 == steps, (0.4 * np.sin(turn[t] + np.arange(7))).astype(np.float32)
        records.append(Step(
            state=np.cos(turn[t] + np.arange(7)).astype(np.float32),
            gripper_open=float(t < steps // 2),
            image=encode_image(np.asarray(canvas)) if t % every == 0 else None,
            action=None if last else np.append(velocity, np.float32(t < steps // 2)),
            joint_velocity_command=None if last else velocity,
            end_effector_position=tips[t].astype(np.float32),
            end_effector_quaternion_xyzw=np.float32([1, 0, 0, 0]),
            camera_intrinsics=intrinsics, camera_pose=pose, timestamp=t / 20,
        ))
    words = ("push the red button", "press the red one")
    return Episode(name, "tabletop", "panda", "joint_velocity", words, "push_buttons", 0, 0, True, tuple(records))


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the notebook and two data sets."""
    with EpisodeWriter(tmp_path / "data" / "demos", "tabletop") as writer:
        writer.write(episode("push_buttons/0", 40))
        writer.write(episode("push_buttons/1", 30, every=5))
    write_episode(episode("push_buttons/2", 20), tmp_path / "data" / "rlbench")
    notebook = json.loads(NOTEBOOK.read_text())
    for cell in notebook["cells"]:
        if "".join(cell["source"]).startswith("folders ="):
            cell["source"] = ['folders = ["data"]']
    (tmp_path / "traces.ipynb").write_text(json.dumps(notebook))
    return tmp_path


@pytest.fixture
def lab(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the notebook in a JupyterLab that serves the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, home = secrets.token_hex(8), tmp_path_factory.mktemp("jupyter")
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    quiet = home / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={workplace}"]
    log = (home / "log.txt").open("wb")
    server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log, cwd=workplace)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", server, home / "log.txt")
        start_kernel(f"http://127.0.0.1:{port}", token)
        yield f"http://127.0.0.1:{port}/doc/tree/traces.ipynb?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def start_kernel(server: str, token: str) -> None:
    """Start the notebook's kernel ahead: a page that starts it itself may run cells before it has settled on one."""
    session = {"path": "traces.ipynb", "name": "traces.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/api/sessions", json.dumps(session).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 201


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.25)
    pytest.fail(f"JupyterLab did not answer at {address}:\n{log.read_text()[-2000:]}")


SOURCE = "() => document.querySelector('.js-plotly-plot').data[0]?.source"
PAST = "() => document.querySelector('.js-plotly-plot').data[1]?.x?.length"


def run_all(page: sync_api.Page) -> None:
    """Run all cells once the notebook holds its kernel; before that, each cell would be given a kernel of its own.

    The execution indicator says "idle" from the start, so the toolbar's and the status bar's words are waited for.
    """
    page.wait_for_selector('.jp-NotebookPanel-toolbar .jp-KernelName:has-text("Python 3")')
    page.wait_for_selector('#jp-main-statusbar :text("| Idle")')
    page.wait_for_selector('.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status="idle"]', state="attached")
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')


def test_slider_moves_the_picture(lab: str, tmp_path: Path) -> None:
    shots = Path(os.environ.get("LLARVA_SCREENSHOTS", tmp_path))
    foreign, errors = [], []
    with sync_api.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1320, "height": 1400})
        page.set_default_timeout(90_000)
        page.on("request", lambda r: foreign.append(r.url) if is_foreign(r.url) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(lab)
        run_all(page)
        try:
            page.wait_for_selector(".llarva-explorer .js-plotly-plot .imagelayer image", timeout=240_000)
        except sync_api.TimeoutError:
            page.screenshot(path=shots / "failure.png")
            output = page.locator(".jp-Notebook .jp-OutputArea").all_inner_texts()
            pytest.fail(f"The explorer did not appear (picture: {shots / 'failure.png'}). Outputs: {output}")
        page.wait_for_function("document.querySelectorAll('.llarva-explorer .js-plotly-plot').length == 2")
        slider = page.locator(".llarva-explorer .widget-slider .noUi-handle")
        before, picture = page.evaluate(SOURCE), page.locator(".js-plotly-plot").first.screenshot()
        assert page.evaluate(PAST) == 1
        slider.focus()
        for _ in range(12):
            slider.press("ArrowRight")
        page.wait_for_function("document.querySelector('.js-plotly-plot').data[1]?.x?.length == 13")
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot')[1].layout.shapes?.[0]?.x0 == 0.6")
        assert page.evaluate(SOURCE) != before
        page.wait_for_timeout(300)
        assert page.locator(".js-plotly-plot").first.screenshot() != picture
        assert page.locator(".widget-readout").first.inner_text() == "12"
        words = page.locator(".llarva-card").all_inner_texts()
        assert "push the red button" in words[0] and words[1].lower().startswith("answer")
        page.locator(".llarva-explorer").screenshot(path=shots / "explorer.png")

        # The second episode keeps every fifth frame.
        page.locator(".llarva-explorer select").nth(1).select_option(index=1)
        page.wait_for_function("document.querySelector('.js-plotly-plot').data[1]?.x?.length == 1")
        slider.focus()
        for _ in range(7):
            slider.press("ArrowRight")
        page.wait_for_selector("text=image of step 5, the nearest that was kept")

        # The same demonstrations as RLBench folders.
        page.locator(".llarva-explorer select").first.select_option("rlbench")
        page.wait_for_selector("text=20 steps")
        page.wait_for_function("document.querySelectorAll('.llarva-explorer .js-plotly-plot').length == 2")
        page.locator(".llarva-explorer button.fa-play, .llarva-explorer .widget-play button").first.click()
        page.wait_for_function("document.querySelector('.js-plotly-plot').data[1]?.x?.length == 20")
        page.locator(".llarva-explorer").screenshot(path=shots / "explorer_rlbench.png")

        problems = page.locator('.jp-OutputArea-output[data-mime-type$="stderr"]').all_inner_texts()
        problems += page.locator('.jp-OutputArea-output[data-mime-type$="jupyter.error"]').all_inner_texts()
        browser.close()
    assert not problems
    assert not foreign
    assert not errors


def is_foreign(address: str) -> bool:
    parts = urlparse(address)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost")
