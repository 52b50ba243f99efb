"""The page: its head, menu and sections in order."""

from __future__ import annotations

from pathlib import Path

from ..serialize import write_file
from .images import BUDGET, images
from .inside import channels, positions, selection
from .layers import gains, layers
from .markup import Markup, join, tag
from .parts import pair_name
from .recipe import recipe
from .record import Record, read_record
from .results import results, tradeoff
from .style import SCRIPT, STYLE

__all__ = ["LIMIT", "make_page", "write_page"]

LIMIT = 5_000_000  # bytes
MARGIN = 200_000  # of them for head, menu, and what is around the pictures

# Nothing may be fetched: the page is whole in itself, whoever made the folder.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_SECTIONS = (
    ("results", "Results", results), ("bytes", "Bytes", tradeoff), ("images", "Images", images),
    ("layers", "Layers", layers), ("channels", "Channels", channels),
    ("positions", "Positions", positions), ("gps", "GPS", gains), ("dgc", "DGC", selection),
    ("recipe", "Recipe", recipe),
)  # fmt: skip


def make_page(folder: str | Path) -> str:
    """The page of a folder that `ptq4arvg compare` wrote: the same bytes for the same files.

    FileNotFoundError if it is no such folder; ValueError if a file in it is damaged.
    """
    record = read_record(folder)
    drawn = {name: draw(record) for name, _, draw in _SECTIONS if draw is not images}
    rest = sum(len(part.encode()) for part in drawn.values())
    drawn["images"] = images(record, min(BUDGET, LIMIT - MARGIN - rest))
    body = [drawn[name] for name, _, _ in _SECTIONS]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"ptq4arvg: {', '.join(record.comparison['models'])}"),
        tag("style", Markup(STYLE)),
    )
    text = "<!DOCTYPE html>\n" + tag(
        "html", head,
        tag("body", _header(record), _menu(record), tag("main", *body, _footer()),
            tag("script", Markup(SCRIPT))),
        lang="en",
    )  # fmt: skip
    return text.replace("</section>", "</section>\n") + "\n"


def write_page(folder: str | Path) -> Path:
    """Write report.html into the folder. ValueError if it would be larger than ``LIMIT``."""
    text = make_page(folder)
    size = len(text.encode())
    if size > LIMIT:
        raise ValueError(
            f"report: the page of {str(folder)!r} would take {size} bytes; wanted at most {LIMIT}. "
            "Compare fewer models at once"
        )
    return write_file(Path(folder) / "report.html", text)


def _header(record: Record) -> Markup:
    c = record.comparison
    what = f"{_count(c['methods'], 'method')} at {', '.join(c['schemes'])} on " \
           f"{_count(record.pairs, 'model')}, measured on the same rows and seeds."  # fmt: skip
    return tag("header", tag("h1", "Quantized image generators, compared"),
               tag("p", what, class_="faint"))  # fmt: skip


def _count(things: list, name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def _menu(record: Record) -> Markup:
    links = [tag("a", text, href=f"#{name}") for name, text, _ in _SECTIONS]
    options = [tag("option", pair_name(pair), value=number)
               for number, pair in enumerate(record.pairs)]  # fmt: skip
    choice = tag("select", *options, id="pair", aria_label="Model shown") if options[1:] else None
    return tag("nav", tag("div", choice, *links))


def _footer() -> Markup:
    return tag("footer", join("Written by ", tag("code", "ptq4arvg report"), " from the files of "
                              "its folder; it loads nothing else."), class_="faint")  # fmt: skip
