"""What several commands share."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

__all__ = ["closing", "header", "load", "load_target", "parse_classes", "split", "typed"]

Source = tuple[str, Path | None, Path | None, float]


def header(command: str, seed: int | None = None, quiet: bool = False) -> None:
    """The first line of a long command, printed before anything heavy is imported."""
    if quiet:
        return
    from .. import __version__

    tail = "" if seed is None else f"   seed {seed}"
    print(f"ptq4arvg {__version__}   {command}{tail}", file=sys.stderr, flush=True)


def closing(written: str, figure: str, following: str) -> None:
    """The last three lines: what was written, the one number to look at, the next command."""
    print(f"wrote  {written}")
    print(f"look   {figure}")
    print(f"next   {following}")


def typed(*words: Any, **options: Any) -> str:
    """A command line for a shell: the words, then the options that are not None."""
    given = {f"--{name.replace('_', '-')}": v for name, v in options.items() if v is not None}
    flags = [text for pair in given.items() for text in pair]
    return shlex.join(map(str, ("ptq4arvg", *words, *flags)))


def load(source: Source) -> Any:
    """The float model of (name, weights, tokenizer, stress)."""
    from ..models import load_model

    name, weights, tokenizer, stress = source
    return load_model(name, weights=weights, tokenizer=tokenizer, stress=stress)


def load_target(target: str, device: Any = "cpu", **files: Path | None) -> Any:
    """The quantized model in a checkpoint folder, or the float model of that name, of ``files``
    (weights, tokenizer). ValueError for what is neither."""
    from ..checkpoint import load_quantized
    from ..errors import closest
    from ..models import load_model
    from ..models.registry import BUNDLED, PUBLISHED

    if Path(target).exists():
        return load_quantized(target, device=device)
    names = [*BUNDLED, *PUBLISHED]
    if target not in names:
        raise ValueError(
            f"there is no checkpoint folder {target!r}, and no model of that name. "
            f"{closest(target, names)}"
        )
    return load_model(target, device=device, **files)


def split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated text, without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_classes(text: str, count: int) -> list[int]:
    """Class numbers from text such as ``3,7`` or ``0-4,9``. ValueError says what is wrong."""
    labels: list[int] = []
    for part in text.replace(" ", "").split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not found:
            raise ValueError(
                f"--classes {text!r}: {part!r} is not a class number; wanted numbers such as 3,7 "
                f"or a range such as 0-{count - 1}"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < count:
            raise ValueError(f"--classes {text!r}: {part} is out of range; wanted 0 to {count - 1}")
        labels += range(first, last + 1)
    return labels
