"""Command-line values that the benchmarks share."""

from __future__ import annotations

from ptq4arvg.errors import closest

__all__ = ["at_least", "choices", "numbers"]


def choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """The names of a comma-separated list, each once. ValueError offers the closest to an unknown
    one."""
    wanted = [*dict.fromkeys(part.strip() for part in text.split(",") if part.strip())]
    for name in wanted:
        if name not in known:
            raise ValueError(f"{option}: unknown {name!r}; known are {', '.join(known)}. "
                             f"{closest(name, known)}")  # fmt: skip
    return wanted


def numbers(option: str, text: str, example: str) -> list[int]:
    """The numbers of a comma-separated list, each once."""
    try:
        return [*dict.fromkeys(map(int, text.split(",")))]
    except ValueError:
        raise ValueError(f"{option} {text!r}; wanted numbers such as {example}") from None


def at_least(option: str, value: int, least: int) -> None:
    """ValueError for a smaller value."""
    if value < least:
        raise ValueError(f"{option} {value}; wanted {least} or more")
