"""Traces on images, films and strips."""

from pathlib import Path

import imageio.v3
import numpy as np
import pytest
from PIL import Image

from llarva.evaluation.following import trace_error
from llarva.evaluation.video import Frame, VideoError, draw_trace, gif_bytes, mp4_bytes, strip, write_film


def test_trace_error_of_shifted_and_of_missing_traces() -> None:
    line = np.stack([np.linspace(0, 30, 7), np.zeros(7)], 1)
    assert trace_error(line, line[::2]) == pytest.approx(0, abs=1e-5)
    assert trace_error(line + (0, 3), line) == pytest.approx(3, rel=1e-5)
    assert trace_error(None, line) is None and trace_error(line[:1], line[:1]) == 0


def test_traces_are_drawn_where_their_pixels_are() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    drawn = draw_trace(image, [[10.5, 20.5], [40.5, 20.5]], scale=1)
    rows, columns = np.nonzero(drawn.any(-1))
    assert 18 <= rows.min() and rows.max() <= 23 and columns.min() <= 11 and columns.max() >= 40
    assert not image.any(), "the picture itself must stay as it was"
    assert draw_trace(image, None, path=[[0, 0], [63, 63]], scale=3).shape == (192, 192, 3)


def test_films_keep_real_time_and_the_last_frame(tmp_path: Path) -> None:
    frames = [Frame(np.full((16, 16, 3), 12 * i, np.uint8), None, i) for i in range(20)]
    film = Image.open(write_film(tmp_path / "a" / "film.gif", frames, every=2, scale=1))
    assert film.n_frames == 11 and film.info["duration"] == 100
    film.seek(10)
    assert abs(int(np.asarray(film.convert("RGB"))[0, 0, 0]) - 12 * 19) <= 6
    assert strip(frames, count=5, scale=1).shape == (16, 5 * 16 + 4 * 4, 3)
    assert strip(frames[:1], count=5, scale=1).shape == (16, 16, 3)
    no_film = (lambda: gif_bytes([]), lambda: mp4_bytes([]), lambda: write_film(tmp_path / "film.avi", frames))
    for call in (lambda: write_film(tmp_path / "x.gif", []), lambda: strip([]), *no_film):
        with pytest.raises(VideoError):
            call()


@pytest.mark.parametrize("side", [16, 17])
def test_both_film_formats_show_the_same_frames(side: int, tmp_path: Path) -> None:
    frames = [Frame(np.full((side, side, 3), 12 * i, np.uint8), None, i) for i in range(20)]
    gif = Image.open(write_film(tmp_path / "film.gif", frames, scale=1))
    path = write_film(tmp_path / "film.mp4", frames, scale=1)
    film = imageio.v3.imread(path, plugin="FFMPEG")
    assert path.read_bytes() == write_film(tmp_path / "again.mp4", frames, scale=1).read_bytes()
    assert imageio.v3.immeta(path, plugin="FFMPEG")["fps"] == 10
    # The last frame stays for a second, and sizes are rounded up to even numbers.
    assert film.shape == (gif.n_frames + 10, side + side % 2, side + side % 2, 3)
    for k in range(gif.n_frames):
        gif.seek(k)
        assert np.abs(film[k].mean() - np.asarray(gif.convert("RGB")).mean()) < 4
    assert np.abs(film[-1].mean() - film[gif.n_frames - 1].mean()) < 2
