#!/usr/bin/env python3
"""Time the tokenizers' decoders, from tokens to pixels: in integers, and in floats.

    python bench/decoder.py --models var-d16,rar-b,llamagen-b,mar-b \\
        --out bench/results/decoder.csv
    python bench/decoder.py --models var-tiny,rar-tiny,par-tiny,mar-tiny --images 64 \\
        --rest float32 --schemes W8A8,W6A6,W4A8 --out bench/results/decoder-images.csv

A scheme is that of the convolutions; what else a decoder does is in ``--rest``. On a CPU large
images are decoded one by one, as ``generate`` does. All candidates run in turn; ratios are medians
over the rounds. Published sizes have random weights: time
does not depend on their values. The bundled models decode tokens that they draw, others than those
that ranges were taken from, and psnr_db compares the images with those of the float32 decoder.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from device import Device
from options import choices, numbers
from record import stamp, write_csv
from steps import take_steps
from tables import show
from timing import measure
from variants import float_model

from ptq4arvg import ops
from ptq4arvg.calibration import Calibration
from ptq4arvg.decoder import quantize_decoder_
from ptq4arvg.devices import computing_device
from ptq4arvg.models.convolutions import decoder_convolutions
from ptq4arvg.models.registry import BUNDLED, model_config
from ptq4arvg.numerics import SCHEMES, get_scheme
from ptq4arvg.progress import make_progress

FLOATS = ("float32", "bfloat16")
CALIBRATION_IMAGES = 64
MODELS = "var-d16,rar-b,llamagen-b,mar-b"
COLUMNS = (
    "date", "commit", "device", "torch", "isa", "threads", "model", "images", "rest", "candidate",
    "kernel", "median_ms", "p10_ms", "p90_ms", "repeats", "disturbed", "gop", "gops", "psnr_db",
    *(f"x_{name}{part}" for name in FLOATS for part in ("", "_p10", "_p90")), "note",
)  # fmt: skip


def tokens_of(model: Any, images: int, seed: int) -> torch.Tensor:
    """Tokens as ``decode_ids`` takes them: drawn by a bundled model, at random for the others."""
    if model.name in BUNDLED:
        labels = torch.arange(images) % model.num_classes
        return model.sample_ids(labels, seed=seed)
    g = torch.Generator().manual_seed(seed)
    if model.continuous:
        return torch.randn(images, model.tokens, model.config.channels, generator=g)
    size = model.tokenizer.config.vocab_size
    return torch.randint(0, size, (images, model.tokens), generator=g)


def operations(model: Any, rows: torch.Tensor) -> float:
    """10^9 operations of the convolutions that can be in integers, for these rows."""
    total = 0

    def count(conv: torch.nn.Conv2d, _args: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * conv.weight[0].numel()

    convolutions = decoder_convolutions(model.tokenizer).values()
    handles = [conv.register_forward_hook(count) for conv in convolutions]
    model.decode_ids(rows)
    for handle in handles:
        handle.remove()
    return total / 1e9


class _Kernels:
    """The operators of convolutions, and which kernels they ran."""

    quantize_map = staticmethod(ops.quantize_map)

    def __init__(self) -> None:
        self.ran: dict[str, None] = {}

    def conv2d(self, *args: Any, **options: Any) -> torch.Tensor:
        result = ops.conv2d(*args, **options)
        self.ran[ops.last_kernel()] = None
        return result


def _with_own_tokenizer(model: Any) -> Any:
    """``model`` with a copy of its tokenizer, which is all that decodes."""
    other = copy.copy(model)
    other._modules = model._modules | {"tokenizer": copy.deepcopy(model.tokenizer)}
    other.decode_rows = other.decode_ids  # its rows are tokens and nothing else
    return other


class Decoders:
    """The decoder of one model in the numbers of every candidate."""

    def __init__(
        self, name: str, floats: list[str], schemes: list[str], rest: str, device: str
    ) -> None:
        self.name, self.floats, self.schemes, self.rest = name, floats, schemes, rest
        self.device = device
        wanted = dict.fromkeys([*floats, rest, *(FLOATS[:1] if name in BUNDLED else ())])
        self.models = {dtype: float_model(name, dtype).to(device) for dtype in wanted}
        images = CALIBRATION_IMAGES if name in BUNDLED else 2
        rows = tokens_of(self.models[rest], images, seed=0)
        calibration = Calibration(rows, torch.zeros(images, dtype=torch.int64))
        for scheme in schemes:
            self.models[scheme] = model = _with_own_tokenizer(self.models[rest])
            quantize_decoder_(model, get_scheme(scheme), calibration)

    def kernels(self, scheme: str, rows: torch.Tensor) -> str:
        """Those that the convolutions run, each once."""
        convolutions = decoder_convolutions(self.models[scheme].tokenizer).values()
        kernels = _Kernels()
        for conv in convolutions:
            conv.operators = kernels
        self.models[scheme].decode_ids(rows[:1])
        for conv in convolutions:
            del conv.operators
        return "+".join(kernels.ran)

    def psnr(self, name: str, rows: torch.Tensor) -> float | None:
        """Of a bundled model's images against the float32 decoder's, in dB."""
        if self.name not in BUNDLED or name == FLOATS[0]:
            return None
        mine, exact = (self.models[n].decode_in_parts(rows) for n in (name, FLOATS[0]))
        error = (mine - exact).double().square().mean()
        return -10 * torch.log10(error.clamp_min(1e-20)).item()

    def measured(
        self, images: int, budget: float, tick: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        """One row per candidate."""
        rows = tokens_of(self.models[self.rest], images, seed=1).to(self.device)
        gop = operations(self.models[self.rest], rows)
        names = [*self.floats, *self.schemes]
        calls = {name: [lambda m=self.models[name]: m.decode_in_parts(rows)] for name in names}
        wait = Device(self.device).synchronize
        timings = measure(calls, budget, min_repeats=3, synchronize=wait, tick=tick)
        for name in names:
            row = {
                "model": self.name, "images": images, "rest": self.rest, "candidate": name,
                "kernel": self.kernels(name, rows) if name in self.schemes else "",
                **timings.columns(name, "ms"), "gop": gop,
                "gops": gop / timings.quantile(name), "psnr_db": self.psnr(name, rows),
            }  # fmt: skip
            if name in self.schemes:
                for other in self.floats:
                    row |= timings.ratios(other, other, name)
            yield row


def print_table(rows: list[dict[str, Any]], floats: list[str]) -> None:
    """Times, and how many times faster the integers are."""
    lines = [
        [row["model"], str(row["images"]), row["candidate"], f"{row['median_ms']:.0f}",
         f"{row['gops']:.0f}", "" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}",
         *(f"{row[f'x_{name}']:.2f}" if f"x_{name}" in row else "" for name in floats)]
        for row in rows if "median_ms" in row
    ]  # fmt: skip
    head = [
        "model",
        "images",
        "numbers",
        "ms",
        "GOP/s",
        "PSNR dB",
        *(f"x {name}" for name in floats),
    ]
    show("tokens to pixels; times faster than in floats", head, lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", default=MODELS)
    add("--images", default="1", help="images of a call; several numbers by commas")
    add("--floats", default=",".join(FLOATS), help="to compare with")
    add("--schemes", default="W8A8", help="of the convolutions; several by commas")
    add("--rest", default="bfloat16", choices=FLOATS, help="dtype of what is not in integers")
    add("--device", default="cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--budget", type=float, default=120.0, help="seconds of timing, all batches together")
    add("--out", type=Path, help="CSV file")
    add("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    arguments.floats = choices("--floats", arguments.floats, FLOATS)
    arguments.schemes = choices("--schemes", arguments.schemes.upper(), tuple(SCHEMES))
    if not arguments.schemes:
        raise ValueError("--schemes is empty; wanted one or more of " + ", ".join(SCHEMES))
    arguments.images = numbers("--images", arguments.images, "1,8")
    if min(*arguments.images, arguments.threads) < 1 or not arguments.budget > 0:
        raise ValueError("--images, --threads and --budget want numbers above 0")
    computing_device(arguments.device)
    arguments.models = arguments.models.split(",")
    for name in arguments.models:
        model_config(name)  # an unknown name ends here
    return arguments


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file. 2 for bad arguments, 130 when interrupted."""
    try:
        arguments = _parse(argv)
    except ValueError as error:
        sys.stderr.write(f"decoder.py: {error}\n")
        return 2
    torch.set_num_threads(arguments.threads)
    device, rows, made = arguments.device, [], []
    todo = [(name, images) for name in arguments.models for images in arguments.images]

    def measured(step: tuple[str, int], tick: Callable[[], None]) -> Iterator[dict[str, Any]]:
        name, images = step
        if not made or made[0].name != name:
            made.clear()  # before the next one takes its memory
            made.append(Decoders(name, arguments.floats, arguments.schemes, arguments.rest, device))
        return made[0].measured(images, arguments.budget / len(todo), tick)

    with make_progress(arguments.quiet) as display:
        status = take_steps(
            todo, measured, lambda step: dict(zip(("model", "images"), step, strict=True)), rows,
            stamp(device, arguments.threads), display, device,
        )  # fmt: skip
    print_table(rows, arguments.floats)
    if arguments.out:
        write_csv(arguments.out, COLUMNS, rows)
        sys.stdout.write(f"wrote {arguments.out}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
