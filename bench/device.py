"""The device that is measured: many calls in a CUDA graph where it has graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timing import Timings, measure

__all__ = ["Device"]

Call = Callable[[], Any]

LEAST_LAUNCHES = 8  # in a graph
# Seconds of a timing on a GPU, of which waiting for the device takes about 1e-5.
SAMPLE = 2e-3


@dataclass(frozen=True)
class Device:
    """A processor ("cpu") or a GPU ("cuda", "cuda:1")."""

    name: str

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.name.startswith("cuda")

    def l2_bytes(self) -> int:
        """Bytes of a GPU's second-level cache; 0 of a processor."""
        return torch.cuda.get_device_properties(self.name).L2_cache_size if self.cuda else 0

    def synchronize(self) -> None:
        """Wait for a GPU."""
        if self.cuda:
            torch.cuda.synchronize(self.name)

    def answers(self) -> bool:
        """Whether it still works: after a kernel's illegal access a process has no GPU any more."""
        try:
            self.synchronize()
        except RuntimeError:
            return False
        return True

    def capture(self, calls: Sequence[Call]) -> Call:
        """One call that does all of them, in turn; on a GPU a CUDA graph, so that a timing has no
        launches from Python in it. Each call has run once before it is captured."""
        if not self.cuda:
            return lambda: [call() for call in calls]
        side = torch.cuda.Stream(self.name)
        side.wait_stream(torch.cuda.current_stream(self.name))
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream(self.name).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def repeated(self, calls: Sequence[Call]) -> list[Call]:
        """As many calls as a graph should have at least, the given ones in turn."""
        return list(calls) * math.ceil(LEAST_LAUNCHES / len(calls)) if self.cuda else list(calls)

    def time(
        self,
        calls: Mapping[Any, Sequence[Call]],
        budget: float,
        tick: Call = lambda: None,
        min_repeats: int = 5,
    ) -> Timings:
        """Seconds per call of every candidate, the candidates in turn. On a GPU all calls of one
        are captured, and timed together."""
        if not self.cuda:
            return measure(calls, budget, tick=tick, min_repeats=min_repeats)
        calls = {name: self.repeated(each) for name, each in calls.items()}
        replays = {name: self.capture(each) for name, each in calls.items()}
        counts = {name: len(each) for name, each in calls.items()}
        return self.time_captured(replays, counts, budget, tick, min_repeats)

    def time_captured(
        self,
        replays: Mapping[Any, Call],
        counts: Mapping[Any, int],
        budget: float,
        tick: Call = lambda: None,
        min_repeats: int = 5,
    ) -> Timings:
        """`time` of what ``capture`` made of so many calls each."""
        timings = measure(
            {name: [replay] for name, replay in replays.items()}, budget, tick=tick,
            sample=SAMPLE, min_repeats=min_repeats, synchronize=self.synchronize,
        )  # fmt: skip
        seconds = {
            name: [value / counts[name] for value in values]
            for name, values in timings.seconds.items()
        }
        return Timings(seconds, timings.quiet)
