#!/usr/bin/env python3
"""Time the operators on the shapes of the published models, against what torch offers.

    python bench/kernels.py --shapes var-d16,rar-b --m 1,8,16,128,512 --bits 8,6,4 \\
        --threads 2 --budget 300 --out bench/results/kernels.csv --figure ratios.png

All candidates of a cell (one linear at one M) are timed in turn; ratios are medians over the rounds
of torch's time by ours. A row of the CSV file per candidate, geometric means printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from candidates import PEERS, ROW_PEERS, gemm_cases, row_cases
from options import choices
from record import stamp, write_csv
from shapes import Linear, linears, parse_m
from tables import detail, summary
from timing import Timings, cold_copies, last_level_cache, measure

from ptq4arvg import ops
from ptq4arvg.errors import closest
from ptq4arvg.progress import make_progress

OPS = ("gemm", "quantize", "norm_quantize")
# Instruction set -> the register-only loop that it cannot exceed.
PEAKS = {"avx512_vnni": "vnni", "avx_vnni": "vnni", "avx2": "avx2_maddubs", "amx": "amx"}
_IDENTITY = ("op", "shape", "layer", "N", "K", "M", "bits", "candidate")
_TIMES = ("median_us", "p10_us", "p90_us", "repeats", "cold", "gops", "gbytes_s", "peak_share",
          "bandwidth_share", "disturbed")  # fmt: skip


def columns(peers: list[str]) -> list[str]:
    """Columns of the CSV file: x_PEER is that peer's time by this candidate's."""
    others = (*peers, "separate", "bare")
    ratios = [f"x_{other}{part}" for other in others for part in ("", "_p10", "_p90")]
    head = ["date", "commit", "device", "torch", "isa", "threads"]
    return [*head, *_IDENTITY, *_TIMES, *ratios, "note"]


@dataclass
class Limits:
    """What this machine can do at most: int8 operations and bytes a second, measured."""

    threads: int
    isa: str
    seconds: float = 0.3
    _bytes: dict[int, float] = field(default_factory=dict)
    _peak: float | None = None

    @property
    def known(self) -> bool:
        """Whether this build can measure them."""
        return hasattr(ops._info, "measure_peak") and hasattr(ops._info, "measure_bandwidth")

    def peak(self) -> float | None:
        """Operations a second of a register-only loop of the instruction set in use."""
        kind = next((PEAKS[name] for name in PEAKS if self.isa.startswith(name)), None)
        if self._peak is None and kind and self.known:
            self._peak = float(ops._info.measure_peak(kind, self.threads, self.seconds))
        return self._peak

    def bandwidth(self, size: int) -> float | None:
        """Bytes a second read from ``size`` bytes, rounded to a power of two and kept.

        A page a thread is the least that can be timed.
        """
        size = 1 << max(size - 1, 4095 * self.threads).bit_length()
        if size not in self._bytes and self.known:
            self._bytes[size] = float(
                ops._info.measure_bandwidth(size, self.threads, self.seconds)
            )  # fmt: skip
        return self._bytes.get(size)


@dataclass(frozen=True)
class Cell:
    """One linear (or width of rows) at one M."""

    op: str
    shape: str
    linear: Linear
    m: int


def cells(op: str, shapes: list[str], layers: str, rows: list[int]) -> list[Cell]:
    """All cells of a run. layers: "token" (seen by every token), "all", or names with commas."""
    found, seen = [], set()
    for shape in shapes:
        known = linears(shape)
        for name in layers.split(",") if layers not in ("token", "all") else ():
            if name not in [linear.layer for linear in known]:
                there = [linear.layer for linear in known]
                raise ValueError(f"--layers: {shape} has no {name!r}. {closest(name, there)}")
        for linear in known:
            if not (layers == "all" or linear.layer in layers.split(",")
                    or (layers == "token" and linear.per_token)):  # fmt: skip
                continue
            if op != "gemm" and (linear.k in seen or seen.add(linear.k)):
                continue  # rows of one width are the same whatever reads them
            found += [Cell(op, shape, linear, m) for m in rows]
    return found


def _rows(cell: Cell, cases: dict, timings: Timings, limits: Limits, cold: int) -> Iterator[dict]:
    """One row per candidate; ratios and shares for ours."""
    linear, gemm = cell.linear, cell.op == "gemm"
    for name, case in cases.items():
        seconds = timings.quantile(name)
        row: dict[str, Any] = {
            "op": cell.op, "shape": cell.shape, "layer": linear.layer if gemm else "",
            "N": linear.n if gemm else "", "K": linear.k, "M": cell.m, "bits": case.bits or "",
            "candidate": name, "median_us": seconds * 1e6, "repeats": timings.repeats,
            "p10_us": timings.quantile(name, 0.1) * 1e6,
            "p90_us": timings.quantile(name, 0.9) * 1e6, "cold": int(cold > 0),
            "disturbed": timings.disturbed(name),
        }  # fmt: skip
        moved = case.weight_bytes if gemm or name == "copy" else case.weight_bytes * 5 // 4
        row["gbytes_s"] = moved / seconds / 1e9
        if gemm:
            row["gops"] = 2e-9 * cell.m * linear.n * linear.k / seconds
        if case.bits and gemm:
            peak, bytes_s = limits.peak(), limits.bandwidth(cold or case.weight_bytes)
            row["peak_share"] = peak and row["gops"] * 1e9 / peak
            row["bandwidth_share"] = bytes_s and row["gbytes_s"] * 1e9 / bytes_s
        elif case.bits and "copy" in cases:
            copied = cases["copy"].weight_bytes / timings.quantile("copy")
            row["bandwidth_share"] = row["gbytes_s"] * 1e9 / copied
        if case.bits:
            for peer in [other for other in cases if not cases[other].bits]:
                row |= _ratio(timings, peer, peer, name)
            if gemm:
                row |= _ratio(timings, "bare", f"bare.w{case.bits}", name)
                op, _, kind = name.partition(".")
                if op == "gemm_quantize":
                    row |= _ratio(timings, "separate", f"separate.{kind}", name)
        yield row


def _ratio(timings: Timings, column: str, slow: str, fast: str) -> dict[str, float]:
    return {
        f"x_{column}{part}": timings.ratio(slow, fast, q)
        for part, q in (("", 0.5), ("_p10", 0.1), ("_p90", 0.9))
    }


def run(
    todo: list[Cell], bits: list[int], peers: list[str], device: str, budget: float, cold: int,
    limits: Limits, progress: Callable[[str, int, int], None], rows: list[dict[str, Any]],
    rotate: bool = False,
) -> None:  # fmt: skip
    """Measure all cells and append their rows to ``rows``, which survive an interrupt."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    shared = stamp(device, limits.threads)
    phase = todo[0].op if todo else "nothing to do"
    for number, cell in enumerate(todo):
        progress(phase, number, len(todo))
        torch.manual_seed(number)
        if cell.op == "gemm":
            cases, refused = gemm_cases(cell.linear, cell.m, bits, peers, device, rotate)
        else:
            k = cell.linear.k
            cases, refused = row_cases(cell.op, k, cell.m, bits, peers, device, rotate)
        copies = cold_copies(sum(case.weight_bytes for case in cases.values()), cold)
        calls = {name: [case.make() for _ in range(copies)] for name, case in cases.items()}
        timings = measure(
            calls, budget / len(todo), synchronize=synchronize,
            tick=lambda number=number: progress(phase, number, len(todo)),
        )  # fmt: skip
        rows += [shared | row for row in _rows(cell, cases, timings, limits, cold)]
        for name, reason in refused.items():
            note = {"candidate": name, "note": f"n/a: {reason}", "op": cell.op, "M": cell.m,
                    "shape": cell.shape, "layer": cell.linear.layer, "N": cell.linear.n,
                    "K": cell.linear.k}  # fmt: skip
            rows.append(shared | note)
    progress(phase, len(todo), len(todo))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--op", default="gemm", help=", ".join(OPS))
    add("--shapes", default="var-d16,rar-b", help="models, such as var-d16,rar-b,par-xl,mar-b")
    add("--layers", default="token", help="token: those of every token; all; or names")
    add("--m", default="1,8,16,128,512", help="rows: numbers, decode, var, var:IMAGES")
    add("--bits", default="8,6,4", help="of the weights (of the codes for the other ops)")
    add("--peers", help="default: all of " + ", ".join(PEERS))
    add("--rotate", action="store_true", help="rotate what is quantized")
    add("--device", default="cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--isa", help="instruction set instead of the best one")
    add("--budget", type=float, default=120.0, help="seconds of timing, all cells together")
    add("--cold", type=int, nargs="?", const=-1, default=0, metavar="MIB",
        help="keep weights out of caches of MIB (default: the last level's size)")  # fmt: skip
    add("--out", type=Path, help="CSV file")
    add("--figure", type=Path, help="PNG file of the ratios against M")
    add("--verbose", action="store_true", help="print every measurement")
    add("--quiet", action="store_true", help="no progress")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the files. 2 for bad arguments, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        (op,) = choices("--op", arguments.op, OPS)
        known = PEERS if op == "gemm" else ROW_PEERS
        peers = choices("--peers", arguments.peers or ",".join(known), known)
        bits = [int(b) for b in choices("--bits", arguments.bits, ("8", "6", "4"))]
        shapes, rows_m = arguments.shapes.split(","), parse_m(arguments.m)
        todo = cells(op, shapes, arguments.layers, rows_m)
        if arguments.isa:
            ops.set_isa(arguments.isa)
        if arguments.threads < 1 or not arguments.budget > 0:
            raise ValueError("--threads and --budget want numbers above 0")
        if arguments.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {arguments.device}: torch sees no CUDA device")
        if arguments.figure:
            from figure import draw, need_matplotlib

            need_matplotlib()
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"kernels.py: {error}\n")
        return 2
    torch.set_num_threads(arguments.threads)
    cold = last_level_cache() if arguments.cold == -1 else arguments.cold << 20
    limits, rows, status = Limits(arguments.threads, ops.isa()), [], 0
    with make_progress(arguments.quiet) as display, torch.inference_mode():
        if not limits.known:
            display.say("no shares of the peak: this build cannot measure it")
        try:
            run(todo, bits, peers, arguments.device, arguments.budget, cold, limits, display, rows,
                arguments.rotate)  # fmt: skip
        except KeyboardInterrupt:
            display.say("interrupted; this is what was measured until then")
            status = 130
    if arguments.verbose:
        detail(rows, peers)
    summary(rows, peers)
    if arguments.out:
        write_csv(arguments.out, columns(peers), rows)
        sys.stdout.write(f"wrote {arguments.out}\n")
    if arguments.figure and any(row.get("bits") for row in rows):
        draw(rows, peers, arguments.figure)
        sys.stdout.write(f"wrote {arguments.figure}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
