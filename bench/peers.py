#!/usr/bin/env python3
"""Time our GEMM side by side with other libraries' integer GEMMs, those that are installed.

    python bench/peers.py --shapes var-d16,rar-xl --m 1,16,128,512,8192 --budget 300 --out peers.csv
    python bench/peers.py --libraries FOLDER        # with vllm.so and sgl.so out of their wheels

Each candidate's result is checked first; then all take turns, on weights that are in no cache, many
launches in one CUDA graph, given codes and given floats that they quantize first. A candidate that
is not here, or gives a wrong result, has a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from device import Call, Device
from kernels import Cell, cells
from options import choices
from peer import Absent, Ours, Peer, Product, WrongResult, check
from peer_adapters import PEERS
from record import stamp, write_csv
from shapes import parse_m
from steps import first_line, take_steps
from tables import show
from timing import cold_copies

from ptq4arvg import ops
from ptq4arvg.devices import computing_device
from ptq4arvg.progress import make_progress

GIVEN = ("codes", "floats")


def columns(peers: Sequence[str]) -> list[str]:
    """Columns of the CSV file; x_PEER is that peer's time by ours, of the same bits and input."""
    return ["date", "commit", "device", "torch", "bits", "shape", "layer", "N", "K", "M", "given",
            "candidate", "kernel", "median_us", "p10_us", "p90_us", "repeats", "disturbed",
            "roofline_us", "roofline_share", "copy_gbytes_s", "peak_gops",
            *(f"x_{peer}" for peer in peers), "note"]  # fmt: skip


@dataclass
class Bench:
    """A device, and what it does at most, measured: bytes copied and int8 operations a second."""

    device: Device
    peers: Sequence[Peer] = ()
    budget: float = 1.0  # seconds of a cell
    cold: int = 0
    bytes_s: float = math.inf
    ops_s: float = math.inf

    def measure_limits(self, megabytes: int, size: int, budget: float) -> None:
        """Copy so many megabytes, and take the fastest candidate on size x size x size codes."""
        source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=self.device.name)
        target = torch.empty_like(source)
        product = Product.random(size, size, size, 8, self.device.name)
        calls: dict[str, Sequence[Call]] = {"copy": [lambda: target.copy_(source)]}
        for peer in (Ours(8), *self.peers):
            if peer.bits == 8:
                with contextlib.suppress(Exception):  # measured() says what is wrong with it
                    check(peer, product)
                    weight = peer.prepare(product)
                    calls[peer.name] = [lambda p=peer, w=weight: p.multiply(w, product)]
        timings = self.device.time(calls, budget)
        copied = timings.quantile("copy", 0.1)
        self.bytes_s = 2 * source.nbytes / copied
        multiplied = [timings.quantile(name, 0.1) for name in calls if name != "copy"]
        self.ops_s = 2 * size**3 / min(multiplied)

    def roofline(self, cell: Cell, bits: int, given: str) -> float:
        """Seconds that the memory or the arithmetic takes at least. Weights, input and the bfloat16
        output move once; codes made of floats need not move."""
        n, k, m = cell.linear.n, cell.linear.k, cell.m
        moved = n * k * bits / 8 + m * k * (1 if given == "codes" else 2) + 2 * m * n
        return max(moved / self.bytes_s, 2 * m * n * k / self.ops_s)

    def measured(
        self, step: tuple[Cell, int], tick: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        """The rows of one cell at a number of bits: ours first, then the peers of as many bits."""
        cell, bits = step
        if not math.isfinite(self.bytes_s):
            size = (1024, 8192) if self.device.cuda else (64, 256)
            self.measure_limits(*size, self.budget)
        torch.manual_seed(cell.m)
        product = Product.random(cell.m, cell.linear.n, cell.linear.k, bits, self.device.name)
        calls, kernels, refused = {}, {}, {}
        for peer in (Ours(bits), *(peer for peer in self.peers if peer.bits == bits)):
            try:
                each, kernels[peer.name] = _calls(peer, product, self.cold)
            except WrongResult as error:
                refused[peer.name] = str(error)
            except Exception as error:  # a size that it does not take; the libraries share no type
                if isinstance(peer, Ours):
                    raise
                refused[peer.name] = first_line(error)
            else:
                calls |= {(peer.name, given): each[given] for given in GIVEN}
        timings = self.device.time(calls, self.budget, tick)
        ours = f"ours.w{bits}"
        for name, given in calls:
            least = self.roofline(cell, bits, given)
            row = identity(step) | {
                "given": given, "candidate": name, "kernel": kernels[name],
                **timings.columns((name, given)), "roofline_us": 1e6 * least,
                "roofline_share": least / timings.quantile((name, given)),
                "copy_gbytes_s": 1e-9 * self.bytes_s, "peak_gops": 1e-9 * self.ops_s,
            }  # fmt: skip
            if name == ours:
                row |= {
                    f"x_{other}": timings.ratio((other, of), (name, given))
                    for other, of in calls if other != ours and of == given
                }  # fmt: skip
            yield row
        for name, why in refused.items():
            yield identity(step) | {"candidate": name, "note": f"n/a: {why}"}


def identity(step: tuple[Cell, int]) -> dict[str, Any]:
    """The columns of a cell at a number of bits."""
    cell, bits = step
    return {"bits": bits, "shape": cell.shape, "layer": cell.linear.layer, "N": cell.linear.n,
            "K": cell.linear.k, "M": cell.m}  # fmt: skip


def find(names: Sequence[str], libraries: Path | None) -> tuple[list[Peer], dict[str, str]]:
    """(the peers that are here, {name of another: why not})."""
    found, absent = [], {}
    for name in names:
        try:
            PEERS[name].find(libraries)
            found.append(PEERS[name])
        except Absent as error:
            absent[name] = str(error)
    return found, absent


def _calls(peer: Peer, product: Product, cold: int) -> tuple[dict[str, list[Call]], str]:
    """(calls on copies of the weight that exceed ``cold`` bytes, by what they are given; which of
    our kernels took the codes). WrongResult before anything else."""
    check(peer, product)
    weight = peer.prepare(product)
    copies = cold_copies(product.w.numel() * peer.bits // 8, cold)
    weights = [weight, *(copy.deepcopy(weight) for _ in range(copies - 1))]
    peer.multiply(weight, product)
    kernel = ops.last_kernel() if isinstance(peer, Ours) else ""
    return {
        "codes": [lambda w=w: peer.multiply(w, product) for w in weights],
        "floats": [lambda w=w: peer.multiply(w, product, *peer.quantize(product)) for w in weights],
    }, kernel


def summary(rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> None:
    """Every measurement of ours: microseconds, ratios, share of the roofline; then the notes."""
    lines = []
    for row in rows:
        if row["candidate"].startswith("ours") and "median_us" in row:
            ratios = [f"{row[f'x_{p}']:.2f}" if f"x_{p}" in row else "" for p in peers]
            lines.append(
                [
                    row["candidate"],
                    row["shape"],
                    row["layer"],
                    str(row["M"]),
                    row["given"],
                    f"{row['median_us']:.1f}",
                    f"{row['roofline_share']:.0%}",
                    *ratios,
                ]
            )
    head = ["candidate", "shape", "layer", "M", "given", "us", "roofline"]
    show("times of the peers by ours: above 1, ours is faster", [*head, *peers], lines)
    for note in dict.fromkeys(f"{r['candidate']}: {r['note']}" for r in rows if r.get("note")):
        sys.stdout.write(f"{note}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shapes", default="var-d16,rar-xl", help="models, such as var-d16,rar-b,par-xl,mar-b")
    add("--layers", default="token", help="token: those of every token; all; or names")
    add("--m", default="1,16,128,512,8192", help="rows: numbers, decode, var, var:IMAGES")
    add("--bits", default="8,6,4", help="of the weights")
    add("--peers", default=",".join(PEERS), help="default: all that are here")
    add("--libraries", type=Path, help="folder with vllm.so and sgl.so")
    add("--list", action="store_true", help="say which are here; 1 if none but torch's")
    add("--device", default="cuda", help="cpu: without graphs, for what runs there")
    add("--budget", type=float, default=300.0, help="seconds of timing, all cells together")
    add("--out", type=Path, help="CSV file")
    add("--quiet", action="store_true", help="no progress")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file. 2 for bad arguments, 130 when interrupted, 1 where
    --list has none to show."""
    arguments = _parser().parse_args(argv)
    try:
        names = choices("--peers", arguments.peers, tuple(PEERS))
        bits = [int(b) for b in choices("--bits", arguments.bits, ("8", "6", "4"))]
        todo = cells("gemm", arguments.shapes.split(","), arguments.layers, parse_m(arguments.m))
        if not arguments.budget > 0:
            raise ValueError("--budget wants a number above 0")
        if arguments.libraries and not arguments.libraries.is_dir():
            raise ValueError(f"--libraries: {arguments.libraries} is no folder")
        if not arguments.list:
            computing_device(arguments.device)
    except ValueError as error:
        sys.stderr.write(f"peers.py: {error}\n")
        return 2
    peers, absent = find(names, arguments.libraries)
    if arguments.list:
        sys.stdout.writelines(f"{peer.name}: here\n" for peer in peers)
        sys.stdout.writelines(f"{name}: absent, {why}\n" for name, why in absent.items())
        return 0 if any(peer.install for peer in peers) else 1
    device, every = Device(arguments.device), [(cell, b) for cell in todo for b in bits]
    bench = Bench(device, peers, arguments.budget / max(len(every), 1), device.l2_bytes())
    stamped = stamp(device.name, torch.get_num_threads())
    shared = {name: stamped[name] for name in ("date", "commit", "device", "torch")}
    rows = [shared | {"candidate": name, "note": f"absent: {why}"} for name, why in absent.items()]
    with make_progress(arguments.quiet) as display, torch.inference_mode():
        status = take_steps(every, bench.measured, identity, rows, shared, display, device.name)
    summary(rows, [peer.name for peer in peers])
    if arguments.out:
        write_csv(arguments.out, columns(names), rows)
        sys.stdout.write(f"wrote {arguments.out}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
