"""`ptq4arvg compare`: measure methods against each other and write the tables."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..progress import make_progress
from .common import closing, header, split

__all__ = ["run"]

NOTE = (
    "Lower is better; in bold the least of the methods that run in integers, and what is no "
    "farther. KL: next token against the float model under teacher forcing; for models of "
    "continuous tokens the relative error of the predicted noise. Below it the Frechet distance in "
    "the bundled feature space with a 95 % bootstrap interval. *: simulated, there is no integer "
    "path."
)


def run(
    models: list[str], methods: str, schemes: str, out: Path, quiet: bool, jobs: int, **rest: Any
) -> None:
    """Write cells, report.html and summary.csv, .md and .tex to ``out``; print the tables.

    models: names, or "all"; methods: comma-separated, or "all"; schemes: comma-separated, with
    budgets such as 5.5 among them. jobs: processes. rest:
    further fields of a ``Comparison``.
    """
    header(f"compare {', '.join(models)}", None, quiet)
    start = time.perf_counter()
    with make_progress(quiet) as progress:
        progress.say("loading torch and the operators")
        from ..cells import FLOAT, summarize
        from ..compare import Comparison, all_methods, run_comparison
        from ..models import BUNDLED
        from ..report_html import write_page
        from ..serialize import check_writable, write_file
        from ..tables import csv_table, latex_table, markdown_pivot, terminal_tables

        if jobs < 1:
            raise ValueError(f"compare: jobs is {jobs}; wanted 1 process or more")
        check_writable(out)
        comparison = Comparison(
            models=BUNDLED if models == ["all"] else tuple(models),
            methods=all_methods() if methods == "all" else split(methods),
            schemes=split(schemes), **rest,
        )  # fmt: skip
        summary = summarize(run_comparison(comparison, out, progress, jobs=jobs))
    write_file(out / "summary.csv", csv_table(summary))
    found = [scheme for scheme in comparison.schemes if any(r["scheme"] == scheme for r in summary)]
    write_file(out / "summary.md", "\n".join(markdown_pivot(summary, s) for s in (FLOAT, *found)))
    write_file(out / "summary.tex", latex_table(summary))
    write_page(out)

    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=40 + 26 * len(comparison.models) * len(comparison.stresses))
    for table in terminal_tables(summary):
        console.print(table)
    print(NOTE)
    refused = {r["method"]: r["refused"] for r in summary if "refused" in r}
    for method, reason in refused.items():
        print(f"{method} refused: {reason}")
    closing(
        f"{out / 'report.html'}, summary.csv, summary.md, summary.tex and {len(summary)} rows' "
        "cells",
        _headline(summary, found),
        f"open {out / 'report.html'} in a browser",
    )
    if not quiet:
        print(f"{time.perf_counter() - start:.0f} s in this run.")


def _headline(summary: list[dict[str, Any]], schemes: list[str]) -> str:
    """Where the package's own method is first among those that run in integers."""
    from ..tables import pivot

    parts = []
    for scheme in schemes:
        models, lines = pivot(summary, scheme)
        ours = [first for method, _, first in lines if method == "ptq4arvg"]
        if ours and len(lines) > 1:
            parts.append(f"{sum(ours[0])} of {len(models)} at {scheme}")
    if not parts:
        return "the tables above"
    return f"of the methods that run in integers ptq4arvg is first on {', '.join(parts)}"
