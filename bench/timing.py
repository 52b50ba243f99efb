"""Timing of several candidates in turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Timings", "Waiting", "cold_copies", "geometric_mean", "last_level_cache", "measure"]

Candidate = Sequence[Callable[[], Any]]


def _quantile(values: Sequence[float], q: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()


@dataclass(frozen=True)
class Timings:
    """Seconds per call of every candidate, one entry per round; rounds are comparable by index.

    quiet: whether, during that timing, no thread of ours waited for a processor that something else
    was using. Where a candidate has three quiet timings, the others are left out of its results.
    """

    seconds: dict[str, list[float]]
    quiet: dict[str, list[bool]]

    @property
    def repeats(self) -> int:
        """Number of rounds."""
        return min(map(len, self.seconds.values()), default=0)

    def disturbed(self, name: str) -> float:
        """Fraction of a candidate's timings that were not quiet; near one, distrust it."""
        return self.quiet[name].count(False) / max(len(self.quiet[name]), 1)

    def quantile(self, name: str, q: float = 0.5) -> float:
        """Seconds per call of a candidate: the median, or another quantile."""
        return _quantile(_prefer(self.seconds[name], self.quiet[name]), q)

    def columns(self, name: str, unit: str = "us") -> dict[str, Any]:
        """What a row says of a candidate's times, in microseconds or milliseconds ("ms")."""
        scale = {"us": 1e6, "ms": 1e3}[unit]
        quantiles = (("median", 0.5), ("p10", 0.1), ("p90", 0.9))
        return {
            **{f"{what}_{unit}": scale * self.quantile(name, q) for what, q in quantiles},
            "repeats": self.repeats, "disturbed": self.disturbed(name),
        }  # fmt: skip

    def ratios(self, column: str, slow: str, fast: str) -> dict[str, float]:
        """Columns x_COLUMN, x_COLUMN_p10 and x_COLUMN_p90 of ``ratio``."""
        quantiles = ("", 0.5), ("_p10", 0.1), ("_p90", 0.9)
        return {f"x_{column}{part}": self.ratio(slow, fast, q) for part, q in quantiles}

    def ratio(self, slow: str, fast: str, q: float = 0.5) -> float:
        """How many times faster ``fast`` is than ``slow``: quantile of the ratios per round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        both = [a and b for a, b in zip(self.quiet[slow], self.quiet[fast], strict=True)]
        return _quantile(_prefer([a / b for a, b in pairs], both), q)


def _prefer(values: list[float], quiet: list[bool]) -> list[float]:
    """The quiet ones of the values if there are three."""
    chosen = list(itertools.compress(values, quiet))
    return chosen if len(chosen) >= 3 else values


class Waiting:
    """Time that the threads of this process spent ready to run, waiting for a processor."""

    def __init__(self) -> None:
        self._files: list[int] = []
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                self._files.append(os.open(path, os.O_RDONLY))

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)

    def read(self) -> float:
        """Seconds, of all threads that there were in the beginning; 0 where it is not known."""
        total = 0
        for file in self._files:
            with contextlib.suppress(OSError, IndexError, ValueError):  # the thread has ended
                total += int(os.pread(file, 64, 0).split()[1])
        return 1e-9 * total


def measure(
    candidates: Mapping[str, Candidate],
    budget: float,
    *,
    sample: float = 2e-4,
    min_repeats: int = 5,
    max_repeats: int = 10_000,
    retries: int = 10,
    synchronize: Callable[[], Any] = lambda: None,
    tick: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time all candidates in turn, round after round, for about ``budget`` seconds.

    A candidate is a list of calls that do the same on different copies of its data; they are used
    in turn. One call in the list: its data stay warm. Each timing covers as many calls as fill
    ``sample`` seconds. Every copy is called once, and every candidate twice, before the first
    round. A timing during which we waited for a processor is taken again, up to ``retries`` times.
    synchronize: waits for the device; tick: called between timings, for a display.
    """
    turns = {name: itertools.cycle(calls) for name, calls in candidates.items()}
    inner = {}
    for name, calls in candidates.items():
        for _ in range(max(len(calls), 2)):
            next(turns[name])()
        synchronize()
        least = sample
        for _ in range(3):
            begin = clock()
            next(turns[name])()
            synchronize()
            least = min(least, clock() - begin)
        inner[name] = math.ceil(sample / max(least, 1e-7))
        tick()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    quiet: dict[str, list[bool]] = {name: [] for name in candidates}
    start = clock()
    with Waiting() as waiting:
        for done in range(max_repeats):
            if done >= min_repeats and clock() - start >= budget:
                break
            for name, turn in turns.items():
                count = inner[name]
                for attempt in range(retries + 1):
                    waited, begin = waiting.read(), clock()
                    for _ in range(count):
                        next(turn)()
                    synchronize()
                    elapsed = clock() - begin
                    alone = waiting.read() - waited <= 0.02 * elapsed
                    if alone or attempt == retries or clock() - start > 2 * budget:
                        break
                quiet[name].append(alone)
                seconds[name].append(elapsed / count)
                tick()
    return Timings(seconds, quiet)


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:])
        if unit and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) << unit)
    return max(sizes) if len(sizes) > 1 else sizes[0]


def cold_copies(footprint: int, cold_bytes: int) -> int:
    """Copies of all candidates' weights, ``footprint`` bytes together, that exceed cold_bytes."""
    return max(1, math.ceil(1.25 * cold_bytes / max(footprint, 1))) if cold_bytes else 1
