"""What bench/tune.py has measured: a CSV file that a later run continues."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from record import write_csv
from tile_choice import Point

__all__ = ["COLUMNS", "OUTPUTS", "SAME", "Measurements", "Size"]

OUTPUTS = {"codes": 1, "float32": 4}  # bytes of an element
# What makes measurements comparable.
SAME = ("commit", "device", "torch", "sm")
COLUMNS = ("date", *SAME, "bits", "output", "N", "K", "M", "kernel", "median_us", "p10_us",
           "p90_us", "repeats", "disturbed", "note")  # fmt: skip


class Size(NamedTuple):
    """One product to measure."""

    n: int
    k: int
    bits: int
    m: int
    output: str

    def of(self) -> dict[str, Any]:
        """Its columns."""
        return {"bits": self.bits, "output": self.output, "N": self.n, "K": self.k, "M": self.m}


class Measurements:
    """The CSV file of all rows; every size is added to it as soon as it is measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if not path.exists():
            return
        text = path.read_text()
        reader = csv.DictReader(text.splitlines())
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has other columns; wanted {', '.join(COLUMNS)}")
        self.rows = list(reader)
        if not text.endswith("\n"):  # a run was killed while it wrote its last size
            self.rows.pop()
            last = _size(self.rows[-1]) if self.rows else None
            self.rows = [row for row in self.rows if _size(row) != last]
            write_csv(path, COLUMNS, self.rows)

    def require_same(self, shared: dict[str, Any]) -> None:
        """ValueError unless all rows come from this device and this commit."""
        for row in self.rows:
            for name in SAME:
                if row[name] != str(shared[name]):
                    raise ValueError(f"{self.path} was measured with {name} {row[name]}, this is "
                                     f"{shared[name]}; wanted another --measurements")  # fmt: skip

    def sizes(self) -> set[Size]:
        """The sizes that are measured."""
        return {_size(row) for row in self.rows}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows of one size, all in one write."""
        text = [{name: _text(row.get(name, "")) for name in COLUMNS} for row in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(text)
        self.rows += text

    def points(self) -> list[Point]:
        """Each size with its kernels' seconds."""
        seconds: dict[Size, dict[str, float]] = defaultdict(dict)
        for row in self.rows:
            if row["median_us"]:
                seconds[_size(row)][row["kernel"]] = 1e-6 * float(row["median_us"])
        return [Point(s.m, s.n, s.k, s.bits, OUTPUTS[s.output], by) for s, by in seconds.items()]


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _size(row: dict[str, str]) -> Size:
    return Size(int(row["N"]), int(row["K"]), int(row["bits"]), int(row["M"]), row["output"])
