"""Models in processes of their own, for bench/generate.py.

A worker builds or loads one model, then generates whenever it is told to; both sides talk in lines
of JSON. Run as a script, this file is the worker.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "BASES",
    "ENDS",
    "FLOATS",
    "INTEGER_ATTENTION",
    "Variant",
    "VariantError",
    "float_model",
    "mib",
    "prepare",
]

FLOATS = ("float32", "bfloat16")
# Float variants: as they are; under the CUDA graphs that quantized ones run under; and under these
# with blocks that torch.compile compiled.
BASES = (*FLOATS, "bfloat16_graphs", "bfloat16_compiled")
# What a scheme's name ends in where attention is in integers, over a KV cache of 8 bits.
INTEGER_ATTENTION = "KV8"
# And after that, where the tokenizer's decoder is in integers, too: W8A8.
INTEGER_DECODER = "D8"
ENDS = ("", INTEGER_ATTENTION, INTEGER_DECODER, INTEGER_ATTENTION + INTEGER_DECODER)
# Enough for ranges; random weights give nothing that more would improve.
CALIBRATION_ROWS = 2
PROMPTS = 9  # of a text-to-image model, the empty one among them


class VariantError(RuntimeError):
    """A worker ended before its time."""


class _Worker:
    """A process that is sent lines and answers with lines of JSON."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        """The next answer. VariantError if the process has ended instead."""
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise VariantError(
                f"{self.name}: its process ended with status {status} before it answered; its "
                "message is above (-9: it was killed, most likely for want of memory)"
            )
        return json.loads(line)

    def send(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process, however busy it is."""
        self._process.terminate()
        self._process.wait()


class Variant:
    """One model in its own process. ``loaded``: how long that took, and memory before it."""

    def __init__(
        self, model: str, name: str, folder: Path | None, images: int, threads: int, device: str
    ) -> None:
        self._worker = _Worker(
            name, "serve", model, name, str(folder or ""), str(images), str(threads), device
        )
        self.loaded = self._worker.read()

    def run(self) -> dict[str, float]:
        """Generate once. Seconds: "seconds" in all, "first" scale, "tokens", "decode", "cpu" of all
        threads; "waited": part of the time that threads waited for a processor; "peak_mib" of the
        process so far; "device_peak_mib" of its tensors on a GPU since it was loaded, or None."""
        self._worker.send("run")
        return self._worker.read()

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def prepare(
    model: str, schemes: list[str], rest: str, rotation: str, folder: Path, threads: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Path]:  # fmt: skip
    """Checkpoints of ``model``, one per scheme, made in ``folder`` where they do not exist yet.

    rest: the dtype of what is not quantized. rotation: "all" inputs that can be, or "none"."""
    folders = {s: folder / _checkpoint_name(model, s, rest, rotation) for s in schemes}
    missing = [scheme for scheme in schemes if not folders[scheme].exists()]
    if missing:
        progress("prepare", 0, 1)
        folder.mkdir(parents=True, exist_ok=True)
        worker = _Worker("prepare", "prepare", model, ",".join(missing), rest, rotation,
                         str(folder), str(threads))  # fmt: skip
        try:
            while step := worker.read():
                progress(*step["progress"])
        finally:
            worker.close()
    return folders


def _checkpoint_name(model: str, scheme: str, rest: str, rotation: str) -> str:
    return f"{model}-{scheme}-{rest}" + ("" if rotation == "none" else "-rotated")


def float_model(name: str, dtype: str) -> Any:
    """The float model, never held in another dtype; published sizes get random weights, and random
    prompts where they are conditioned on text."""
    import torch

    from ptq4arvg.models.registry import BUNDLED, build_model, load_model, model_config
    from ptq4arvg.models.switti import SwittiModel

    wanted = getattr(torch, dtype)
    if name in BUNDLED:
        return load_model(name, dtype=wanted)
    model = build_model(name, model_config(name), seed=0, dtype=wanted)
    if isinstance(model, SwittiModel):
        c, generator = model.config, torch.Generator().manual_seed(0)
        shapes = (PROMPTS, c.text_tokens, c.text_dim), (PROMPTS, c.pooled_dim)
        model.set_prompts(*(torch.randn(shape, generator=generator) for shape in shapes))
    return model


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _prepare(
    name: str, schemes: str, rest: str, rotation: str, folder: str, threads: str
) -> None:  # fmt: skip
    import torch

    import ptq4arvg

    torch.set_num_threads(int(threads))
    rows = None
    for scheme in schemes.split(","):

        def progress(phase: str, done: int, total: int, scheme: str = scheme) -> None:
            if phase.startswith("fit"):
                return  # nothing to fit, all at once
            _answer({"progress": [f"prepare {scheme}: {phase}", done, total]})

        progress("build", 0, 1)
        model = float_model(name, rest)
        linears = scheme.removesuffix(INTEGER_DECODER)
        rows = rows or ptq4arvg.calibrate(
            model, CALIBRATION_ROWS, CALIBRATION_ROWS, select="first", progress=progress
        )
        ptq4arvg.quantize_(
            model, linears.removesuffix(INTEGER_ATTENTION), "rtn", rows, batch_size=1,
            progress=progress, rotation=rotation,
            attention="int8" if linears.endswith(INTEGER_ATTENTION) else "float",
            decoder=None if linears == scheme else "W8A8",
        )  # fmt: skip
        model.save_pretrained(Path(folder) / _checkpoint_name(name, scheme, rest, rotation))
    _answer({})


def mib(field: str) -> float:
    """VmHWM (peak) or VmRSS of this process; the peak as the system counts it elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _compile(model: Any) -> None:
    """Compile every block by itself, which is the same code for all of them."""
    import torch

    # Each scale, and each number of positions at once, is compiled for its own shape; but every
    # iteration of MAR has another number of tokens.
    torch._dynamo.config.recompile_limit = 64
    for name in model.block_names():
        model.transformer.get_submodule(name).compile(dynamic=model.continuous)


def _serve(name: str, variant: str, folder: str, images: str, threads: str, device: str) -> None:
    import torch
    from timing import Waiting

    import ptq4arvg
    from ptq4arvg.models.mar import ImageNoise
    from ptq4arvg.sampling import Sampler

    torch.set_num_threads(int(threads))
    before, start = mib("VmRSS"), time.perf_counter()
    if folder:
        model = ptq4arvg.load_quantized(folder, device=device)
    else:
        dtype, _, how = variant.partition("_")
        model = float_model(name, dtype).to(device)
        if how == "compiled":
            _compile(model)
    # Quantized variants run as they would for anyone; None: under graphs on a GPU.
    graphs = None if folder else how != ""
    labels = [label % model.num_classes for label in range(int(images))]
    marks: dict[str, float] = {}
    on_gpu = device.startswith("cuda")
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def mark(key: str) -> None:
        wait()
        marks.setdefault(key, time.perf_counter())

    # The first logits are there when something is drawn from them; where a diffusion head draws,
    # its first tokens are when it gets noise again. No hook runs while a graph is replayed.
    draws, source, method = 0, Sampler, "__call__"
    if model.continuous:
        source, method = ImageNoise, "draw"
    draw = getattr(source, method)

    def watched(*args: Any) -> torch.Tensor:
        nonlocal draws
        draws += 1
        if draws == 1 + model.continuous:
            mark("first")
        return draw(*args)

    setattr(source, method, watched)
    decode = model.decode_ids
    model.decode_ids = lambda ids: (mark("tokens"), decode(ids))[1]
    wait()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    _answer({"seconds": time.perf_counter() - start, "import_mib": before})
    for _ in sys.stdin:
        marks.clear()
        draws = 0
        with Waiting() as waiting:
            waited, cpu, start = waiting.read(), time.process_time(), time.perf_counter()
            model.generate(labels, seed=0, batch_size=len(labels), graphs=graphs)
            mark("end")
            waited, cpu = waiting.read() - waited, time.process_time() - cpu
        seconds = marks["end"] - start
        _answer({
            "seconds": seconds, "first": marks["first"] - start, "tokens": marks["tokens"] - start,
            "decode": marks["end"] - marks["tokens"], "peak_mib": mib("VmHWM"),
            "waited": waited / seconds / int(threads), "cpu": cpu,
            "device_peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
        })  # fmt: skip


if __name__ == "__main__":
    # The parent handles an interrupt and ends its workers.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    {"prepare": _prepare, "serve": _serve}[sys.argv[1]](*sys.argv[2:])
