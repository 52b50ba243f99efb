#!/usr/bin/env python3
"""Time the attention of decoding steps: in integers over an int8 KV cache, and in torch's floats.

    python bench/attention.py --models var-d16,rar-b,par-xl-4x --images 1,16 --budget 60 \\
        --out bench/results/attention.csv

A step is all between the linear that gives q, k and v and the projection: norms of q and k or
rotary embeddings, the storing of keys and values, attention to all that are there. In integers
these are ``store_qkv`` and ``attention``, in floats torch's functions, as a float model decodes. Of
VAR every scale is a step, of the others the first, the last and three between are measured. All
candidates of a step run in turn; ratios are medians over the rounds. Guidance doubles the rows: a
batch is twice the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from device import Device
from options import choices, numbers
from record import stamp, write_csv
from steps import take_steps
from tables import show
from timing import geometric_mean

from ptq4arvg import ops
from ptq4arvg.devices import computing_device
from ptq4arvg.models.registry import build_model, model_config
from ptq4arvg.nn import AttentionCore, Cursor, IntAttention, Prologue
from ptq4arvg.progress import make_progress

FLOATS = ("float32", "bfloat16")
COLUMNS = (
    "date", "commit", "device", "torch", "isa", "threads", "model", "images", "heads", "size",
    "tokens", "keys", "candidate", "kernel", "median_us", "p10_us", "p90_us", "repeats",
    "disturbed", "cache_mib",
    *(f"x_{name}{part}" for name in FLOATS for part in ("", "_p10", "_p90")), "note",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One decoding step: ``tokens`` positions of ``rows`` rows, after which there are ``keys``."""

    model: str
    images: int
    heads: int
    size: int
    tokens: int
    keys: int
    positions: int  # of the cache
    prologue: str  # how q and k are prepared: "l2", "layer" or "rotation"

    @property
    def rows(self) -> int:
        """Rows of a batch with guidance."""
        return 2 * self.images

    def identity(self) -> dict[str, Any]:
        """Its columns."""
        return {"model": self.model, "images": self.images, "heads": self.heads, "size": self.size,
                "tokens": self.tokens, "keys": self.keys}  # fmt: skip


def steps_of(model: str, images: int) -> list[Step]:
    """The steps of a published model that are measured. ValueError for one without a KV cache."""
    config = model_config(model)
    with torch.device("meta"):
        built = build_model(model, config)
    if not built.attention_cores():
        raise ValueError(f"--models: {model} decodes without a KV cache")
    c, positions = built.config, built.positions
    if hasattr(c, "patch_nums"):
        sizes = [side * side for side in c.patch_nums]
        ends = list(accumulate(sizes))
    else:
        tokens = getattr(c, "parallel", 1)
        ends = sorted({tokens, *(round(positions * part) for part in (0.25, 0.5, 0.75, 1))})
        sizes = [tokens] * len(ends)
    size = c.embed_dim // c.num_heads
    prologue = {"var": "l2", "rar": "layer"}.get(built.family, "rotation")
    return [
        Step(model, images, c.num_heads, size, tokens, keys, positions, prologue)
        for tokens, keys in zip(sizes, ends, strict=True)
    ]


def prologue_of(step: Step, dtype: torch.dtype, device: str) -> Prologue:
    """What the model does to q and k, with weights of ones and angles of any size."""
    ones = torch.ones(step.size, dtype=dtype, device=device)
    if step.prologue == "l2":
        return Prologue("l2", 1e-12, q_factors=4 * ones[:1].expand(step.heads))
    if step.prologue == "layer":
        return Prologue("layer", 1e-6, ones, 0 * ones, ones, 0 * ones, q_factor=step.size**-0.5)
    angles = torch.arange(step.tokens * step.size // 2, device=device).float()
    angles = angles.view(step.tokens, 1, 1, -1)
    return Prologue(rotation=torch.polar(torch.ones_like(angles), angles), q_factor=step.size**-0.5)


def candidates(step: Step, floats: list[str], device: str) -> dict[str, Callable[[], Any]]:
    """Name -> a call that does the attention of the step."""
    rows, heads, size = step.rows, step.heads, step.size
    cursor = Cursor(device)
    cursor.set(step.keys - step.tokens, step.tokens)
    # As the linear before makes them.
    qkv = torch.randn(rows, step.tokens, 3, heads, size, device=device)
    scale = torch.full((heads, size), 0.03, device=device)  # of normal numbers
    k_scale = scale / 4 if step.prologue == "l2" else scale
    shift = torch.zeros_like(scale)
    cores = {name: (AttentionCore(), getattr(torch, name)) for name in floats}
    cores["int8"] = IntAttention(k_scale, shift, scale, shift), torch.bfloat16

    def call(core: AttentionCore, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        own = qkv.to(dtype, copy=True)
        prologue = prologue_of(step, dtype, device)
        shapes = core.cache_shapes(rows, heads, step.positions, size)
        cache = tuple(
            torch.zeros(shape, dtype=core.cache_dtype or dtype, device=device) for shape in shapes
        )
        return lambda: core.attend(own, prologue, cache, cursor)

    return {name: call(*core) for name, core in cores.items()}


def cache_mib(step: Step, candidate: str) -> float:
    """Keys and values of one layer for all positions, in MiB."""
    if candidate == "int8":
        shapes = ops.kv_cache_shapes(step.rows, step.heads, step.positions, step.size)
        return sum(torch.Size(shape).numel() for shape in shapes) / 2**20
    width = torch.empty(0, dtype=getattr(torch, candidate)).element_size()
    return 2 * width * step.rows * step.heads * step.positions * step.size / 2**20


def measured(
    step: Step, floats: list[str], device: str, budget: float, tick: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """One row per candidate."""
    calls = candidates(step, floats, device)
    calls["int8"]()
    kernel = ops.last_kernel()
    timings = Device(device).time({name: [call] for name, call in calls.items()}, budget, tick)
    for name in calls:
        row = step.identity() | {
            "candidate": name, "kernel": kernel if name == "int8" else "",
            **timings.columns(name), "cache_mib": cache_mib(step, name),
        }  # fmt: skip
        if name == "int8":
            for other in floats:
                row |= timings.ratios(other, other, name)
        yield row


def print_table(rows: list[dict[str, Any]], floats: list[str]) -> None:
    """Per model and number of images: times of the steps, and how many times faster ours are."""
    lines = []
    ours = [row for row in rows if row["candidate"] == "int8"]
    for row in ours:
        ratios = [f"{row[f'x_{name}']:.2f}" for name in floats]
        lines.append([row["model"], str(row["images"]), str(row["tokens"]), str(row["keys"]),
                      f"{row['median_us']:.0f}", *ratios])  # fmt: skip
    for name in sorted({row["model"] for row in ours}):
        means = [geometric_mean([r[f"x_{f}"] for r in ours if r["model"] == name]) for f in floats]
        lines.append([name, "", "", "all steps", "", *(f"{mean:.2f}" for mean in means)])
    head = ["model", "images", "tokens", "keys", "us", *(f"x {name}" for name in floats)]
    show("attention of a decoding step in integers; times faster than torch", head, lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", default="var-d16,rar-b,par-xl-4x")
    add("--images", default="1,16", help="images of a batch; several numbers by commas")
    add("--floats", default=",".join(FLOATS), help="of torch, to compare with")
    add("--device", default="cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--budget", type=float, default=60.0, help="seconds of timing, all steps together")
    add("--out", type=Path, help="CSV file")
    add("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    arguments.floats = choices("--floats", arguments.floats, FLOATS)
    images = numbers("--images", arguments.images, "1,16")
    if min(*images, arguments.threads) < 1 or not arguments.budget > 0:
        raise ValueError("--images, --threads and --budget want numbers above 0")
    computing_device(arguments.device)
    models = arguments.models.split(",")
    arguments.todo = [step for model in models for n in images for step in steps_of(model, n)]
    return arguments


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file. 2 for bad arguments, 130 when interrupted."""
    try:
        arguments = _parse(argv)
    except ValueError as error:
        sys.stderr.write(f"attention.py: {error}\n")
        return 2
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    floats, device, budget = arguments.floats, arguments.device, arguments.budget
    rows: list[dict[str, Any]] = []
    with make_progress(arguments.quiet) as display:
        status = take_steps(
            arguments.todo,
            lambda step, tick: measured(step, floats, device, budget / len(arguments.todo), tick),
            Step.identity, rows, stamp(device, arguments.threads), display, device,
        )  # fmt: skip
    print_table(rows, floats)
    if arguments.out:
        write_csv(arguments.out, COLUMNS, rows)
        sys.stdout.write(f"wrote {arguments.out}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
