"""What several sections share: names, missing things, one figure per model compared."""

from __future__ import annotations

from collections.abc import Callable

from ..tables import model_name
from .markup import Markup, join, tag
from .record import OURS, Pair, Record
from .svg import COLOURS, SHAPES

__all__ = [
    "each_pair",
    "method_mark",
    "missing",
    "no_inspection",
    "pair_name",
    "plots",
    "section",
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


def no_inspection(record: Record) -> str:
    """Why nothing of a model was collected beside its cells."""
    if OURS not in record.comparison["methods"]:
        return f"{OURS} was not compared: there is nothing to look into."
    return "The folder holds no inspection/ of this model: repeat the command below to add it."
