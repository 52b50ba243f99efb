"""Layer by layer: signal to noise, and the gain that GPS predicted against the measured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Markup, join, tag
from .parts import inspected_part, missing, plots, section_of_pairs, shown_scheme
from .record import OURS, Pair, Record
from .svg import Axis, Plot, legend

__all__ = ["gains", "layers"]

WORST = 10
LOWEST = -100.0  # percent: a measured gain below is drawn here


def layers(record: Record) -> Markup:
    """SQNR of every layer's output under our method, the worst ones listed."""
    note = (
        "Signal to quantization noise of each linear's output over the calibration sample, given "
        "the float model's inputs, in the order of computation."
    )
    return section_of_pairs(record, "layers", "Where the noise is", note, _layers)


def _layers(record: Record, pair: Pair) -> Markup:
    scheme = shown_scheme(record)
    cell = record.cell(pair, OURS, scheme)
    if cell is None or not cell.get("layers"):
        return missing(f"The folder holds no cell of {OURS} at {scheme}, seed 0.")
    values = list(cell["layers"].items())
    chosen = cell.get("schemes", {})  # of a budget: every layer has its own
    order = sorted(values, key=lambda item: item[1])
    worst = dict(order[:WORST])
    mean = sum(value for _, value in values) / len(values)
    plot = Plot(
        f"{OURS} at {scheme}: {mean:.1f} dB on average; the weakest is {order[0][0]} with "
        f"{order[0][1]:.1f} dB",
        Axis("linear, in the order of computation", 0.4, len(values) + 0.6),
        Axis.over("SQNR of the output, dB", [v for _, v in values], zero=True),
        width=940, height=300,
        note=legend([("f0", 1, "layers"), ("f1", 1, f"the {len(worst)} worst")]),
    )  # fmt: skip
    for number, (name, value) in enumerate(values, 1):
        cls = "f1" if name in worst else "f0"
        plot.bar(number, 0.8, value, cls, f"{number}. {name}: {value:.1f} dB"
                 + (f" at {chosen[name]}" if chosen else ""))  # fmt: skip
    position = {name: number for number, (name, _) in enumerate(values, 1)}
    rows = [
        tag("tr", tag("td", position[name]), tag("td", tag("code", name)),
            tag("td", f"{value:.1f}"), tag("td", _input(cell["transforms"].get(name))),
            tag("td", chosen[name]) if chosen else None)
        for name, value in worst.items()
    ]  # fmt: skip
    names = ("no.", "linear", "SQNR, dB", "input", *(["scheme"] if chosen else []))
    head = tag("tr", *(tag("th", text, scope="col") for text in names))
    table = tag("table", tag("caption", f"The {len(worst)} worst layers"), tag("thead", head),
                tag("tbody", *rows))  # fmt: skip
    return join(plot.render(), tag("div", table, class_="scroll"))


def _input(record: Mapping[str, Any] | None) -> str:
    """What the method did to a linear's input."""
    record = record or {}
    if record.get("rotation"):
        first = "scaled, then " if record.get("rotated_after") else ""
        return f"{first}rotated, blocks of {record['rotation']}"
    return "scaled" if "smooth" in record else "as it is"


def gains(record: Record) -> Markup:
    """What GPS expected of its step, against what the sample says."""
    note = (
        "Each mark is a linear whose input GPS scales, in per cent of its mean squared output "
        "error after smoothing and centring. Predicted is the second-order expansion behind GPS on "
        "the grids that the scaled tensors have; on the diagonal it holds. The gain of the closed "
        "form takes the grids as fixed, and does not tell how the error changes: that is why a "
        "shorter step may be taken, or none."
    )
    return section_of_pairs(record, "gps", "GPS: predicted against measured gain", note, _gains)


def _gains(record: Record, pair: Pair) -> Markup:
    outputs = inspected_part(record, pair, "outputs", "This model has no quantized linear.")
    if isinstance(outputs, Markup):
        return outputs
    figures = [
        _gain_plot(scheme, cell, outputs)
        for scheme in record.schemes
        if (cell := record.cell(pair, OURS, scheme))
    ]
    return plots(*figures) if figures else missing(f"The folder holds no cell of {OURS}.")


def _gain_plot(scheme: str, cell: Mapping[str, Any], outputs: Mapping[str, int]) -> Markup:
    found = []
    for name, record in cell["transforms"].items():
        if "gain_predicted" in record and record["error_before"] > 0 and name in outputs:
            before = record["error_before"]
            predicted = 100 * (1 - record["expected_whole_step"] / record["expected_before"])
            # The derivation's gain is of half the summed squared error.
            derived = 200 * record["gain_predicted"] / outputs[name] / before
            whole = 100 * (1 - record["error_whole_step"] / before)
            taken = max(0.0, 100 * (1 - record["error_after"] / before))
            found.append((name, predicted, whole, taken, record.get("gps_share", 1.0), derived))
    if not found:
        return missing(f"At {scheme} GPS scaled no linear.")
    predictions, wholes, takens = ([f[i] for f in found] for i in (1, 2, 3))
    shown = [[max(value, LOWEST) for value in values] for values in (predictions, wholes)]
    x = Axis.over("predicted reduction of the squared error, %", shown[0], zero=True)
    y = Axis.over("measured reduction, %", [*shown[1], *takens, 0.0, 0.3 * x.hi])
    helped = sum(taken > 0 for taken in takens)
    plot = Plot(
        f"{scheme}: GPS lowers the measured error of {helped} of {len(found)} linears; rank "
        f"correlation of prediction and whole step {_order(predictions, wholes)}, of the closed "
        f"form's gain and whole step {_order([f[5] for f in found], wholes)}",
        x, y, height=310,
        note=legend([("h4", 0, "whole step"), ("f0", 0, "step taken"), ("s1", -1, "as predicted"),
                     *([("h1", 3, f"below {LOWEST:.0f} %")] if min(shown[1]) == LOWEST else [])]),
    )  # fmt: skip
    end = min(x.hi, y.hi)
    plot.line([(max(x.lo, y.lo), max(x.lo, y.lo)), (end, end)], "s1 dash")
    for name, predicted, whole, taken, share, _ in found:
        low = whole <= LOWEST
        note = f"{name}: predicted {predicted:.1f} %, whole step {whole:.1f} %, taken {taken:.1f} %"
        note += f" with share {share:g}"
        at = max(predicted, LOWEST)
        plot.mark(at, max(whole, LOWEST), "h1" if low else "h4", note, 3 if low else 0)
        plot.mark(at, taken, "f0", note)
    return plot.render()


def _order(a: Sequence[float], b: Sequence[float]) -> str:
    order = _rank_correlation(a, b)
    return "undefined" if order is None else f"{order:.2f}"


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's, with mean ranks for ties; None where one of both does not vary."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [
            sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2
            for value in values
        ]

    a, b = ranks(a), ranks(b)
    middle = (len(a) - 1) / 2
    products = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    norm = sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b)
    return products / norm**0.5 if norm > 0 else None
