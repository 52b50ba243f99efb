"""What was asked, where it ran, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from .markup import Markup, tag
from .parts import section
from .record import Record

__all__ = ["command", "recipe"]

NAMES = {
    "models": "models", "methods": "methods", "schemes": "schemes",
    "stresses": "severities of the stress (0: none)", "seeds": "calibration seeds",
    "samples": "calibration rows drawn", "keep": "calibration rows kept",
    "select": "chosen by", "images": "images drawn with each model",
    "compared": "images whose rows are compared under teacher forcing",
    "isa": "instruction set", "threads": "threads",
}  # fmt: skip


def command(comparison: Mapping[str, Any]) -> str:
    """The command line that asks for the same comparison."""
    words = ["ptq4arvg", "compare", *comparison["models"]]
    for option in ("methods", "schemes"):
        words += [f"--{option}", ",".join(comparison[option])]
    for stress in comparison["stresses"]:
        words += ["--stress", f"{stress:g}"]
    for option in ("seeds", "samples", "keep", "images", "select"):
        words += [f"--{option}", str(comparison[option])]
    return shlex.join([*words, "--out", "comparison"])


def recipe(record: Record) -> Markup:
    """A table of comparison.json, and the command."""
    c = record.comparison
    values = {text: c[key] for key, text in NAMES.items() if key in c}
    values |= {"ptq4arvg": c["settings"]["version"], "torch": c["settings"]["torch"]}
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", _text(value)))
            for key, value in values.items()]  # fmt: skip
    children: list[object] = [
        tag("div", tag("table", tag("tbody", *rows)), class_="scroll"),
        tag("p", "To repeat it (integers are the same on every machine, times are not):"),
        tag("pre", command(c)),
    ]
    if record.others:
        text = f"The folder holds {record.others} more cells, of earlier comparisons, not shown."
        children.append(tag("p", text))
    return section("recipe", "Recipe and environment", *children)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
