"""The report: one page that needs no network and believes no text."""

import json
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llarva.evaluation import report
from llarva.evaluation.statistics import wilson
from llarva.evaluation.video import gif_bytes


class Links(HTMLParser):
    """Collects everything that a page refers to, and checks that elements are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in ("meta", "img", "line", "rect", "path", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "path")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_file_without_network_and_escapes_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    image = np.full((8, 8, 3), 9, np.uint8)
    film = gif_bytes([image, image + 1])
    Image.fromarray(image).save(buffer := BytesIO(), "JPEG")
    (tmp_path / "film.gif").write_bytes(film)
    pieces = (
        report.paragraph(hostile), report.tiles({hostile: hostile}), report.table([hostile], [[hostile]]),
        report.success_bars([(hostile, wilson(1, 2), hostile)]),
        report.curves({hostile: ([0, 1, 2], [1.0, float("nan"), 3.0]), "flat": ([0, 1], [2, 2])}, hostile, hostile),
        report.gallery([report.picture(x, hostile) for x in (image, film, buffer.getvalue(), tmp_path / "film.gif")]),
    )
    sections = [report.Section(hostile, pieces, wide=True)]
    path = report.write_report(tmp_path / "new" / "report.html", hostile, hostile, sections)
    page = path.read_text()
    parser = Links()
    parser.feed(page)
    assert len(parser.links) == 4 and all(link.startswith("data:image/") for link in parser.links) and not parser.open
    assert "<script" not in page and "nan" not in page and "url(" not in page and "@import" not in page
    assert page.count("<main>") == 1 and not list(tmp_path.rglob("*.partial"))
    json.dumps(page)


@pytest.mark.parametrize("call", [
    lambda: report.picture(b"BM nothing", "x"), lambda: report.table(["a", "b"], [[1]]),
    lambda: report.success_bars([]),
    lambda: report.curves({"a": ([0], [float("inf")])}, "x", "y"),
])
def test_broken_pieces_are_refused(call: Any) -> None:
    with pytest.raises(report.ReportError):
        call()
