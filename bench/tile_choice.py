"""From measured times to rows of the tile table: boxes of sizes, each with one kernel.

The space of sizes is cut in two, again and again, until a kernel is good enough at every measured
size of each box; boxes side by side that can share a kernel are then joined. So the loss against
the best kernel is bounded at every measured size, and every size lies in exactly one box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tile_table import ANY, DIMENSIONS, MEASURED, Range, Row

__all__ = ["Box", "Point", "choose", "to_rows"]


@dataclass(frozen=True)
class Point:
    """A measured size and each kernel's seconds; kernels that cannot take it are left out."""

    m: int
    n: int
    k: int
    bits: int
    out_bytes: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Box:
    """Ranges of sizes by dimension, and the kernel for them.

    points: how many measured sizes it has; loss: by how much the kernel is slower than the best at
    the worst of them, as a fraction; lead: geometric mean of the next best kernel's time by its
    own, NaN where there is no other.
    """

    ranges: Mapping[str, Range]
    kernel: str
    points: int
    loss: float
    lead: float


@dataclass
class _Part:
    """A box in the making: its ranges, and the indices of its points."""

    ranges: dict[str, Range]
    points: np.ndarray


def choose(points: Sequence[Point], tolerance: float) -> list[Box]:
    """Boxes over all sizes, in each a kernel at most 1 + tolerance times slower than the best.

    A cut lies at a measured value: sizes between two measured ones go with the larger, those
    beyond the largest with it. Of the bits and outputs, only those measured (and between) are
    covered. ValueError for no points, a negative tolerance, or a point without a time.
    """
    if not points or tolerance < 0 or not all(point.seconds for point in points):
        raise ValueError(
            f"choose: {len(points)} points, tolerance {tolerance}; wanted one point or more, a "
            "time at each, and a tolerance of 0 or more"
        )
    kernels = sorted({name for point in points for name in point.seconds})
    seconds = np.array([[point.seconds.get(name, math.inf) for name in kernels]
                        for point in points])  # fmt: skip
    slowdown = seconds / seconds.min(axis=1, keepdims=True)  # [points, kernels]
    sizes = {name: np.array([getattr(point, name) for point in points]) for name in DIMENSIONS}
    fine = slowdown <= 1 + tolerance
    logs = np.minimum(np.log(slowdown), 9.0)  # a kernel that cannot run: very slow
    todo, parts = [_Part(_outer(sizes), np.arange(len(points)))], []
    while todo:
        part = todo.pop()
        if fine[part.points].all(axis=0).any():
            parts.append(part)
        else:
            todo += _cut(part, sizes, fine, logs)
    parts = _join(parts, fine)
    parts.sort(key=lambda part: [part.ranges[name] for name in reversed(DIMENSIONS)])
    return [_finish(part, kernels, fine, seconds, slowdown) for part in parts]


def _outer(sizes: Mapping[str, np.ndarray]) -> dict[str, Range]:
    """The box around everything: any size, and the bits and kinds of output that were measured."""
    bits, out = sizes["bits"], sizes["out_bytes"]
    ranges = dict.fromkeys(("m", "n", "k"), (1, ANY))
    ranges["bits"] = int(bits.min()), int(bits.max())
    # Floats of two bytes go with those of four.
    ranges["out_bytes"] = 1 if out.min() == 1 else 2, 4 if out.max() > 1 else 1
    return ranges


def _misfit(part: np.ndarray, fine: np.ndarray, logs: np.ndarray) -> tuple[int, float]:
    """How far the points are from sharing one kernel: points left out by the one that is good at
    most, and the least sum of logarithms of slowdowns."""
    left_out = len(part) - int(fine[part].sum(axis=0).max())
    return left_out, float(logs[part].sum(axis=0).min())


def _cut(
    part: _Part, sizes: Mapping[str, np.ndarray], fine: np.ndarray, logs: np.ndarray
) -> list[_Part]:
    """The two halves of the best cut. Points of one size would leave none: they are refused."""
    best, found = None, None
    for name in DIMENSIONS:
        values = sizes[name][part.points]
        for at in np.unique(values)[:-1]:
            low, high = part.points[values <= at], part.points[values > at]
            misfits = [_misfit(side, fine, logs) for side in (low, high)]
            score = sum(m[0] for m in misfits), sum(m[1] for m in misfits)
            if best is None or score < best:
                best, found = score, (name, int(at), low, high)
    if found is None:
        raise ValueError("choose: two points have the same size; wanted one for each")
    name, at, low, high = found
    start, end = part.ranges[name]
    return [
        _Part(part.ranges | {name: (start, at)}, low),
        _Part(part.ranges | {name: (at + 1, end)}, high),
    ]


def _join(parts: list[_Part], fine: np.ndarray) -> list[_Part]:
    """Join boxes that differ in one range only, are neighbours in it and can share a kernel."""
    before = len(parts) + 1
    while len(parts) < before:
        before = len(parts)
        for name in DIMENSIONS:
            others = [other for other in DIMENSIONS if other != name]
            parts.sort(key=lambda p: ([p.ranges[o] for o in others], p.ranges[name]))
            joined = [parts[0]]
            for part in parts[1:]:
                last = joined[-1]
                both = np.concatenate([last.points, part.points])
                if (
                    all(last.ranges[o] == part.ranges[o] for o in others)
                    and last.ranges[name][1] + 1 == part.ranges[name][0]
                    and fine[both].all(axis=0).any()
                ):
                    end = part.ranges[name][1]
                    joined[-1] = _Part(last.ranges | {name: (last.ranges[name][0], end)}, both)
                else:
                    joined.append(part)
            parts = joined
    return parts


def _finish(
    part: _Part, kernels: Sequence[str], fine: np.ndarray, seconds: np.ndarray,
    slowdown: np.ndarray,
) -> Box:  # fmt: skip
    """Of the kernels that are good enough everywhere, the fastest over all points together."""
    here = slowdown[part.points]
    good = fine[part.points].all(axis=0)
    total = np.where(good, np.log(np.where(good, here, 1.0)).sum(axis=0), math.inf)
    chosen = int(total.argmin())
    others = np.delete(seconds[part.points], chosen, axis=1)
    next_best = others.min(axis=1, initial=math.inf) / seconds[part.points, chosen]
    next_best = next_best[np.isfinite(next_best)]
    lead = float(np.exp(np.log(next_best).mean())) if len(next_best) else math.nan
    loss = float(here[:, chosen].max()) - 1
    return Box(part.ranges, kernels[chosen], len(part.points), loss, lead)


def to_rows(boxes: Sequence[Box], sm: int, where: str) -> list[Row]:
    """Rows of the table for compute capability ``sm``; ``where`` (device, day, commit) goes into
    the reasons."""
    rows = []
    for box in boxes:
        lead = "the only one that runs" if math.isnan(box.lead) else f"{box.lead:.2f}x the next"
        reason = f"{MEASURED}{lead}, {box.loss:.1%} behind the best at most, {box.points} sizes"
        rows.append(Row((sm, sm), *(box.ranges[name] for name in DIMENSIONS), box.kernel,
                        f"{reason}, {where}"))  # fmt: skip
    return rows
