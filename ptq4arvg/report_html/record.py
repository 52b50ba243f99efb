"""What a comparison's folder holds, read once and passed to every section."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cells import FLOAT, cell_name, inspection_name, read_cells, summarize

__all__ = ["OURS", "Pair", "Record", "read_record"]

OURS = "ptq4arvg"
Pair = tuple[str, float]  # model, stress


@dataclass(frozen=True)
class Record:
    """comparison: what comparison.json says; cells: those it asks for; others: how many more there
    are; rows: their summary; inspections: what was collected of a model beside its cells."""

    folder: Path
    comparison: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]
    others: int
    rows: Sequence[Mapping[str, Any]]
    inspections: Mapping[Pair, Mapping[str, Any]]

    @property
    def pairs(self) -> list[Pair]:
        """Every (model, stress) compared, in order."""
        asked = self.comparison
        return [(m, s) for m in asked["models"] for s in asked["stresses"]]

    @property
    def schemes(self) -> list[str]:
        """The schemes that there are rows of."""
        there = {row["scheme"] for row in self.rows}
        return [scheme for scheme in self.comparison["schemes"] if scheme in there]

    @property
    def missing(self) -> int:
        """Quantized cells that were asked for and are not there."""
        c = self.comparison
        asked = len(self.pairs) * len(c["methods"]) * len(c["schemes"]) * c["seeds"]
        return asked - sum(cell["method"] != FLOAT for cell in self.cells)

    def cell(self, pair: Pair, method: str, scheme: str) -> Mapping[str, Any] | None:
        """The measured cell of the first calibration seed, None if it is missing or refused."""
        for cell in self.cells:
            key = cell["model"], cell["stress"], cell["method"], cell["scheme"], cell["seed"]
            if key == (*pair, method, scheme, 0):
                return None if "refused" in cell else cell
        return None

    def png(self, cell: Mapping[str, Any]) -> bytes | None:
        """The strip of images kept of a cell, None if there is none."""
        name = f"{cell_name(cell)}.png"
        path = self.folder / "images" / name
        if Path(name).name != name or not path.is_file():  # a name is a file's, never a path
            return None
        data = path.read_bytes()
        return data if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def read_record(folder: str | Path) -> Record:
    """Read a folder. FileNotFoundError if `ptq4arvg compare` did not write it, ValueError if a
    file in it is damaged."""
    folder = Path(folder)
    try:
        found = read_cells(folder)
        comparison = json.loads((folder / "comparison.json").read_text())
        cells = [cell for cell in found if _asked(comparison, cell)]
        inspections = {}
        for pair in {(cell["model"], cell["stress"]) for cell in cells}:
            name = inspection_name(*pair, comparison.get("inspected"))
            path = folder / "inspection" / f"{name}.json"
            if path.is_file():
                inspections[pair] = json.loads(path.read_text())
        return Record(folder, comparison, cells, len(found) - len(cells), summarize(cells),
                      inspections)  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"report: a file in {str(folder)!r} is not what `ptq4arvg compare` writes "
            f"({type(error).__name__}: {error}). Type: ptq4arvg compare ... --out {folder}"
        ) from None


def _asked(comparison: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Whether the comparison asks for a cell: a folder may hold those of earlier ones, too."""
    if cell["model"] not in comparison["models"] or cell["stress"] not in comparison["stresses"]:
        return False
    if cell["method"] == FLOAT:
        return True
    known = cell["method"] in comparison["methods"] and cell["scheme"] in comparison["schemes"]
    return known and cell["seed"] < comparison["seeds"]
