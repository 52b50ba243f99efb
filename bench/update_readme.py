#!/usr/bin/env python3
"""Put the table of a demo's report.json between the markers of README.md.

    python bench/update_readme.py demo/report.json

The picture goes with it: grid.png beside the report is copied to bench/results/demo/.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ptq4arvg.report import markdown_table

BEGIN, END = "<!-- demo-table -->", "<!-- /demo-table -->"
ROOT = Path(__file__).resolve().parent.parent


def replace_table(text: str, table: str) -> str:
    """``text`` with ``table`` between the markers. ValueError unless both are there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md wants one {BEGIN} and one {END} after it")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def main(report: Path) -> None:
    """Update README.md and bench/results/demo/ from ``report``."""
    data = json.loads(report.read_text())
    readme = ROOT / "README.md"
    readme.write_text(replace_table(readme.read_text(), markdown_table(data["rows"])))
    target = ROOT / "bench" / "results" / "demo"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("grid.png", "report.json"):
        shutil.copyfile(report.with_name(name), target / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
