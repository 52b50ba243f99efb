"""The demo: one model, quantized several ways, measured with the same seeds throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .calibration import calibrate
from .collected import Collected
from .errors import closest
from .evaluation import Yardstick, draw_images
from .goals import parse_goal, parse_goals
from .models import BUNDLED, ARVGModel, load_model
from .pipeline import quantize_
from .report import Block
from .tables import significant

__all__ = ["MODEL", "SCHEMES", "STRESS", "Demo", "closeness", "demo_runs", "headline", "run_demo"]

MODEL = "var-tiny"
STRESS = 30.0
SCHEMES = ("W8A8", "W6A6", "W4A8")

# Small on purpose: the whole demo has to fit into minutes on two slow cores.
SAMPLES, KEEP, COMPARED = 64, 32, 16
# Classes whose samples can be told at a glance, for the grid.
SHOWN = (0, 2, 4, 7, 15, 18, 20, 21, 24, 25)

Progress = Callable[[str, int, int], None]


@dataclass
class Demo:
    """What the demo found: the report's data, and the blocks and column names of the grid."""

    report: dict[str, Any]
    blocks: list[Block]
    columns: list[str]


def demo_runs(schemes: Iterable[str] = SCHEMES) -> list[tuple[str, str]]:
    """(method, scheme) after the float model: the package's own method at every scheme or budget
    (see ``parse_goal``), then round to nearest at W6A6 if that is among them, else at the first."""
    names = [goal.name for goal in parse_goals(schemes)]
    return [*(("ptq4arvg", name) for name in names),
            ("rtn", "W6A6" if "W6A6" in names else names[0])]  # fmt: skip


def _labels(images: int, classes: int) -> Tensor:
    """The shown classes first, then all classes in turn."""
    shown = [label for label in SHOWN if label < classes][:images]
    rest = [label for label in range(classes) if label not in shown]
    order = torch.tensor(shown + rest)
    return order.repeat(-(-images // classes))[:images]


def run_demo(
    name: str = MODEL,
    seed: int = 0,
    images: int = 64,
    stressed: bool = True,
    progress: Progress | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    runs: Iterable[tuple[str, str]] | None = None,
) -> Demo:
    """Measure a bundled model in float and its quantizations, plain and stressed.

    Calibration uses ``seed``, images and comparison ``seed + 1``. on_row is called with every
    finished row. The stressed model computes the same function as the plain one. runs: (method,
    scheme or budget) after the float model; None: those of ``demo_runs``.
    """
    if name not in BUNDLED:
        raise ValueError(
            f"demo: {name!r} is not bundled; wanted one of {', '.join(BUNDLED)}. "
            f"{closest(name, BUNDLED)}"
        )
    if images < 2:
        raise ValueError(f"demo: {images} images; wanted at least 2 for a distance between sets")
    progress = progress or (lambda *_: None)
    runs = demo_runs() if runs is None else runs
    goals = [(method, parse_goal(text)) for method, text in runs]
    rows: list[dict[str, Any]] = []
    blocks: list[Block] = []
    columns: list[str] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        if on_row:
            on_row(row)

    for stress in (0.0, STRESS) if stressed else (0.0,):
        model = load_model(name, stress=stress)
        labels = _labels(images, model.num_classes)
        ids, pictures, seconds = draw_images(model, labels, seed + 1, progress, "generate float")
        yardstick = Yardstick.of(model, labels, ids, COMPARED, seed)
        row = {"method": "float", "scheme": "float", "stress": stress,
               "sqnr_db": None, "worst_sqnr_db": None, "mean_bits": None}  # fmt: skip
        row |= yardstick.measure(model, pictures, progress)
        add(row | {"seconds_per_image": seconds})
        shown = min(images, len(SHOWN))
        drawn = [_grid_row(row, pictures[:shown])]
        rows_kept = calibrate(model, SAMPLES, KEEP, seed, progress=progress)
        collected = Collected()
        for method, goal in goals:
            model = load_model(name, stress=stress)
            report = quantize_(model, method=method, calibration=rows_kept, progress=progress,
                               collected=collected, **goal.arguments)  # fmt: skip
            _, pictures, seconds = draw_images(
                model, labels, seed + 1, progress, f"generate {goal.name}"
            )
            row = {"method": method, "scheme": goal.name, "stress": stress,
                   "sqnr_db": report.sqnr_db, "worst_sqnr_db": report.worst.sqnr_db,
                   "mean_bits": report.mean_bits}  # fmt: skip
            row |= yardstick.measure(model, pictures, progress)
            add(row | {"seconds_per_image": seconds})
            drawn.append(_grid_row(row, pictures[:shown]))
        title = f"{name}, plain"
        if stress:
            title = f"{name}, stressed {stress:g}: the same function, with outlier channels"
        blocks.append(Block(title, drawn))
        columns = _class_names(model, labels[:shown])
    report = {"model": name, "seed": seed, "torch": torch.__version__, "isa": ops.isa(),
              "rows": rows}  # fmt: skip
    return Demo(report, blocks, columns)


def _grid_row(row: dict[str, Any], images: Tensor) -> tuple[str, str, Tensor]:
    label = {"float": "float", "rtn": f"RTN {row['scheme']}"}.get(row["method"], row["scheme"])
    note = f"{row['weight_bytes'] / 1e6:.1f} MB"
    _, short, value = closeness(row)
    if row["method"] != "float":
        note = f"{short} {significant(value)}, {note}"
    return label, note, images


def _class_names(model: ARVGModel, labels: Tensor) -> list[str]:
    names = getattr(model.config, "class_names", None) or ()
    return [names[i] if i < len(names) else f"class {i}" for i in labels.tolist()]


def closeness(row: dict[str, Any]) -> tuple[str, str, float]:
    """(name, short name, value) of the figure that compares a row with the float model."""
    if row["kl"] is None:  # continuous tokens
        return "relative error of the predicted noise", "error", row["relative_error"]
    return "next-token KL", "KL", row["kl"]


def headline(report: dict[str, Any]) -> str:
    """The one figure to look at: what the method gains over round to nearest, which has one row
    per stress."""
    parts, figure = [], closeness(report["rows"][0])[0]
    scheme = next(row["scheme"] for row in report["rows"] if row["method"] == "rtn")
    for stress in sorted({row["stress"] for row in report["rows"]}):
        found = {
            row["method"]: closeness(row)[2]
            for row in report["rows"]
            if row["scheme"] == scheme and row["stress"] == stress
        }
        name = f"stressed {stress:g}" if stress else "plain"
        ours, nearest = significant(found["ptq4arvg"]), significant(found["rtn"])
        parts.append(f"{ours} against {nearest} ({name})")
    return f"{figure} at {scheme}, by the method against round to nearest: {', '.join(parts)}"
