"""The headline tables, and quality against bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cells import FLOAT
from ..tables import closeness_text, distance_text, model_name, pivot, scheme_title
from .markup import Markup, join, tag
from .parts import method_mark, missing, pair_name, plots, section
from .record import OURS, Pair, Record
from .svg import Axis, Plot, legend, plain_number

__all__ = ["results", "tradeoff"]

COLUMN = 40.0  # width of one scheme's marks, units of the viewBox
UNITS = {"kl": "KL from float, nats", "relative_error": "relative error"}


def results(record: Record) -> Markup:
    """Per scheme, methods by models: closeness with its best marked, Frechet distance below."""
    seeds = record.comparison["seeds"]
    continuous = any(row.get("figure") == "relative_error" for row in record.rows)
    note = (
        "Lower is better. Large: KL divergence of the next token from the float model's, in nats, "
        "under teacher forcing"
        + ("; for models of continuous tokens the relative error of the predicted noise" if
           continuous else "")
        + f". Mean of {seeds} calibration {'seed' if seeds == 1 else 'seeds'}. Small: Frechet "
        "distance in the bundled feature space with its 95 % bootstrap interval. Marked: closest "
        "of those that run in integers, and what is no farther. *: simulated, there is no integer "
        "path."
    )  # fmt: skip
    parts: list[object] = [tag("p", note, class_="faint")]
    parts += [_table(record, scheme) for scheme in (FLOAT, *record.schemes)]
    if record.missing:
        parts.append(missing(
            f"{record.missing} of the cells asked for have not been measured yet. Repeat the "
            "command below: it goes on where it stopped."
        ))  # fmt: skip
    return section("results", "Which method stays closest to the float model", *parts)


def _table(record: Record, scheme: str) -> Markup | None:
    models, lines = pivot(record.rows, scheme)
    if not lines:
        return missing(f"No cell at {scheme} has been measured yet.")
    distances = {m: cells for m, cells, _ in pivot(record.rows, scheme, distance_text)[1]}
    refused: dict[tuple[str, str], list[str]] = {}  # (method, reason) -> models
    for row in record.rows:
        if row["scheme"] == scheme and "refused" in row:
            refused.setdefault((row["method"], row["refused"]), []).append(model_name(row))
    body = []
    for method, cells, first in lines:
        row = [
            _cell(cell, distance, best and scheme != FLOAT)
            for cell, distance, best in zip(cells, distances[method], first, strict=True)
        ]
        body.append(tag("tr", tag("th", method, scope="row"), *row))
    head = tag("tr", tag("th", "method", scope="col"),
               *(tag("th", model, scope="col") for model in models))  # fmt: skip
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="results")
    reasons = [tag("li", f"{method} refused {', '.join(names)}: {reason}")
               for (method, reason), names in refused.items()]  # fmt: skip
    title = "The float model itself" if scheme == FLOAT else scheme_title(record.rows, scheme)
    return join(tag("h3", title), tag("div", table, class_="scroll"),
                tag("ul", *reasons) if reasons else None)  # fmt: skip


def _cell(text: str, distance: str, best: bool) -> Markup:
    if not text:
        return tag("td", tag("span", "not measured", class_="faint"))
    if text == "-":
        return tag("td", tag("span", "refused", class_="faint"))
    return tag("td", text, tag("small", distance), class_="best" if best else None)


def tradeoff(record: Record) -> Markup:
    """Closeness against the bytes of the weights, one mark per method and scheme."""
    rows = [row for row in record.rows if "refused" not in row and row["method"] != FLOAT]
    keys = []
    for method in dict.fromkeys(row["method"] for row in rows):
        colour, shape = method_mark(record, method)
        keys.append((f"f{colour}", shape, method))
    figures = [_tradeoff(record, pair, rows) for pair in record.pairs]
    return section(
        "bytes", "Quality against bytes", legend(keys),
        tag("p", "Bytes of the linears' weights as packed; methods of one scheme, or one budget, "
            "which have the same, or nearly, stand side by side. Point at a mark for its figures.",
            class_="faint"),
        plots(*figures),
    )  # fmt: skip


def _tradeoff(record: Record, pair: Pair, rows: list[Mapping[str, Any]]) -> Markup:
    here = [row for row in rows if (row["model"], row["stress"]) == pair]
    if not here:
        return missing(f"{pair_name(pair)}: no quantized cell yet.")
    unit = UNITS[here[0]["figure"]]
    best = min(here, key=lambda row: row["closeness"])
    title = f"{pair_name(pair)}: lower left is better; closest is {best['method']} at " \
            f"{best['scheme']} with {plain_number(best['closeness'])}"  # fmt: skip
    megabytes = [row["weight_bytes"] / 1e6 for row in here]
    plot = Plot(
        title,
        Axis.over("weights, MB", [*megabytes, 0.85 * min(megabytes), 1.15 * max(megabytes)]),
        Axis.over(unit, [row["closeness"] for row in here] + [
            1.6 * max(row["closeness"] for row in here)], log=True),
    )  # fmt: skip
    for scheme in dict.fromkeys(row["scheme"] for row in here):
        column = [row for row in here if row["scheme"] == scheme]
        top = max(column, key=lambda row: row["closeness"])
        plot.text(top["weight_bytes"] / 1e6, top["closeness"], scheme)
    methods = list(dict.fromkeys(row["method"] for row in here))
    apart = min(12.0, COLUMN / len(methods))
    for row in sorted(here, key=lambda row: row["method"] == OURS):  # our own on top
        colour, shape = method_mark(record, row["method"])
        size = f"{row['weight_bytes'] / 1e6:.2f} MB, Frechet distance {distance_text(row)}"
        if row.get("mean_bits") is not None:
            size = f"{row['mean_bits']:.2f} bits a weight, {size}"
        note = f"{row['method']} at {row['scheme']}: {closeness_text(row)}, {size}"
        plot.mark(row["weight_bytes"] / 1e6, row["closeness"], f"f{colour}", note, shape, 5,
                  apart * (methods.index(row["method"]) - (len(methods) - 1) / 2))  # fmt: skip
    return plot.render()
