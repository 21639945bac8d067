"""The site's pages about data cards are made from the cards, all of them, and from nothing else."""

import importlib.util
import re
from pathlib import Path

import pytest

from llarva.cards import CardError, load_cards

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "data_cards"
spec = importlib.util.spec_from_file_location("card_pages", ROOT / "tools" / "card_pages.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
PAGES, LOADED = tool.card_pages(CARDS), load_cards(CARDS)


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_a_table_and_a_page_each():
    cards = LOADED
    assert set(PAGES) == {"data_cards/index", *(f"data_cards/{name}" for name in cards)}
    table = rows(PAGES["data_cards/index"])
    assert len(table) == 2 + len(cards)
    assert {line.count(" | ") for line in table} == {8}
    for name, card in cards.items():
        (line,) = [line for line in table if f"](/data_cards/{name}.md)" in line]
        assert card.title in line and f"| {len(card.unverified)} |" in line
        assert re.search(rf"^/data_cards/{name}$", PAGES["data_cards/index"], re.M)


@pytest.mark.parametrize("name", sorted(LOADED))
def test_a_page_says_what_the_card_says(name):
    card, page = LOADED[name], PAGES[f"data_cards/{name}"]
    assert page.startswith(card.text) and page.count("\n# ") == 0
    assert card.citation in page and card.licence in page and f"`{card.camera.key}`" in page
    for mode, numbers in card.actions.items():
        assert f"## Actions: {mode.replace('_', ' ')}" in page
        assert all(f"| {number} | {unit} |" in page for number, unit in numbers)
    assert all(f"- `{field}`" in page for field in card.unverified)
    tables = re.findall(r"(?:^\| .*\n?)+", page, re.M)
    assert all(len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_recipes_are_shown():
    page = PAGES["data_cards/maniskill_dataset"]
    assert "`steps/action` [0, 1, 2]; times 0.1 |" in page
    assert "rotation vector, made a rotation vector" in page and "−1 closed, 1 open" in page
    page = PAGES["data_cards/fractal20220817_data"]
    assert "a push: 1 closed, −1 open" in page and "`steps/observation/gripper_closed`; 1 closed, 0 open" in page
    assert "code points" in PAGES["data_cards/language_table"] and "| success | `success` |" in PAGES["data_cards/kuka"]
    assert "the reader puts them right" in PAGES["data_cards/utaustin_mutex"]


def test_a_broken_card_stops_the_site(tmp_path):
    text = (CARDS / "bridge.md").read_text(encoding="utf-8")
    (tmp_path / "bridge.md").write_text(text.replace("robot: widowx", "robot: widow"), encoding="utf-8")
    with pytest.raises(CardError, match="widowx"):
        tool.card_pages(tmp_path)


def test_pipes_stay_inside_their_cells(tmp_path):
    text = (CARDS / "tabletop.md").read_text(encoding="utf-8").replace("title: Tabletop", "title: Table | [top]")
    (tmp_path / "tabletop.md").write_text(text, encoding="utf-8")
    pages = tool.card_pages(tmp_path)
    assert "[Table \\| (top)](/data_cards/tabletop.md)" in pages["data_cards/index"]
