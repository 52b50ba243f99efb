"""Command-line values that the benchmarks share."""

from __future__ import annotations

from ptq4arvg.errors import closest

__all__ = ["choices"]


def choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """The names of a comma-separated list. ValueError offers the closest to an unknown one."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"{option}: unknown {name!r}; known are {', '.join(known)}. "
                             f"{closest(name, known)}")  # fmt: skip
    return wanted
