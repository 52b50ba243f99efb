"""What several sections share: names, missing things, one figure per model compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..tables import model_name
from .markup import Markup, join, tag
from .record import OURS, Pair, Record
from .svg import COLOURS, SHAPES

__all__ = [
    "each_pair",
    "inspected_part",
    "method_mark",
    "missing",
    "pair_name",
    "plots",
    "section",
    "section_of_pairs",
    "shown_scheme",
]


def pair_name(pair: Pair) -> str:
    """A model with its stress, as in the tables."""
    return model_name({"model": pair[0], "stress": pair[1]})


def section(name: str, title: str, *children: object) -> Markup:
    """A titled section that the page's menu leads to."""
    return tag("section", tag("h2", title), *children, id=name)


def missing(text: str) -> Markup:
    """What stands in the place of something that the folder does not hold."""
    return tag("p", text, class_="missing")


def plots(*figures: object) -> Markup:
    """Figures beside each other where there is room."""
    return tag("div", *figures, class_="plots")


def each_pair(record: Record, draw: Callable[[Pair], object]) -> Markup:
    """One part per model, of which the page shows the chosen one (all without its script)."""
    return join(*(
        tag("div", tag("h3", pair_name(pair)), draw(pair), data_pair=number)
        for number, pair in enumerate(record.pairs)
    ))  # fmt: skip


def section_of_pairs(
    record: Record, name: str, title: str, note: str, draw: Callable[[Record, Pair], object]
) -> Markup:
    """A section with a note of what it shows, and a part per model."""
    body = each_pair(record, lambda pair: draw(record, pair))
    return section(name, title, tag("p", note, class_="faint"), body)


def shown_scheme(record: Record) -> str:
    """The scheme that layers are shown at: the one that was looked into, or the first."""
    inspected = record.comparison.get("inspected")
    return inspected if inspected in record.schemes else (record.schemes or ["-"])[0]


def method_mark(record: Record, method: str) -> tuple[int, int]:
    """(colour, shape) of a method: our own has the first of both."""
    if method == OURS:
        return 0, 0
    others = [m for m in record.comparison["methods"] if m != OURS]
    index = others.index(method)
    colours = COLOURS - 1
    turn, place = divmod(index, colours)  # another shape every time a colour comes round
    return 1 + place, (1 + place + turn) % SHAPES


def _no_inspection(record: Record) -> str:
    """Why nothing of a model was collected beside its cells."""
    if OURS not in record.comparison["methods"]:
        return f"{OURS} was not compared: there is nothing to look into."
    return "The folder holds no inspection/ of this model: repeat the command below to add it."


def inspected_part(
    record: Record, pair: Pair, key: str, without: str
) -> Mapping[str, Any] | Markup:
    """One part of what was collected of a model, or what to say in its place."""
    inspection = record.inspections.get(pair)
    if inspection is None:
        return missing(_no_inspection(record))
    return inspection[key] or missing(without)
