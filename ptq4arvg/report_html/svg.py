"""Plots as inline SVG: axes with labels and ticks, lines, bands, bars and marks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .markup import Markup, join, tag

__all__ = ["Axis", "Plot", "legend", "mark", "plain_number"]

SHAPES = 4  # shapes of marks
COLOURS = 8  # --c0 to --c7 of the style sheet
LEFT, RIGHT, TOP, BOTTOM = 68, 14, 12, 46  # margins

Point = tuple[float, float]


def plain_number(value: float) -> str:
    """A number for a tick or a sentence: three digits, no exponent where it can do without."""
    text = f"{value:.3g}"
    if "e" in text and 1e-5 <= abs(value) < 1e7:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return text


@dataclass(frozen=True)
class Axis:
    """label: with its unit; lo < hi; log: logarithmic, both ends positive."""

    label: str
    lo: float
    hi: float
    log: bool = False

    @classmethod
    def over(cls, label: str, values: Iterable[float], log: bool = False, zero: bool = False):
        """An axis a little wider than ``values``; zero: that begins or ends at 0 at the latest."""
        values = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        values += [0.0] if zero and not log else []
        lo, hi = (min(values), max(values)) if values else (1.0, 10.0)
        if log:
            return cls(label, lo / 1.4, hi * 1.4, True)
        pad = 0.05 * (hi - lo) or 0.05 * abs(hi) or 1.0
        keep_lo, keep_hi = zero and lo == 0, zero and hi == 0
        return cls(label, lo if keep_lo else lo - pad, hi if keep_hi else hi + pad)

    def at(self, value: float) -> float:
        """Where ``value`` is, from 0 to 1; kept inside."""
        lo, hi = self.lo, self.hi
        if self.log:
            value, lo, hi = math.log(max(value, lo)), math.log(lo), math.log(hi)
        return min(max((value - lo) / (hi - lo), 0.0), 1.0)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside, about ``count`` of them."""
        if not self.log or self.hi < 12 * self.lo:
            raw = (self.hi - self.lo) / count
            power = 10.0 ** math.floor(math.log10(raw))
            step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
            first = math.ceil(self.lo / step - 1e-9)
            last = math.floor(self.hi / step + 1e-9)
            return [round(i * step, 12) for i in range(first, last + 1)]
        decades = range(math.floor(math.log10(self.lo)), math.ceil(math.log10(self.hi)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [d * 10.0**p for p in decades for d in digits]
            found = [v for v in values if self.lo <= v <= self.hi]
            if len(found) >= 3:
                break
        return found[:: max(1, len(found) // (count + 2))]


def mark(shape: int, x: float, y: float, size: float, cls: str, title: str = "") -> Markup:
    """A circle, square, diamond or triangle around (x, y), with a tooltip."""
    note = tag("title", title) if title else None
    if shape == 0:
        return tag("circle", note, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{size:g}", class_=cls)
    corners = {
        1: ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        2: ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        3: ((0, -1.1), (1.1, 0.9), (-1.1, 0.9)),
    }[shape]
    points = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in corners)
    return tag("polygon", note, points=points, class_=cls)


def legend(items: Iterable[tuple[str, int, str]]) -> Markup:
    """A line of (class, shape, text); shape -1 is a line, -2 a band."""
    entries = []
    for cls, shape, text in items:
        if shape >= 0:
            sign = mark(shape, 8, 7, 4.5, cls)
        elif shape == -1:
            sign = tag("path", d="M0 7H16", class_=cls)
        else:
            sign = tag("rect", x=0, y=2, width=16, height=10, class_=cls)
        key = tag("svg", sign, width=16, height=14, viewBox="0 0 16 14", aria_hidden="true")
        entries.append(tag("span", key, " ", text))
    return tag("p", *entries, class_="legend")


@dataclass
class Plot:
    """title: what to see; width, height: in units of the viewBox, about a pixel each."""

    title: str
    x: Axis
    y: Axis
    width: int = 460
    height: int = 290
    x_ticks: Sequence[tuple[float, str]] | None = None
    note: object = None  # below the plot, as the legend
    parts: list[Markup] = field(default_factory=list, init=False)

    def px(self, value: float) -> float:
        return LEFT + self.x.at(value) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        return self.height - BOTTOM - self.y.at(value) * (self.height - TOP - BOTTOM)

    def _path(self, points: Iterable[Point], stepped: bool) -> str:
        out, last = [], None
        for x, y in ((f"{self.px(x):.1f}", f"{self.py(y):.1f}") for x, y in points):
            out.append(f"M{x} {y}" if last is None else f"H{x}V{y}" if stepped else f"L{x} {y}")
            last = y
        return "".join(out)

    def line(self, points: Sequence[Point], cls: str, stepped: bool = False) -> None:
        """A line through points, or level from each to the next."""
        self.parts.append(tag("path", d=self._path(points, stepped), class_=f"line {cls}"))

    def band(self, x: Sequence[float], lo: Sequence[float], hi: Sequence[float], cls: str) -> None:
        """The area between two lines."""
        there = self._path(zip(x, hi, strict=True), False)
        back = self._path(list(zip(x, lo, strict=True))[::-1], False)
        self.parts.append(tag("path", d=f"{there}L{back[1:]}Z", class_=f"band {cls}"))

    def bar(self, x: float, width: float, value: float, cls: str, title: str) -> None:
        """A bar from 0, or from the axis's lower end."""
        left, right = self.px(x - width / 2), self.px(x + width / 2)
        base = self.py(0.0) if not self.y.log else self.height - BOTTOM
        top, bottom = sorted((self.py(value), base))
        size = {"width": f"{right - left:.1f}", "height": f"{bottom - top:.1f}"}
        self.parts.append(tag("rect", tag("title", title), x=f"{left:.1f}", y=f"{top:.1f}",
                              class_=cls, **size))  # fmt: skip

    def mark(
        self, x: float, y: float, cls: str, title: str, shape: int = 0, size: float = 4,
        beside: float = 0.0,
    ) -> None:  # fmt: skip
        """One mark with a tooltip, ``beside`` its place by so many units of the viewBox."""
        at = self.px(x) + beside
        self.parts.append(mark(shape, at, self.py(y), size, f"mark {cls}", title))

    def upright(self, x: float, text: str) -> None:
        """A dashed vertical line with a word at its top."""
        at = self.px(x)
        right = at > self.width - 90
        self.parts += [
            tag("path", d=f"M{at:.1f} {TOP}V{self.height - BOTTOM}", class_="upright"),
            tag("text", text, x=f"{at + (-4 if right else 4):.1f}", y=TOP + 10, class_="tick",
                text_anchor="end" if right else None),
        ]  # fmt: skip

    def text(self, x: float, y: float, text: str) -> None:
        """Small text centred above a point."""
        self.parts.append(tag("text", text, x=f"{self.px(x):.1f}", y=f"{self.py(y) - 6:.1f}",
                              class_="tick", text_anchor="middle"))  # fmt: skip

    def _axes(self) -> Markup:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        out = []
        for value in self.y.ticks():
            y = f"{self.py(value):.1f}"
            out += [
                tag("path", d=f"M{LEFT} {y}H{right}", class_="rule"),
                tag("text", plain_number(value), x=LEFT - 7, y=y, dy="0.35em", class_="tick",
                    text_anchor="end"),
            ]  # fmt: skip
        ticks = self.x_ticks
        if ticks is None:
            ticks = [(value, plain_number(value)) for value in self.x.ticks()]
        for value, text in ticks:
            x = f"{self.px(value):.1f}"
            out += [
                tag("path", d=f"M{x} {bottom}v4", class_="axis"),
                tag("text", text, x=x, y=bottom + 17, class_="tick", text_anchor="middle"),
            ]
        middle = (TOP + bottom) / 2
        out += [
            tag("path", d=f"M{LEFT} {TOP}V{bottom}H{right}", class_="axis"),
            tag("text", self.x.label, x=(LEFT + right) / 2, y=self.height - 8, class_="label",
                text_anchor="middle"),
            tag("text", self.y.label, x=0, y=0, class_="label", text_anchor="middle",
                transform=f"translate(15 {middle:g}) rotate(-90)"),
        ]  # fmt: skip
        return join(*out)

    def render(self) -> Markup:
        """A figure: title, plot, note."""
        picture = tag("svg", self._axes(), *self.parts, role="img", aria_label=self.title,
                      viewBox=f"0 0 {self.width} {self.height}")  # fmt: skip
        wide = " wide" if self.width > 600 else ""
        scroll = tag("div", picture, class_="scroll")
        return tag("figure", tag("figcaption", self.title), scroll, self.note,
                   class_=f"plot{wide}")  # fmt: skip
