"""The training loop: progress, checkpoints that resume exactly, and a clean stop on Ctrl-C."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from ptq4arvg.progress import make_progress

__all__ = [
    "Stopped",
    "arguments",
    "load_checkpoint",
    "positive",
    "run_command",
    "save_checkpoint",
    "train",
]

FIRST_REPORT, REPORT_EVERY = 1.5, 30.0  # seconds


class Stateful(Protocol):
    """A module, an optimizer, an average: what a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Stopped(Exception):
    """Training was interrupted after it had saved its state."""


def positive(text: str) -> int:
    """A command-line number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; wanted at least 1")
    return value


def arguments(
    description: str, steps: int, batch: int, float32: bool = False
) -> argparse.ArgumentParser:
    """The options that all trainers have; float32: also that of those that use bfloat16."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    required = {"type": Path, "required": True, "default": argparse.SUPPRESS}
    parser.add_argument("--data", help="folder that prepare_data.py wrote", **required)
    parser.add_argument("--out", help="folder for checkpoints and weights", **required)
    parser.add_argument("--steps", type=positive, default=steps, help="optimizer steps")
    parser.add_argument("--batch", type=positive, default=batch, help="pictures per step")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches, augmentation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save-every", type=positive, default=250, help="steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    if float32:
        parser.add_argument(
            "--float32", action="store_true", help="no bfloat16; for processors without it"
        )
    return parser


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: the old one stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: Path, settings: dict[str, int], device: str) -> dict[str, Any]:
    """Read a checkpoint made with the same ``settings``; nothing in it is executed."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path} to resume from. Leave out --resume")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        made_with = state["settings"]
    except Exception as error:  # the unpickler's refusals have no common public type
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from None
    for name, value in settings.items():
        if made_with.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {made_with.get(name)}, not {value}: going on would "
                "not give the result of one run. Give the same, or choose another --out"
            )
    return state


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside only makes the given function true; a second one interrupts at once."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Report:
    """Lines with the mean losses since the last one and the time left."""

    def __init__(self, name: str, start: int, steps: int, display: Any) -> None:
        self.name, self.start, self.steps, self.display = name, start, steps, display
        self.begin = time.monotonic()
        self.due = self.begin + FIRST_REPORT
        self.sums: dict[str, float] = {}
        self.count = 0
        display(name, start, steps)

    def add(self, done: int, values: dict[str, float]) -> None:
        """``done`` steps are finished; the last one had ``values``."""
        self.display(self.name, done, self.steps)
        self.count += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        now = time.monotonic()
        if now < self.due and done < self.steps:
            return
        left = (now - self.begin) / (done - self.start) * (self.steps - done)
        means = ", ".join(f"{key} {value / self.count:.4g}" for key, value in self.sums.items())
        self.display.say(f"step {done}/{self.steps}: {means}; about {left:.0f} s left")
        self.sums, self.count, self.due = {}, 0, now + REPORT_EVERY


def train(
    name: str,
    options: argparse.Namespace,
    parts: dict[str, Stateful],
    generator: torch.Generator,
    step: Callable[[int], dict[str, float]],
    display: Any,
) -> None:
    """Call ``step(0)`` to ``step(options.steps - 1)``, saving to ``<out>/<name>.ckpt``.

    parts: all that the steps change; generator: all that they draw from. step returns values to
    show, among them "loss"; training ends with FloatingPointError where that is not finite.
    Stopped: after Ctrl-C, when the state is saved.
    """
    path = options.out / f"{name}.ckpt"
    names = ("steps", "batch", "seed", "float32", "compile")
    settings = {key: int(getattr(options, key)) for key in names if hasattr(options, key)}
    done = 0
    if options.resume:
        state = load_checkpoint(path, settings, options.device)
        for key, part in parts.items():
            part.load_state_dict(state["parts"][key])
        generator.set_state(state["generator"].cpu())
        done = state["step"]
        display.say(f"going on from step {done}")
    elif path.exists():
        raise FileExistsError(f"{path} exists. Add --resume to go on, or choose another --out")

    def save() -> None:
        kept = {key: part.state_dict() for key, part in parts.items()}
        save_checkpoint(path, {"step": done, "settings": settings, "parts": kept,
                               "generator": generator.get_state()})  # fmt: skip

    report = _Report(name, done, options.steps, display)
    with _interrupts() as interrupted:
        while done < options.steps:
            values = step(done)
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"the loss of step {done} is {values['loss']}; the last checkpoint is kept"
                )
            done += 1
            report.add(done, values)
            if interrupted() and done < options.steps:
                save()
                raise Stopped(f"stopped after step {done}; go on with --resume")
            if done % options.save_every == 0 or done == options.steps:
                save()


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    body: Callable[[argparse.Namespace, Any], None],
) -> int:
    """Parse, call ``body(options, display)``, and turn its errors into a line and an exit code."""
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: this PyTorch sees no CUDA device")
    # Denormal numbers, frequent early in training, take the processor many times as long.
    flushed = torch.set_flush_denormal(True)
    try:
        with make_progress() as display:
            body(options, display)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped; the last checkpoint is kept", file=sys.stderr)
        return 130
    finally:
        if flushed:
            torch.set_flush_denormal(False)
    return 0
