"""What was collected beside the cells: channels, positions, and the choice of calibration rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Markup, join, tag
from .parts import inspected_part, missing, plots, section_of_pairs
from .record import Pair, Record
from .svg import Axis, Plot, legend, plain_number

__all__ = ["channels", "positions", "selection"]


def channels(record: Record) -> Markup:
    """Largest magnitude of every channel before and after scaling."""
    note = (
        "Channels of one tensor share a grid, and the widest sets its step. Shown is the linear "
        "whose factors differ most between channels; channels are ordered by their maximum before "
        "scaling."
    )
    return section_of_pairs(
        record, "channels", "Channels before and after scaling", note, _channels
    )


def _channels(record: Record, pair: Pair) -> Markup:
    found = inspected_part(record, pair, "channels", "No input of this model was scaled.")
    if isinstance(found, Markup):
        return found
    figures = [
        _channel_plot(found["layer"], what, found[f"{key}_before"], found[f"{key}_after"])
        for what, key in (("activation", "activation"), ("weight", "weight"))
    ]
    spread = f"{found['layer']}: standard deviation of the factors " \
             f"{plain_number(found['spreads'][found['layer']])} octaves."  # fmt: skip
    return join(tag("p", spread), plots(*figures))


def _channel_plot(layer: str, what: str, before: Sequence[float], after: Sequence[float]):
    order = sorted(range(len(before)), key=lambda k: -before[k])
    first, then = _unevenness(before), _unevenness(after)
    values = [v for v in (*before, *after) if v > 0]
    if not values:
        return missing(f"{layer}: every {what} is zero.")
    title = f"{what.capitalize()} of {layer}: the largest channel is {plain_number(first)} times " \
            f"the median before scaling, {plain_number(then)} times after"  # fmt: skip
    plot = Plot(
        title,
        Axis("channel, by its maximum before scaling", 0, len(before)),
        Axis.over(f"largest |{what}|, no unit", values, log=True),
        note=legend([("s1", -1, "before"), ("f0", 0, "after")]),
    )
    for place, k in enumerate(order):
        if after[k] > 0:
            plot.mark(place + 0.5, after[k], "f0", f"channel {k}: {plain_number(before[k])} "
                      f"before, {plain_number(after[k])} after", size=1.8)  # fmt: skip
    plot.line([(i + 0.5, before[k]) for i, k in enumerate(order) if before[k] > 0], "s1")
    return plot.render()


def _unevenness(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return max(values) / middle if middle > 0 else float("inf")


def positions(record: Record) -> Markup:
    """The range of every token position, and the static grid over it."""
    note = (
        "Every position of the sequence has its range found offline. Shown is the linear whose "
        "input differs most from one decoding step to another, after scaling: the band is what "
        "the calibration rows hold, the lines what the grid reaches; what lies outside is clipped."
    )
    return section_of_pairs(
        record, "positions", "Static ranges along the sequence", note, _positions
    )


def _positions(record: Record, pair: Pair) -> Markup:
    found = inspected_part(record, pair, "positions",
                  "No linear of this model reads more than one position.")  # fmt: skip
    if isinstance(found, Markup):
        return found
    count = len(found["lo"])
    at = [i + 0.5 for i in range(count)]
    grids = len(set(found["group"]))
    blend = found["blend"]
    how = "" if blend is None else ", one for each decoding step" if blend == 0 else \
          f", {100 * blend:.0f} % of the way from their step's range to their own"  # fmt: skip
    reach = Plot(
        f"{found['layer']}: {grids} grids follow the range of {count} positions{how}",
        Axis("token position", 0, count),
        Axis.over("input after scaling, no unit", [*found["lo"], *found["hi"], *found["grid_lo"],
                                          *found["grid_hi"]]),
        width=940, height=300,
        note=legend([("b0", -2, "least and largest input"), ("s1", -1, "ends of the static grid"),
                     *_sink_key(found)]),
    )  # fmt: skip
    reach.band(at, found["lo"], found["hi"], "b0")
    ends = [float(i) for i in range(count + 1)]
    for key in ("grid_lo", "grid_hi"):
        reach.line(list(zip(ends, [*found[key], found[key][-1]], strict=True)), "s1", stepped=True)
    low, high = min(found["scale"]), max(found["scale"])
    ratio = high / low if low > 0 else float("inf")
    title = f"{found['layer']}: the widest static scale is {plain_number(ratio)} times the finest"
    scales = Plot(
        title, Axis("token position", 0, count),
        Axis.over("scale, input per level", found["scale"], log=low > 0), width=940, height=220,
        note=legend([("s0", -1, "static scale"), *_sink_key(found)]),
    )  # fmt: skip
    line = zip(ends, [*found["scale"], found["scale"][-1]], strict=True)
    scales.line(list(line), "s0", stepped=True)
    word = "sink" if len(found["sink"]) == 1 else "sinks"
    for plot in (reach, scales):
        for number, sink in enumerate(found["sink"]):
            plot.upright(sink + 0.5, "" if number else word)
    return join(reach.render(), scales.render())


def _sink_key(found: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    if not found["sink"]:
        return []
    return [("upright", -1, f"sink position {', '.join(map(str, found['sink']))}")]


def selection(record: Record) -> Markup:
    """How far out the calibration rows lie that were kept, and those that were left."""
    note = (
        "Calibration keeps those of the model's own samples that lie farthest from their mean "
        "(Mahalanobis distance of the last block's output), at least a quarter of the kept rows "
        "of each kind."
    )
    return section_of_pairs(record, "dgc", "DGC: rows kept for calibration", note, _selection)


def _selection(record: Record, pair: Pair) -> Markup:
    c = record.comparison
    without = f"Rows were not chosen by distance: select is {c['select']}, {c['keep']} of " \
              f"{c['samples']} rows kept."  # fmt: skip
    found = inspected_part(record, pair, "selection", without)
    if isinstance(found, Markup):
        return found
    distance, kept = found["distance"], found["kept"]
    inside = [d for d, k in zip(distance, kept, strict=True) if k]
    outside = [d for d, k in zip(distance, kept, strict=True) if not k]
    middle = "" if not outside else f" (median distance {statistics.median(inside):.2f}, of " \
             f"those left {statistics.median(outside):.2f})"  # fmt: skip
    plot = Plot(
        f"{len(inside)} of {len(distance)} rows are kept{middle}",
        Axis("row, farthest first", 0, len(distance) + 1),
        Axis.over("distance, standard deviations", distance, zero=True),
        width=940, height=280,
        note=legend([("f0", 0, "kept, conditional"), ("f0", 2, "kept, unconditional"),
                     ("h4", 0, "left, conditional"), ("h4", 2, "left, unconditional")]),
    )  # fmt: skip
    half = len(distance) // 2  # conditional rows come first
    order = sorted(range(len(distance)), key=lambda i: -distance[i])
    for place, i in enumerate(order, 1):
        kind = "conditional" if i < half else "unconditional"
        state = "kept" if kept[i] else "left"
        note = f"row {i}, {kind}: distance {distance[i]:.2f}, {state}"
        plot.mark(place, distance[i], "f0" if kept[i] else "h4", note, 0 if i < half else 2, 4.5)
    return plot.render()
