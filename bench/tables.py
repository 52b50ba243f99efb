"""Tables of measurements on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import geometric_mean

__all__ = ["detail", "show", "summary"]

Rows = list[dict[str, Any]]


def _console() -> Console:
    # Wide enough for every column where the output is a file or a pipe.
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)


def show(title: str, head: Iterable[str], lines: Iterable[Iterable[str]]) -> None:
    """Print a table, its first column to the left and the numbers to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(head):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    _console().print(table)


def _mean(rows: Rows, column: str, form: str) -> str:
    values = [row[column] for row in rows if row.get(column)]
    return format(geometric_mean(values), form) if values else ""


def summary(rows: Rows, peers: list[str]) -> None:
    """Per candidate of ours and M: geometric means over the linears of the shapes."""
    ours = [row for row in rows if row.get("bits")]
    gemm = any(row["op"] == "gemm" for row in ours)
    ratios = [*peers, "separate", "bare"] if gemm else peers
    lines = []
    for candidate in dict.fromkeys(row["candidate"] for row in ours):
        for m in sorted({row["M"] for row in ours}):
            found = [r for r in ours if r["candidate"] == candidate and r["M"] == m]
            if not found:
                continue
            lines.append([
                candidate, str(m), *(_mean(found, f"x_{peer}", ".2f") for peer in ratios),
                _mean(found, "gops", ".0f"), _mean(found, "gbytes_s", ".1f"),
                _mean(found, "peak_share", ".0%"), _mean(found, "bandwidth_share", ".0%"),
            ])  # fmt: skip
    head = ["candidate", "M", *(f"x {peer}" for peer in ratios), "Gop/s", "GB/s", "peak", "memory"]
    shapes = ", ".join(dict.fromkeys(row["shape"] for row in rows))
    show(f"{shapes}: how many times faster (geometric mean over the layers)", head, lines)
    refused = {r["candidate"]: r["note"] for r in rows if r.get("note")}
    for name, note in refused.items():
        sys.stdout.write(f"{name}: {note}\n")
    disturbed = [row["disturbed"] for row in rows if "disturbed" in row]
    mean = sum(disturbed) / max(len(disturbed), 1)
    if mean > 0.05:
        sys.stdout.write(
            f"Other processes disturbed {mean:.0%} of the timings: repeat on a quiet machine\n"
        )


def detail(rows: Rows, peers: list[str]) -> None:
    """Every measurement."""
    lines = []
    for row in rows:
        if "median_us" not in row:
            continue
        ratios = [format(row[f"x_{p}"], ".2f") if row.get(f"x_{p}") else "" for p in peers]
        lines.append([
            row["candidate"], row["shape"], row["layer"], str(row["N"]), str(row["K"]),
            str(row["M"]), *(f"{row[c]:.1f}" for c in ("median_us", "p10_us", "p90_us")),
            str(row["repeats"]), f"{row['gops']:.0f}" if row.get("gops") else "", *ratios,
        ])  # fmt: skip
    head = ["candidate", "shape", "layer", "N", "K", "M", "us", "p10", "p90", "repeats", "Gop/s"]
    show("all measurements", [*head, *(f"x {peer}" for peer in peers)], lines)
