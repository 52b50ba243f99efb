#!/usr/bin/env python3
"""Time whole models: quantized against the same float model in float32 and bfloat16.

    python bench/generate.py --model var-d16 --images 1 --schemes W8A8,W8A8KV8,W8A8KV8D8 \\
        --out bench/results/generate.csv
    python bench/generate.py --model var-d16 --images 1,8,64 --device cuda

Every variant lives in a process of its own, so that its peak memory is its own; they generate in
turn, one at a time. Quantized ones are loaded from a checkpoint and never hold a float copy of a
quantized weight. Published sizes get random weights: speed and memory do not depend on their
values, images do, and mean nothing here. All inputs are rotated that can be, which is as much to do
as with the default method, or more (``--rotation none``: as with most others).

Norms, embeddings, the tokenizer (in schemes that end in D8 its encoder alone) and, in schemes
without KV8, attention products of quantized variants are in ``--rest``: bfloat16 by default, as in
the stronger of the two float variants. On a GPU the float variants are bfloat16 as it is (eager),
under the CUDA graphs that quantized variants run under, and with blocks by torch.compile under
these graphs.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from options import choices, numbers
from record import stamp, write_csv
from tables import show
from variants import BASES, ENDS, FLOATS, INTEGER_ATTENTION, Variant, VariantError, prepare

from ptq4arvg.devices import computing_device
from ptq4arvg.models.registry import FAMILIES, model_config
from ptq4arvg.numerics import SCHEMES
from ptq4arvg.progress import make_progress
from ptq4arvg.serialize import check_writable

DEFAULT_SCHEMES = ("W8A8", "W6A6", "W4A8")
TIMES = ("image", "first_scale", "tokens", "decode", "cpu")


def _ratios(bases: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *(f"x_{base}{end}" for end in ("", "_tokens", "_cpu") for base in bases),
        *(f"memory_{base}" for base in bases),
    )


PLAIN, CAPTURED = _ratios(FLOATS), _ratios(BASES[len(FLOATS) :])
COLUMNS = (
    "date", "commit", "device", "torch", "isa", "threads", "model", "images", "rest", "rotation",
    "variant", "repeats",
    *(f"seconds_{name}" for name in TIMES), "p10", "p90", "seconds_load", "peak_mib",
    "import_mib", "waited", *PLAIN, "images_second", "seconds_call", "seconds_first_call",
    "device_peak_mib", *CAPTURED, "note",
)  # fmt: skip


def _median(values: list[float], q: float = 0.5) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()


def summarize(
    name: str, loaded: dict[str, Any], runs: list[dict[str, float]], images: int, first: float
) -> dict[str, Any]:
    """One row, without ratios. Seconds of the whole call, but for seconds_image and its quantiles.

    seconds_tokens: up to the last token; seconds_decode: from there; seconds_cpu: of all threads;
    seconds_call: until the first image is there, since all of a call come together; ``first``: the
    same of the first call, in which steps are compiled and captured.
    """
    totals = [run["seconds"] / images for run in runs]
    peaks = [run["device_peak_mib"] for run in runs]
    return {
        "variant": name, "repeats": len(runs), "seconds_image": _median(totals),
        "p10": _median(totals, 0.1), "p90": _median(totals, 0.9),
        "seconds_first_scale": _median([run["first"] for run in runs]),
        "seconds_tokens": _median([run["tokens"] for run in runs]),
        "seconds_decode": _median([run["decode"] for run in runs]),
        "seconds_cpu": _median([run["cpu"] for run in runs]),
        "waited": _median([run["waited"] for run in runs]),
        "seconds_load": loaded["seconds"], "import_mib": loaded["import_mib"],
        "peak_mib": max(run["peak_mib"] for run in runs), "images_second": 1 / _median(totals),
        "seconds_call": _median(totals) * images, "seconds_first_call": first,
        "device_peak_mib": None if None in peaks else max(peaks),
    }  # fmt: skip


def add_ratios(rows: list[dict[str, Any]], runs: dict[str, list[dict[str, float]]]) -> None:
    """Ratios of the same round, then their median; memory_*: peak as a part of that variant's, on
    the GPU if there is one."""
    by_name = {row["variant"]: row for row in rows}
    for row in rows:
        for base in BASES:
            if base not in by_name:
                continue
            pairs = list(zip(runs[base], runs[row["variant"]], strict=False))
            for end, key in (("", "seconds"), ("_tokens", "tokens"), ("_cpu", "cpu")):
                row[f"x_{base}{end}"] = _median([a[key] / b[key] for a, b in pairs])
            row[f"memory_{base}"] = _peak(row) / _peak(by_name[base])


def _peak(row: dict[str, Any]) -> float:
    return row["device_peak_mib"] or row["peak_mib"]


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows of one number of images, with the ratios against the float variants."""
    rows = [row for row in rows if "note" not in row]
    if not rows:
        return
    lines, shown = [], [c for c in (*PLAIN, *CAPTURED) if any(c in row for row in rows)]
    for row in rows:
        ratios = [f"{row[c]:.2f}" if c in row else "" for c in shown]
        times = [f"{row[f'seconds_{c}']:.3f}" for c in TIMES]
        lines.append([row["variant"], *times, f"{_peak(row):.0f}", *ratios])
    names = [c.replace("x_", "x ").replace("memory_", "mem/").replace("float", "f") for c in shown]
    head = ["variant", "s/image", "first", "tokens", "decode", "cpu", "MiB"]
    head += [name.replace("bf16", "bf").replace("_", " ") for name in names]
    first = rows[0]
    title = (
        f"{first['model']}, {first['images']} images with guidance, {first['threads']} threads, "
    )
    title += f"{first['rest']} where not quantized"
    show(title, head, lines)
    waited = max(row["waited"] for row in rows)
    if waited > 0.05:
        sys.stdout.write(
            f"Threads waited for a processor for up to {waited:.0%} of the time: repeat on a quiet "
            "machine\n"
        )
    if first["model"] != "var-tiny":
        sys.stdout.write("Random weights: the images mean nothing, speed and memory do.\n")


def measure(
    arguments: argparse.Namespace, images: int, checkpoints: Path, rows: list[dict[str, Any]],
    progress: Any,
) -> int:  # fmt: skip
    """Start all variants, run them in turn, and add what was measured to ``rows``; 1 if one failed,
    else 0."""
    names = [*arguments.floats, *arguments.schemes]
    folders = prepare(
        arguments.model, arguments.schemes, arguments.rest, arguments.rotation, checkpoints,
        arguments.threads, progress,
    )  # fmt: skip
    variants: dict[str, Variant] = {}
    first: dict[str, float] = {}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    failed: dict[str, str] = {}

    @contextlib.contextmanager
    def noted(name: str) -> Iterator[None]:
        """What ends this variant's process leaves a note, and the others go on."""
        try:
            yield
        except VariantError as error:
            failed[name] = str(error)
            progress.say(f"generate.py: {error}")

    try:
        for number, name in enumerate(names):
            progress("load", number, len(names))
            with noted(name):
                variants[name] = Variant(
                    arguments.model, name, folders.get(name), images, arguments.threads,
                    arguments.device,
                )  # fmt: skip
                first[name] = variants[name].run()["seconds"]  # it allocates, and is not counted
        progress("load", len(names), len(names))
        total = len(names) * arguments.repeats
        for done in range(total):
            progress("generate", done, total)
            name = names[done % len(names)]
            if name not in failed:
                with noted(name):
                    runs[name].append(variants[name].run())
        progress("generate", total, total)
    finally:
        for variant in variants.values():
            variant.close()
        shared = stamp(arguments.device, arguments.threads) | {
            "model": arguments.model, "images": images, "rest": arguments.rest,
            "rotation": arguments.rotation,
        }  # fmt: skip
        made = [
            shared | summarize(n, variants[n].loaded, runs[n], images, first[n])
            for n in names
            if runs[n]
        ]
        add_ratios(made, runs)
        made += [shared | {"variant": name, "note": f"failed: {failed[name]}"} for name in failed]
        rows += made
    return int(bool(failed))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="var-d16")
    add("--images", default="1", help="labels of one call of generate; several numbers by commas")
    add("--schemes",
        help="KV8: attention, too, is in integers, over a KV cache of 8 bits; D8, at the very end: "
        "so is the tokenizer's decoder; by default W8A8,W8A8KV8,W6A6,W6A6KV8,W4A8,W4A8KV8, or "
        "what the model can have")  # fmt: skip
    add("--floats", help=f"float variants to compare with, of {', '.join(BASES)}")
    add("--rest", default="bfloat16", choices=FLOATS,
        help="dtype of what is not quantized in a quantized model")  # fmt: skip
    add("--rotation", default="all", choices=("all", "none"),
        help="which inputs of a quantized model are rotated")  # fmt: skip
    add("--repeats", type=int, default=5, help="calls of every variant")
    add("--device", default="cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--checkpoints", type=Path, help="keep the quantized models here and use what is there")
    add("--out", type=Path, help="CSV file")
    add("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    gpu = arguments.device.startswith("cuda")
    family = model_config(arguments.model)["family"]  # an unknown name ends here
    why = FAMILIES[family].model.no_integer_attention
    ends = [end for end in ENDS if not why or INTEGER_ATTENTION not in end]
    if arguments.schemes is None:
        kinds = ("",) if why else ("", INTEGER_ATTENTION)
        arguments.schemes = ",".join(f"{s}{kind}" for s in DEFAULT_SCHEMES for kind in kinds)
    known = tuple(f"{scheme}{end}" for end in ends for scheme in SCHEMES)
    try:
        arguments.schemes = choices("--schemes", arguments.schemes.upper(), known)
    except ValueError as error:
        if why and INTEGER_ATTENTION in arguments.schemes.upper():
            raise ValueError(f"{error} No {INTEGER_ATTENTION}: {arguments.model} {why}") from None
        raise
    if arguments.floats is None:
        arguments.floats = ",".join(BASES[1:] if gpu else FLOATS)
    arguments.floats = choices("--floats", arguments.floats, BASES)
    arguments.images = numbers("--images", arguments.images, "1,8,64")
    if min(*arguments.images, arguments.repeats, arguments.threads) < 1:
        raise ValueError("--images, --repeats and --threads want numbers above 0")
    if not arguments.schemes and not arguments.floats:
        raise ValueError("nothing to measure: --schemes and --floats are both empty")
    graphs = [name for name in arguments.floats if name not in FLOATS]
    if graphs and not gpu:
        raise ValueError(f"--floats {graphs[0]} wants --device cuda")
    computing_device(arguments.device)
    if arguments.out:
        check_writable(arguments.out, folder=False)
    if arguments.checkpoints:
        check_writable(arguments.checkpoints)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file. 2 for bad arguments, 130 when interrupted."""
    try:
        arguments = _parse(argv)
    except ValueError as error:
        sys.stderr.write(f"generate.py: {error}\n")
        return 2
    rows: list[dict[str, Any]] = []
    status = 0
    folder = arguments.checkpoints or Path(tempfile.mkdtemp(prefix="ptq4arvg-"))
    with make_progress(arguments.quiet) as display:
        try:
            for images in arguments.images:
                status |= measure(arguments, images, folder, rows, display)
        except KeyboardInterrupt:
            display.say("interrupted; this is what was measured until then")
            status = 130
        except VariantError as error:
            display.say(f"generate.py: {error}")
            status = 1
        finally:
            if not arguments.checkpoints:
                shutil.rmtree(folder, ignore_errors=True)
    for images in dict.fromkeys(row["images"] for row in rows):
        print_table([row for row in rows if row["images"] == images])
    if rows and arguments.out:
        write_csv(arguments.out, COLUMNS, rows)
        sys.stdout.write(f"wrote {arguments.out}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
