"""Pages of the documentation site about data cards: one table of all of them, and a page for each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from llarva.card_fields import UNVERIFIED, Fields, Layout, Part
from llarva.cards import Card, load_cards
from llarva.robots import ROBOTS

INTRO = """\
A card says what the numbers of a data set mean: robot, control, units, the gripper's sense, where the instruction lies,
what is wrong with it. The package checks every card before it reads data, and where a card says `unverified`, nothing
is guessed: that part is left out. A new data set is a new card."""


def card_pages(folder: Path) -> dict[str, str]:
    """Target (below the site's root) and Markdown of every page: the index, and one per card."""
    cards = load_cards(folder)
    pages = {"data_cards/index": index_page(cards)}
    return pages | {f"data_cards/{name}": card_page(card) for name, card in cards.items()}


def index_page(cards: Mapping[str, Card]) -> str:
    """The table of all cards, each linked to its page."""
    head = ("data set", "robot", "control", "Hz", "episodes", "camera", "height × width", "traces", "unverified")
    rows = [
        (
            f"[{_plain(card.title)}](/data_cards/{name}.md)",
            ROBOTS[card.robot].wording,
            ", ".join(dict.fromkeys(card.control_mode(mode).wording for mode in card.control_modes)),
            _number(card.rate_hz),
            _number(card.size.episodes),
            f"`{card.camera.key.rpartition('/')[2]}`",
            _size(card),
            card.traces,
            str(len(card.unverified)),
        )
        for name, card in cards.items()
    ]
    tree = "\n".join(
        ["```{toctree}", ":maxdepth: 1", ":hidden:", "", *(f"/data_cards/{name}" for name in cards), "```"]
    )
    return "\n\n".join(["# Data cards", INTRO, _table(head, rows), tree])


def card_page(card: Card) -> str:
    """What the card says in words, then its head as tables, what is unverified, and how to cite the data."""
    parts = [card.text, "## The head of the card", _table(("field", "value"), list(_facts(card)))]
    for mode in card.control_modes:
        parts += [f"## Actions: {mode.replace('_', ' ')}", _layout(card.actions[mode], _recipe(card, mode))]
    if card.fields is not None and card.fields.state:
        parts += ["## State", _layout(card.fields.state_layout, card.fields.state)]
    if card.fields is not None:
        parts += ["## Gripper and pose", _table(("what", "taken from"), list(_measured(card.fields)))]
    if card.unverified:
        parts += ["## Unverified", "\n".join(f"- `{name}`" for name in card.unverified)]
    return "\n\n".join([*parts, "## Citation", f"```bibtex\n{card.citation}\n```"])


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    language = ", ".join(f"`{field}`" for field in card.language.fields) or "not in the data"
    extra = [card.language.encoding.replace("_", " ")] if card.language.encoding != "text" else []
    extra += [f"where empty: “{card.language.when_empty}”"] if card.language.when_empty else []
    yield "name", f"`{card.name}`"
    yield "format", card.format + (f" (`{card.fields.builder}`)" if card.fields else "")
    yield "robot", ROBOTS[card.robot].wording
    yield "control modes", ", ".join(f"`{mode}`" for mode in card.control_modes)
    yield "steps per second", _number(card.rate_hz)
    yield "camera", f"`{card.camera.key}`, {_size(card)}" + (", calibrated" if card.camera.calibrated else "")
    if card.camera.channels != "rgb" or card.camera.turn:
        yield (
            "pictures are stored",
            f"{card.camera.channels}, turned by {card.camera.turn}°; the reader puts them right",
        )
    yield "language", "; ".join([language, *extra])
    yield "traces", card.traces
    yield "episodes", _number(card.size.episodes)
    yield "steps", _number(card.size.steps)
    yield "licence", card.licence
    yield "homepage", f"<{card.homepage}>" if card.homepage.startswith("http") else card.homepage


def _recipe(card: Card, mode: str) -> tuple[Part, ...] | None:
    return card.fields.actions[mode] if card.fields else None


def _layout(numbers: Layout, recipe: tuple[Part, ...] | None) -> str:
    """One row per number, with the part of the data that it is made of."""
    sources = [_part(part) for part in recipe or () for _ in range(part.count)]
    told = bool(sources)
    rows = [(name, unit, *([sources[i]] if told else [])) for i, (name, unit) in enumerate(numbers)]
    return _table(("number", "unit", *(["taken from"] if told else [])), rows)


def _measured(fields: Fields) -> Iterator[tuple[str, str]]:
    words = {"command": "not measured: as last commanded", "none": "there is none", None: UNVERIFIED}
    yield "gripper opening", _part(fields.gripper) if isinstance(fields.gripper, Part) else words[fields.gripper]
    yield "axes of end-effector actions", (fields.frame or UNVERIFIED).replace("_", " ")
    for name, part in (("position", fields.end_effector_position), ("rotation", fields.end_effector_rotation)):
        yield f"end-effector {name}", "not known" if part is None else _part(part)
    if fields.success:
        yield "success", f"`{fields.success}`"


def _part(part: Part) -> str:
    if part.field is None:
        return "zero"
    words = [f"`{part.field}`" + ("" if part.take is None else f" {json.dumps(list(part.take))}")]
    if part.scale != (1.0,):
        words.append("times " + ", ".join(f"{factor:g}" for factor in part.scale))
    if part.rotation:
        words.append(f"{part.rotation.replace('_', ' ')}, made a rotation vector")
    if part.gripper:
        push = "a push: " if part.gripper.change else ""
        words.append(f"{push}{part.gripper.closed:g} closed, {part.gripper.open:g} open".replace("-", "−"))
    return "; ".join(words)


def _number(value: float | int | str | None) -> str:
    if value is None:
        return UNVERIFIED
    return value if isinstance(value, str) else f"{value:,g}" if isinstance(value, float) else f"{value:,}"


def _size(card: Card) -> str:
    return UNVERIFIED if card.camera.image_size is None else " × ".join(map(str, card.camera.image_size))


def _plain(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
