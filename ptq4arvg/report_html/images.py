"""The same seeds drawn by the float model and by every quantization of it."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass

from ..cells import FLOAT
from .markup import Markup, join, tag
from .parts import each_pair, missing, section, shown_scheme
from .record import OURS, Pair, Record

__all__ = ["BUDGET", "images"]

BUDGET = 3_000_000  # bytes of pictures in the page, of 5 MB that it may have


@dataclass(frozen=True)
class _Strip:
    label: str
    id: str
    data: bytes

    def render(self, scheme: str) -> Markup:
        width, height = struct.unpack(">II", self.data[16:24])  # of the PNG's header
        source = f"data:image/png;base64,{base64.b64encode(self.data).decode()}"
        return tag("img", src=source, id=self.id, class_="strip", width=width, height=height,
                   alt=f"Images by {self.label}, {scheme}")  # fmt: skip


def images(record: Record, budget: int = BUDGET) -> Markup:
    """A row of images per model and method, and a viewer that wipes between two of them.

    budget: bytes that the pictures may take.
    """
    chosen, left_out = _within_budget(record, budget)
    note = (
        "Every row has the same classes and seeds, so column by column the same picture is wanted. "
        "In the viewer, move the slider to wipe every image from the chosen method (right part) to "
        "the float model (left part); below it their absolute difference, 4 times brighter."
    )
    parts = [tag("p", note, class_="faint"),
             each_pair(record, lambda pair: _pair(record, pair, chosen[pair]))]  # fmt: skip
    if left_out:
        parts.append(missing(
            f"To keep this page small it leaves out the images of {', '.join(left_out)}; they are "
            "in the folder's images/."
        ))  # fmt: skip
    return section("images", "The same seeds, float and quantized", *parts)


def _within_budget(record: Record, budget: int) -> tuple[dict[Pair, list[str]], list[str]]:
    """The schemes shown of each model, and what is left out: the scheme looked into first."""
    first = shown_scheme(record)
    order = sorted(record.schemes, key=lambda scheme: scheme != first)
    chosen: dict[Pair, list[str]] = {pair: [] for pair in record.pairs}
    spent, left_out = 0, []
    for scheme in order:
        for pair in record.pairs:
            methods = record.comparison["methods"]
            cells = [record.cell(pair, method, scheme) for method in methods]
            if not chosen[pair]:
                cells.append(record.cell(pair, FLOAT, FLOAT))
            size = sum(len(record.png(cell) or b"") for cell in cells if cell) * 4 // 3
            if spent + size > budget:
                left_out.append(f"{pair[0]} (stress {pair[1]:g}) at {scheme}")
            else:
                chosen[pair].append(scheme)
                spent += size
    return chosen, left_out


def _pair(record: Record, pair: Pair, schemes: list[str]) -> Markup:
    if record.schemes and not schemes:
        return missing("Left out; see the end of this section.")
    number = record.pairs.index(pair)
    cell = record.cell(pair, FLOAT, FLOAT)
    data = record.png(cell) if cell else None
    if data is None:
        return missing("The folder holds no image of this float model.")
    reference = _Strip("the float model", f"s{number}", data)
    groups, lacking = [], []
    for scheme in schemes:
        strips = []
        for index, method in enumerate(record.comparison["methods"]):
            cell = record.cell(pair, method, scheme)
            data = record.png(cell) if cell else None
            if data is None:
                lacking.append(f"{method} at {scheme}")
            else:
                identity = f"s{number}-{record.schemes.index(scheme)}-{index}"
                strips.append(_Strip(method, identity, data))
        groups.append((scheme, strips))
    rows = [tag("b", "float"), reference.render(FLOAT)]
    for scheme, strips in groups:
        for strip in strips:
            label = join(tag("b", strip.label), " ", tag("small", scheme))
            rows += [tag("div", label), strip.render(scheme)]
    note = f"No images of {', '.join(lacking)}." if lacking else ""
    shown = any(strips for _, strips in groups)
    return join(_viewer(reference, groups) if shown else None, tag("div", *rows, class_="strips"),
                missing(note) if note else None)  # fmt: skip


def _viewer(reference: _Strip, groups: list[tuple[str, list[_Strip]]]) -> Markup:
    """Float, wiped and difference; its pictures are put in by the script, from the strips."""
    options, first = [], True
    for scheme, strips in groups:
        ours = [strip for strip in strips if strip.label == OURS] or strips[:1]
        for strip in strips:
            selected = first and strip in ours
            first = first and not selected
            text = f"{strip.label} at {scheme}"
            options.append(tag("option", text, value=strip.id, selected=selected))
    width, height = struct.unpack(">II", reference.data[16:24])

    def picture(cls: str) -> Markup:
        return tag("img", class_=f"strip {cls}", width=width, height=height, alt="",
                   src="data:,")  # fmt: skip

    def stack(cls: str) -> Markup:
        return tag("div", picture("under"), picture("over"), class_=f"stack {cls}")

    controls = tag(
        "div",
        tag("label", "Method ", tag("select", *options)),
        tag("label", "quantized ", tag("input", type="range", min=0, max=100, value=50,
                                       aria_label="Part of every image that is float"), " float"),
        class_="controls",
    )  # fmt: skip
    rows = tag(
        "div",
        tag("b", "float"), tag("div", picture("under"), class_="stack"),
        tag("b", "float | method"), stack("wiped"),
        tag("b", "|difference| x 4"), stack("difference"),
        class_="strips",
    )  # fmt: skip
    return tag("figure", tag("figcaption", "Wipe between float and a method"), controls, rows,
               class_="viewer", data_float=reference.id,
               data_period=f"{100 * height / width:.6g}")  # fmt: skip
