"""The summary of a comparison as tables: Markdown, LaTeX, CSV and the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = [
    "csv_table", "latex_table", "markdown_pivot", "pivot", "scheme_title", "significant",
    "terminal_tables",
]  # fmt: skip

Row = Mapping[str, Any]

CSV_COLUMNS = (
    "model", "stress", "scheme", "method", "seeds", "figure", "closeness", "closeness_low",
    "closeness_high", "fd", "fd_low", "fd_high", "fd_interval_low", "fd_interval_high", "sqnr_db",
    "weight_bytes", "integer", "seconds_per_image", "refused", "target_bits", "mean_bits",
)  # fmt: skip


def significant(value: float, digits: int = 2) -> str:
    """So many significant digits, zeros at the end included: "0.020" tells 0.020 from 0.02."""
    return f"{value:#.{digits}g}".removesuffix(".") if value else "0"


def model_name(row: Row) -> str:
    """The model, with its stress if there is any."""
    return f"{row['model']}, stressed {row['stress']:g}" if row["stress"] else row["model"]


def _rounded(row: Row) -> float:
    return float(significant(row["closeness"]))


def closeness_text(row: Row) -> str:
    """Two digits of the figure that compares with the float model; "-" where there is none."""
    if "refused" in row:
        return "-"
    text = significant(row["closeness"])
    return text if row["integer"] is not False else f"{text}*"


def distance_text(row: Row) -> str:
    """The Frechet distance with its interval."""
    if "refused" in row:
        return "-"
    low, high = row["fd_interval"]
    return f"{row['fd']:.1f} ({low:.1f} to {high:.1f})"


def scheme_title(rows: Sequence[Row], scheme: str) -> str:
    """The scheme; for a budget with the mean bits of the weights that were reached."""
    reached = [
        f"{row['mean_bits']:.2f}" for row in rows
        if row["scheme"] == scheme and row.get("target_bits") is not None
    ]  # fmt: skip
    if not reached:
        return scheme
    low, high = min(reached), max(reached)  # all have one digit before the point
    return f"{scheme} (reached {low})" if low == high else f"{scheme} (reached {low} to {high})"


def pivot(
    rows: Sequence[Row], scheme: str, text: Callable[[Row], str] = closeness_text
) -> tuple[list[str], list[tuple[str, list[str], list[bool]]]]:
    """(models, (method, cell per model, whether it is the model's best)) at one scheme.

    Best: the least closeness among the methods that run in integers, and any simulated one that is
    no farther; a tie after rounding is a tie.
    """
    here = [row for row in rows if row["scheme"] == scheme]
    models = list(dict.fromkeys(model_name(row) for row in here))
    methods = list(dict.fromkeys(row["method"] for row in here))
    found = {(row["method"], model_name(row)): row for row in here}
    best = {
        model: min(
            (_rounded(found[m, model]) for m in methods
             if "closeness" in found.get((m, model), {})
             and found[m, model]["integer"] is not False),
            default=math.inf,
        )
        for model in models
    }  # fmt: skip
    lines = []
    for method in methods:
        cells, first = [], []
        for model in models:
            row = found.get((method, model))
            cells.append("" if row is None else text(row))
            measured = row is not None and "refused" not in row
            first.append(measured and _rounded(row) <= best[model])
        lines.append((method, cells, first))
    return models, lines


def markdown_pivot(rows: Sequence[Row], scheme: str) -> str:
    """Methods by models at one scheme, the best of a model in bold (see ``pivot``)."""
    models, lines = pivot(rows, scheme)
    out = [
        f"| {scheme_title(rows, scheme)} | " + " | ".join(models) + " |",
        "|---" + "|---:" * len(models) + "|",
    ]
    for method, cells, first in lines:
        shown = [f"**{c}**" if b else c for c, b in zip(cells, first, strict=True)]
        out.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(out) + "\n"


def latex_table(rows: Sequence[Row]) -> str:
    """All schemes below each other as a ``tabular`` (booktabs)."""
    schemes = list(dict.fromkeys(row["scheme"] for row in rows if row["scheme"] != "float"))
    models = pivot(rows, schemes[0])[0] if schemes else []
    out = [r"\begin{tabular}{ll" + "r" * len(models) + "}", r"\toprule"]
    heads = " & ".join(_escape(model) for model in models)
    out.append(rf"bits & method & {heads} \\")
    for scheme in schemes:
        out.append(r"\midrule")
        title = scheme_title(rows, scheme)
        if title != scheme:
            out.append(rf"\multicolumn{{{2 + len(models)}}}{{l}}{{{title}}} \\")
        for method, cells, first in pivot(rows, scheme)[1]:
            shown = [
                rf"\textbf{{{_escape(c)}}}" if b else _escape(c)
                for c, b in zip(cells, first, strict=True)
            ]
            out.append(rf"{scheme} & {_escape(method)} & {' & '.join(shown)} \\")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("*", r"$^*$")


def csv_table(rows: Sequence[Row]) -> str:
    """Every figure of every row."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = dict(row)
        for key in ("closeness_range", "fd_range", "fd_interval"):
            if key in row:
                low, high = row[key]
                stem = key.removesuffix("_range")
                flat[f"{stem}_low"], flat[f"{stem}_high"] = low, high
        writer.writerow(flat)
    return file.getvalue()


def terminal_tables(rows: Sequence[Row]) -> list[Any]:
    """One ``rich`` table per scheme: closeness, with the Frechet distance below it."""
    from rich import box
    from rich.table import Table

    tables = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        models, lines = pivot(rows, scheme)
        distances = {m: c for m, c, _ in pivot(rows, scheme, distance_text)[1]}
        table = Table(title=scheme_title(rows, scheme), title_justify="left", box=box.SIMPLE_HEAD,
                      pad_edge=False)  # fmt: skip
        table.add_column("method", no_wrap=True)
        for model in models:
            table.add_column(model, justify="right")
        for method, cells, first in lines:
            shown = [
                f"[bold]{c}[/bold]\n[dim]{d}[/dim]" if b else f"{c}\n[dim]{d}[/dim]"
                for c, d, b in zip(cells, distances[method], first, strict=True)
            ]
            table.add_row(method, *shown)
        tables.append(table)
    return tables
