"""The cells of a comparison as they lie in its folder, and their summary. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FLOAT", "cell_name", "inspection_name", "read_cells", "summarize"]

FLOAT = "float"  # method and scheme of the rows of the model as it is


def cell_name(cell: Mapping[str, Any]) -> str:
    """The name of a cell's files."""
    parts = cell["model"], f"{cell['stress']:g}", cell["method"], cell["scheme"], cell["seed"]
    return "_".join(map(str, parts)).replace(" ", "-")


def inspection_name(model: str, stress: float, scheme: str | None) -> str:
    """The name of the file that holds what was collected of one model beside its cells."""
    return f"{model}_{stress:g}_{scheme}".replace(" ", "-")


def _read_json(path: Path, key: str) -> dict[str, Any]:
    """What ``run_comparison`` wrote, with that key in it. ValueError if the file is damaged."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and key in content:
            return content
    except ValueError:  # of JSON, or of the encoding
        pass
    raise ValueError(f"{path} is damaged; delete it, and type the same command again")


def read_settings(out: Path) -> dict[str, Any] | None:
    """The settings of the cells in a folder; None where there are none yet. ValueError if it is
    damaged."""
    path = out / "comparison.json"
    if not path.is_file():
        return None
    return _read_json(path, "settings")["settings"]


def read_cells(out: Path) -> list[dict[str, Any]]:
    """The measured cells in a folder that ``run_comparison`` wrote, in order of measurement."""
    if not (out / "comparison.json").is_file():
        raise FileNotFoundError(
            f"no comparison.json in {str(out)!r}; wanted a folder that `ptq4arvg compare` wrote"
        )
    cells = [_read_json(path, "number") for path in (out / "cells").glob("*.json")]
    return sorted(cells, key=lambda cell: cell["number"])


def summarize(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per (model, stress, scheme, method): means over the seeds, and their spread.

    closeness: the mean next-token KL, or the relative error of the predicted noise where tokens are
    continuous; closeness_range: least and largest of the seeds; fd, fd_range likewise, over the
    seeds that images were drawn with; fd_interval: the bootstrap interval of the first seed.
    weight_bytes and mean_bits, the bits of a quantized weight, are means, too: what a budget,
    target_bits, chooses depends on the calibration rows.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        key = cell["model"], cell["stress"], cell["scheme"], cell["method"]
        groups.setdefault(key, []).append(cell)
    rows = []
    for (model, stress, scheme, method), group in groups.items():
        row = {"model": model, "stress": stress, "scheme": scheme, "method": method,
               "seeds": len(group)}  # fmt: skip
        if "refused" in group[0]:
            rows.append(row | {"refused": group[0]["refused"]})
            continue
        figure = "relative_error" if group[0]["kl"] is None else "kl"
        close = [cell[figure] for cell in group]
        distance = [cell["fd"] for cell in group if "fd" in cell]
        seconds = [cell["seconds_per_image"] for cell in group if cell["seconds_per_image"]]
        rows.append(row | {
            "figure": figure,
            "closeness": sum(close) / len(close), "closeness_range": [min(close), max(close)],
            "fd": sum(distance) / len(distance), "fd_range": [min(distance), max(distance)],
            "fd_interval": group[0]["fd_interval"],
            "weight_bytes": round(sum(cell["weight_bytes"] for cell in group) / len(group)),
            "mean_bits": _mean_bits(group),
            "target_bits": group[0].get("target_bits"),
            "integer": group[0].get("integer"),
            "sqnr_db": None if method == FLOAT else sum(c["sqnr_db"] for c in group) / len(group),
            "seconds_per_image": min(seconds),
        })  # fmt: skip
    return rows


def _mean_bits(group: list[Mapping[str, Any]]) -> float | None:
    """Mean over the seeds; None for the float model, and for cells of before it was noted."""
    bits = [cell.get("mean_bits") for cell in group]
    return None if None in bits else sum(bits) / len(bits)
