#!/usr/bin/env python3
"""Time the operators on the shapes of the published models, against what torch offers.

    python bench/kernels.py --shapes var-d16,rar-b --m 1,8,16,128,512 --bits 8,6,4 \\
        --threads 2 --budget 300 --out bench/results/kernels.csv --figure ratios.png

All candidates of a cell (one linear at one M) are timed in turn; ratios are medians over the rounds
of torch's time by ours. A row of the CSV file per candidate, geometric means printed at the end. On
a GPU many calls are timed in one CUDA graph, on data outside its second-level cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from candidates import PEERS, ROW_PEERS, gemm_cases, row_cases
from device import Device
from options import choices
from record import stamp, write_csv
from shapes import Linear, linears, parse_m
from steps import take_steps
from tables import detail, summary
from timing import Timings, cold_copies, last_level_cache

from ptq4arvg import ops
from ptq4arvg.devices import computing_device
from ptq4arvg.errors import closest
from ptq4arvg.progress import make_progress
from ptq4arvg.serialize import check_writable

OPS = ("gemm", "quantize", "norm_quantize")
MOST_COPIES = 256  # in a graph: a few rows stay in the cache, and launching them is what takes time
# Instruction set -> the register-only loop that it cannot exceed.
PEAKS = {"avx512_vnni": "vnni", "avx_vnni": "vnni", "avx2": "avx2_maddubs", "amx": "amx"}
_IDENTITY = ("op", "dtype", "shape", "layer", "N", "K", "M", "bits", "candidate")
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
    isa: str  # "" of a GPU, whose limits bench/peers.py measures
    seconds: float = 0.3
    _bytes: dict[int, float] = field(default_factory=dict)
    _peak: float | None = None

    @property
    def known(self) -> bool:
        """Whether this build can measure them."""
        wanted = "measure_peak", "measure_bandwidth"
        return bool(self.isa) and all(hasattr(ops._info, name) for name in wanted)

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
    dtype: str = ""  # of the rows that are quantized

    def identity(self) -> dict[str, Any]:
        """Its columns."""
        linear, gemm = self.linear, self.op == "gemm"
        return {"op": self.op, "dtype": self.dtype, "shape": self.shape,
                "layer": linear.layer if gemm else "", "N": linear.n if gemm else "",
                "K": linear.k, "M": self.m}  # fmt: skip


def cells(op: str, shapes: list[str], layers: str, rows: list[int], dtype: str = "") -> list[Cell]:
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
            found += [Cell(op, shape, linear, m, dtype) for m in rows]
    return found


def _rows(cell: Cell, cases: dict, timings: Timings, limits: Limits, cold: int) -> Iterator[dict]:
    """One row per candidate; ratios and shares for ours."""
    linear, gemm = cell.linear, cell.op == "gemm"
    for name, case in cases.items():
        seconds = timings.quantile(name)
        row: dict[str, Any] = cell.identity() | {
            "bits": case.bits or "",
            "candidate": name, "cold": int(cold > 0), **timings.columns(name),
        }  # fmt: skip
        row["gbytes_s"] = case.moved / seconds / 1e9
        if gemm:
            row["gops"] = 2e-9 * cell.m * linear.n * linear.k / seconds
        if case.bits and gemm:
            peak, bytes_s = limits.peak(), limits.bandwidth(cold or case.weight_bytes)
            row["peak_share"] = peak and row["gops"] * 1e9 / peak
            row["bandwidth_share"] = bytes_s and row["gbytes_s"] * 1e9 / bytes_s
        elif case.bits and "copy" in cases:
            copied = cases["copy"].moved / timings.quantile("copy")
            row["bandwidth_share"] = row["gbytes_s"] * 1e9 / copied
        if case.bits:
            for peer in [other for other in cases if not cases[other].bits]:
                row |= timings.ratios(peer, peer, name)
            if gemm:
                row |= timings.ratios("bare", f"bare.w{case.bits}", name)
                op, _, kind = name.partition(".")
                if op == "gemm_quantize":
                    row |= timings.ratios("separate", f"separate.{kind}", name)
        yield row


@dataclass(frozen=True)
class Bench:
    """What is measured of every cell, and where. cold: bytes that the weights exceed."""

    bits: Sequence[int]
    peers: list[str]
    device: Device
    limits: Limits
    budget: float  # seconds of a cell
    cold: int = 0
    rotate: bool = False

    def measured(self, cell: Cell, tick: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """The rows of one cell: of its candidates, then of those that cannot run here."""
        torch.manual_seed(cell.m)
        common = self.bits, self.peers, self.device.name, self.rotate
        if cell.op == "gemm":
            cases, refused = gemm_cases(cell.linear, cell.m, *common)
        else:
            dtype = getattr(torch, cell.dtype)
            cases, refused = row_cases(cell.op, cell.linear.k, cell.m, *common, dtype)
        weights = [case.weight_bytes for case in cases.values()]
        copies = cold_copies(sum(weights), self.cold)
        if self.device.cuda:  # in a graph, only calls of the same candidate come between
            copies = min(cold_copies(min(weights), self.cold), MOST_COPIES)
        calls = {name: [case.make() for _ in range(copies)] for name, case in cases.items()}
        timings = self.device.time(calls, self.budget, tick)
        yield from _rows(cell, cases, timings, self.limits, self.cold)
        for name, reason in refused.items():
            yield cell.identity() | {"candidate": name, "note": f"n/a: {reason}"}


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
    add("--dtype", default="float32", choices=("float32", "bfloat16"),
        help="of the rows that quantize and norm_quantize read")  # fmt: skip
    add("--device", default="cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--isa", help="instruction set instead of the best one")
    add("--budget", type=float, default=120.0, help="seconds of timing, all cells together")
    add("--cold", type=int, nargs="?", const=-1, default=0, metavar="MIB",
        help="keep weights out of caches of MIB (default: the last level's size); so always on a "
        "GPU")  # fmt: skip
    add("--out", type=Path, help="CSV file")
    add("--figure", type=Path, help="PNG file of the ratios against M")
    add("--verbose", action="store_true", help="print every measurement")
    add("--quiet", action="store_true", help="no progress")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the files. 2 for bad arguments, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        op, *more = choices("--op", arguments.op, OPS) or [""]
        if more or not op:
            raise ValueError(f"--op {arguments.op!r}; wanted one of {', '.join(OPS)}")
        known = PEERS if op == "gemm" else ROW_PEERS
        peers = choices("--peers", arguments.peers or ",".join(known), known)
        bits = [int(b) for b in choices("--bits", arguments.bits, ("8", "6", "4"))]
        shapes, rows_m = arguments.shapes.split(","), parse_m(arguments.m)
        dtype = "" if op == "gemm" else arguments.dtype
        todo = cells(op, shapes, arguments.layers, rows_m, dtype)
        if arguments.isa:
            ops.set_isa(arguments.isa)
        if arguments.threads < 1 or not arguments.budget > 0:
            raise ValueError("--threads and --budget want numbers above 0")
        computing_device(arguments.device)
        for file in filter(None, (arguments.out, arguments.figure)):
            check_writable(file, folder=False)
        if arguments.figure:
            from figure import draw, need_matplotlib

            need_matplotlib()
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"kernels.py: {error}\n")
        return 2
    torch.set_num_threads(arguments.threads)
    device, cold = Device(arguments.device), arguments.cold << 20
    if arguments.cold == -1 or device.cuda:
        cold = device.l2_bytes() or last_level_cache()
    limits = Limits(arguments.threads, "" if device.cuda else ops.isa())
    bench = Bench(
        bits, peers, device, limits, arguments.budget / max(len(todo), 1), cold, arguments.rotate
    )
    rows: list[dict[str, Any]] = []
    shared = stamp(device.name, arguments.threads)
    with make_progress(arguments.quiet) as display, torch.inference_mode():
        if not bench.limits.known and not device.cuda:
            display.say("no shares of the peak: this build cannot measure it")
        status = take_steps(
            todo, bench.measured, Cell.identity, rows, shared, display, device.name
        )  # fmt: skip
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
