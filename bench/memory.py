"""How much memory a process takes: the float32 model, and one quantized from a mapped file."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import stamp, write_csv
from variants import float_model, mib

import ptq4arvg
from ptq4arvg.calibration import check_selection
from ptq4arvg.methods import get_method
from ptq4arvg.models import store_weights
from ptq4arvg.models.registry import BUNDLED, model_config
from ptq4arvg.numerics import get_scheme

COLUMNS = (
    "date", "commit", "device", "torch", "isa", "threads", "model", "variant", "method", "samples",
    "keep", "steps", "image", "import_mib", "peak_mib", "ratio", "seconds_load",
    "seconds_calibrate", "seconds_quantize", "seconds_generate",
)  # fmt: skip


class _Enough(Exception):
    """As many steps were generated as were asked for."""


def _generate(model: Any, steps: int) -> tuple[int, str]:
    """One image, or its first ``steps`` steps (0: all): (steps made, "decoded" or "stopped")."""
    made = 0
    last = model.transformer.get_submodule(model.linears()[-1].name)

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == steps:
            raise _Enough

    handle = last.register_forward_hook(count)
    try:
        model.generate([0], seed=0)
    except _Enough:
        return made, "stopped"
    finally:
        handle.remove()
    return made, "decoded"


def _float32(arguments: argparse.Namespace, timed: Callable[[str, Callable], Any]) -> Any:
    return timed("load", lambda: float_model(arguments.model, "float32"))


def _streamed(arguments: argparse.Namespace, timed: Callable[[str, Callable], Any]) -> Any:
    model = timed("load", lambda: ptq4arvg.load_model(
        arguments.model, weights=arguments.weights, tokenizer="random", dtype=torch.bfloat16,
        mmap=True))  # fmt: skip
    rows = timed("calibrate", lambda: ptq4arvg.calibrate(
        model, arguments.samples, arguments.keep, batch_size=1))  # fmt: skip
    timed("quantize", lambda: ptq4arvg.quantize_(
        model, arguments.scheme, arguments.method, rows, batch_size=1))  # fmt: skip
    return model


def _child(arguments: argparse.Namespace, variant: str) -> dict[str, Any]:
    """Everything that one process does, and the highest resident memory it had (MiB)."""
    torch.set_num_threads(arguments.threads)
    row: dict[str, Any] = {"import_mib": mib("VmRSS")}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        row[f"seconds_{name}"] = time.perf_counter() - start
        sys.stderr.write(f"{variant}: {name} {row[f'seconds_{name}']:.0f} s, "
                         f"peak {mib('VmHWM'):.0f} MiB\n")  # fmt: skip
        return result

    model = {"float32": _float32, "streamed": _streamed}[variant](arguments, timed)
    row["steps"], row["image"] = timed("generate", lambda: _generate(model, arguments.steps))
    return row | {"peak_mib": mib("VmHWM")}


def _run_child(argv: list[str], variant: str, weights: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *argv, "--weights", str(weights), "--child", variant],
        stdout=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{variant}: its process ended with status {done.returncode} (-9: it "
                           "was killed, most likely for want of memory)")  # fmt: skip
    return json.loads(done.stdout)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="llamagen-b", help="a published size; its weights are random")
    add("--scheme", default="W4A8")
    add("--method", default="ptq4arvg")
    add("--samples", type=int, default=4, help="rows to sample for calibration")
    add("--keep", type=int, default=2, help="rows of them to calibrate on")
    add("--steps", type=int, default=0, help="steps to generate; 0: a whole image, decoded")
    add("--variants", default="float32,streamed", help="which of the two to run")
    add("--weights", type=Path, help="file of random weights, written if it does not exist")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, help="CSV file")
    add("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    model_config(arguments.model)
    get_scheme(arguments.scheme)
    get_method(arguments.method)
    check_selection(arguments.samples, arguments.keep, "dgc")
    if arguments.model in BUNDLED:
        raise ValueError(f"--model {arguments.model} is bundled; wanted a published size")
    for variant in arguments.variants.split(","):
        if variant not in ("float32", "streamed"):
            raise ValueError(f"--variants {variant!r}; wanted float32, streamed or both")
    if arguments.threads < 1 or arguments.steps < 0:
        raise ValueError("--threads wants a number above 0, --steps one that is not negative")
    return arguments


def measure(arguments: argparse.Namespace, argv: list[str], weights: Path) -> list[dict[str, Any]]:
    """A row per variant, each measured in a process of its own."""
    shared = stamp("cpu", arguments.threads) | {"model": arguments.model}
    rows = []
    for variant in arguments.variants.split(","):
        row = shared | {"variant": variant}
        if variant == "streamed":
            if not weights.exists():
                store_weights(arguments.model, weights, "random")
            row |= {"variant": f"streamed {get_scheme(arguments.scheme).name}",
                    "method": arguments.method, "samples": arguments.samples,
                    "keep": arguments.keep}  # fmt: skip
        rows.append(row | _run_child(argv, variant, weights))
    for row in rows:
        if rows[0]["variant"] == "float32":
            row["ratio"] = row["peak_mib"] / rows[0]["peak_mib"]
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the file. 2 for bad arguments, 1 where a process was lost."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parse(argv)
    except ValueError as error:
        sys.stderr.write(f"memory.py: {error}\n")
        return 2
    if arguments.child:
        print(json.dumps(_child(arguments, arguments.child)))
        return 0
    with tempfile.TemporaryDirectory(prefix="ptq4arvg-") as folder:
        weights = arguments.weights or Path(folder) / f"{arguments.model}.safetensors"
        try:
            rows = measure(arguments, argv, weights)
        except RuntimeError as error:
            sys.stderr.write(f"memory.py: {error}\n")
            return 1
    for row in rows:
        ratio = f", {row['ratio']:.3f} of float32" if "ratio" in row else ""
        sys.stdout.write(f"{row['variant']}: peak {row['peak_mib']:.0f} MiB{ratio}\n")
    if arguments.out:
        write_csv(arguments.out, COLUMNS, rows)
        sys.stdout.write(f"wrote {arguments.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
