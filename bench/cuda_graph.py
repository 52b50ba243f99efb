"""Calls in a CUDA graph, so that a timing has no launches from Python in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["in_a_graph", "l2_bytes", "one_by_one"]

Call = Callable[[], Any]


def in_a_graph(calls: Sequence[Call]) -> Call:
    """A replay of all calls, one after another; each has run once before it is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def one_by_one(calls: Sequence[Call]) -> Call:
    """The same without a graph, for devices that have none."""

    def run() -> None:
        for call in calls:
            call()

    return run


def l2_bytes(device: str) -> int:
    """Bytes of the second-level cache of a CUDA device."""
    return torch.cuda.get_device_properties(device).L2_cache_size
