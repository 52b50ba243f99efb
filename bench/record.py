"""What every measurement is stored with, and the CSV files it is stored in."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ptq4arvg import ops

__all__ = ["commit", "device_name", "stamp", "write_csv"]


def commit() -> str:
    """The commit that is measured, "+" added if files were changed since. Outside git it is
    $BENCH_COMMIT, or "unknown"."""

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", *arguments], capture_output=True, text=True, check=False,
                cwd=Path(__file__).parent,
            ).stdout.strip()  # fmt: skip
        except OSError:
            return ""

    name = git("rev-parse", "--short", "HEAD")
    changed = name and git("status", "--porcelain", "--untracked-files=no")
    return (name or os.environ.get("BENCH_COMMIT", "unknown")) + ("+" if changed else "")


def device_name(device: str) -> str:
    """Name of the processor or GPU, as the system gives it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def stamp(device: str, threads: int) -> dict[str, Any]:
    """The columns that all rows of a run share."""
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit(), "device": device_name(device),
        "torch": torch.__version__, "isa": ops.isa() if device == "cpu" else "cuda",
        "threads": threads,
    }  # fmt: skip


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows to ``path``, floats to five digits, None as nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
