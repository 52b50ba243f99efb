"""The table of the CUDA GEMM kernels as a file: csrc/kernels/cuda/tile_table.inc."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["ANY", "DIMENSIONS", "PATH", "Row", "parse", "render", "with_measured"]

PATH = Path(__file__).resolve().parents[1] / "csrc" / "kernels" / "cuda" / "tile_table.inc"
ANY = 2**63 - 1
# Of the size of a product, in the order of a row's numbers.
DIMENSIONS = ("m", "n", "k", "bits", "out_bytes")
MEASURED = "measured: "
_ROW = re.compile(r'ROW\(((?:\s*\w+,){12})\s*"([^"\\]+)",\s*"([^"\\]+)"\)')

Range = tuple[int, int]


class Row(NamedTuple):
    """A row: ranges, both ends included, and the kernel that takes what fits all of them."""

    sm: Range
    m: Range
    n: Range
    k: Range
    bits: Range
    out_bytes: Range
    kernel: str
    reason: str


def parse(text: str) -> tuple[str, list[Row]]:
    """(the comment above the rows, the rows). ValueError names a line that is neither."""
    lines = text.splitlines()
    head = [line for line in lines if line.startswith("//")]
    rows = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("//"):
            continue
        match = _ROW.fullmatch(line)
        if not match:
            raise ValueError(
                f"tile table, line {number}: {line!r} is no row; wanted ROW(12 numbers or any, "
                '"kernel", "reason")'
            )
        ends = [ANY if part == "any" else int(part) for part in match[1].replace(",", " ").split()]
        rows.append(Row(*zip(ends[::2], ends[1::2], strict=True), match[2], match[3]))
    return "\n".join(head) + "\n", rows


def render(head: str, rows: Sequence[Row]) -> str:
    """The text of the file, the numbers in columns."""
    cells = [
        [*(("any" if end == ANY else str(end)) for ends in row[:6] for end in ends),
         f'"{row.kernel}"'] for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "ROW(" + ", ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        + f', "{row.reason}")\n' for line, row in zip(cells, rows, strict=True)
    ]  # fmt: skip
    return head + "".join(lines)


def with_measured(rows: Sequence[Row], measured: Sequence[Row], sm: int) -> list[Row]:
    """``measured`` before the rest of ``rows``, in the place of what was measured on sm before.

    The expectations stay: they take what the measured kernel cannot, operands out of alignment or
    a build without it.
    """
    old = [row for row in rows if row.sm == (sm, sm) and row.reason.startswith(MEASURED)]
    return [*measured, *(row for row in rows if row not in old)]
