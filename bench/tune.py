#!/usr/bin/env python3
"""Measure all CUDA GEMM kernels of this build, and write the table that chooses among them.

    python bench/tune.py --budget 1200 --measurements tune.csv      # on the device
    python bench/tune.py --measurements tune.csv --table-only       # anywhere

Every kernel that can take a size is timed there, in turn with the others, on weights that are in no
cache, many launches in one CUDA graph. What is measured is kept in the CSV file at once; the same
command continues it. When no size is missing, rows of the table are made of it, with a loss against
the fastest kernel of --tolerance at most at every measured size.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tile_table
import torch
from candidates import our_cases
from device import Device
from environment import variable
from measurements import OUTPUTS, SAME, Measurements, Size
from options import choices
from record import stamp
from shapes import Linear, linears, names, parse_m
from steps import first_line
from tables import show
from tile_choice import Box, choose, to_rows
from timing import cold_copies

from ptq4arvg import ops
from ptq4arvg.progress import make_progress

FORCE = "PTQ4ARVG_CUDA_KERNEL"
CASES = {"codes": "gemm_quantize", "float32": "gemm"}
DEFAULT_M = "1,8,16,24,32,48,64,128,256,512,1024,2048,8192,32768"


def grid(shapes: Sequence[str], rows: Sequence[int], bits: Sequence[int], outputs: Sequence[str]
         ) -> list[Size]:  # fmt: skip
    """All sizes of a run, those that share a weight one after another."""
    weights = sorted({(linear.n, linear.k) for name in shapes for linear in linears(name)})
    return [
        Size(n, k, b, m, out) for n, k in weights for b in bits for m in rows for out in outputs
    ]


def kernel_names() -> list[str]:
    """The GEMM kernels of this build that the first CUDA device can run."""
    return [
        kernel["name"].removeprefix("gemm.w8.") for kernel in ops.list_kernels()
        if kernel["device"] == "cuda" and kernel["op"] == "gemm" and kernel["weight_bits"] == 8
        and kernel["available"]
    ]  # fmt: skip


@dataclass
class Bench:
    """How sizes are measured. cold: bytes that weights exceed."""

    kernels: Sequence[str]
    device: Device
    cold: int = 0

    def rows(self, size: Size, budget: float) -> list[dict[str, Any]]:
        """A row per kernel, with a note for those that cannot take the size, fail, or give another
        result than most others: a time of a wrong one means nothing.

        RuntimeError where the device no longer answers.
        """
        linear = Linear("", size.n, size.k)
        case = our_cases(linear, size.m, size.bits, self.device.name)[
            f"{CASES[size.output]}.w{size.bits}"
        ]
        copies = cold_copies(case.weight_bytes, self.cold)
        calls = self.device.repeated([case.make() for _ in range(copies)])
        notes, replays, results = {}, {}, {}
        for kernel in self.kernels:
            with variable(FORCE, kernel):
                try:
                    results[kernel] = calls[0]()
                    replays[kernel] = self.device.capture(calls)
                except ValueError as error:
                    if f"{FORCE} is '{kernel}'" not in str(error):
                        raise
                    notes[kernel] = f"n/a: {error}"
                except RuntimeError as error:
                    if not self.device.answers():
                        raise
                    notes[kernel] = f"failed: {first_line(error)}"
        for kernel in _outvoted(results):
            replays.pop(kernel, None)
            notes.setdefault(kernel, "failed: its result is not that of most other kernels")
        counts = dict.fromkeys(replays, len(calls))
        timings = self.device.time_captured(replays, counts, budget)
        rows = [{"kernel": kernel, "note": note} for kernel, note in notes.items()]
        rows += [{"kernel": kernel} | timings.columns(kernel) for kernel in replays]
        return [size.of() | row for row in rows]


def _outvoted(results: dict[str, torch.Tensor]) -> list[str]:
    """The kernels whose result is not that of more than half of them."""
    alike = {
        name: sum(torch.equal(result, other) for other in results.values())
        for name, result in results.items()
    }
    return [name for name, count in alike.items() if 2 * count <= len(results)]


def run(todo: Sequence[Size], bench: Bench, kept: Measurements, budget: float,
        shared: dict[str, Any], progress: Callable[[str, int, int], None]) -> int:  # fmt: skip
    """Measure until all is done or ``budget`` seconds have passed; how many sizes are missing."""
    missing = [size for size in todo if size not in kept.sizes()]
    done, start = len(todo) - len(missing), time.monotonic()
    for number, size in enumerate(missing):
        progress("measure", done + number, len(todo))
        left = budget - (time.monotonic() - start)
        if left <= 0:
            return len(missing) - number
        rows = bench.rows(size, left / (len(missing) - number))
        kept.add([shared | row for row in rows])
    progress("measure", len(todo), len(todo))
    return 0


def write_table(kept: Measurements, tolerance: float, path: Path) -> list[Box]:
    """Put the rows made of the measurements into the table; the boxes that they are."""
    boxes = choose(kept.points(), tolerance)
    last = kept.rows[-1]
    sm = int(last["sm"])
    rows = to_rows(boxes, sm, f"{last['device']}, {last['date']}, {last['commit']}")
    head, old = tile_table.parse(path.read_text())
    path.write_text(tile_table.render(head, tile_table.with_measured(old, rows, sm)))
    return boxes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shapes", default=",".join(names()), help="models; default: all")
    add("--m", default=DEFAULT_M, help="rows: numbers, decode, var, var:IMAGES")
    add("--bits", default="8,6,4", help="of the weights")
    add("--outputs", default=",".join(OUTPUTS))
    add("--budget", type=float, default=1200.0, help="seconds; what is missing then stays missing")
    add("--measurements", type=Path, default=Path("tune.csv"), help="CSV file, continued")
    add("--tolerance", type=float, default=0.03, help="loss against the fastest, as a fraction")
    add("--table", type=Path, default=tile_table.PATH)
    add("--table-only", action="store_true", help="measure nothing")
    add("--quiet", action="store_true", help="no progress")
    return parser


def _check(arguments: argparse.Namespace) -> list[Size]:
    bits = [int(b) for b in choices("--bits", arguments.bits, ("8", "6", "4"))]
    outputs = choices("--outputs", arguments.outputs, tuple(OUTPUTS))
    todo = grid(arguments.shapes.split(","), parse_m(arguments.m), bits, outputs)
    if not arguments.budget > 0 or not arguments.tolerance >= 0:
        raise ValueError("--budget wants seconds above 0, --tolerance a fraction of 0 or more")
    if not arguments.table_only and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device to measure on; wanted one, or --table-only "
                         "with measurements from elsewhere")  # fmt: skip
    return todo


def main(argv: list[str] | None = None) -> int:
    """Measure and write. 2 for bad arguments, 130 when interrupted, 3 while sizes are missing."""
    arguments = _parser().parse_args(argv)
    try:
        todo = _check(arguments)
        kept = Measurements(arguments.measurements)
        missing = len(set(todo) - kept.sizes())
        if not arguments.table_only:
            kernels = kernel_names()
            if not kernels:
                raise ValueError(
                    "this build has no CUDA kernels for this device; wanted "
                    "PTQ4ARVG_BUILD=cuda python setup.py build_ext --inplace"
                )
            major, minor = torch.cuda.get_device_capability()
            shared = stamp("cuda", 1) | {"sm": 10 * major + minor}
            shared = {name: shared[name] for name in ("date", *SAME)}
            kept.require_same(shared)
    except ValueError as error:
        sys.stderr.write(f"tune.py: {error}\n")
        return 2
    if not arguments.table_only:
        device = Device("cuda")
        bench = Bench(kernels, device, device.l2_bytes())
        with make_progress(arguments.quiet) as display, torch.inference_mode():
            try:
                missing = run(todo, bench, kept, arguments.budget, shared, display)
            except KeyboardInterrupt:
                display.say(f"interrupted; the same command continues {kept.path}")
                return 130
    if missing:
        sys.stderr.write(
            f"tune.py: {missing} of {len(todo)} sizes are missing in {kept.path}, so the table is "
            "as it was; the same command goes on, with fewer --shapes or --m it ends earlier\n"
        )
        return 3
    boxes = write_table(kept, arguments.tolerance, arguments.table)
    _summary(boxes)
    sys.stdout.write(f"wrote {arguments.table}; it counts from the next build on\n")
    return 0


def _summary(boxes: Sequence[Box]) -> None:
    """Per kernel: rows, sizes, the loss at the worst of them, and its lead."""
    lines = []
    for kernel in sorted({box.kernel for box in boxes}):
        found = [box for box in boxes if box.kernel == kernel]
        leads = [box.lead for box in found if not math.isnan(box.lead)]
        lines.append([kernel, str(len(found)), str(sum(box.points for box in found)),
                      f"{max(box.loss for box in found):.1%}",
                      f"{max(leads):.2f}" if leads else ""])  # fmt: skip
    show(f"{len(boxes)} rows", ["kernel", "rows", "sizes", "worst loss", "best lead"], lines)


if __name__ == "__main__":
    sys.exit(main())
