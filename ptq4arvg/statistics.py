"""Streaming statistics of the inputs of linears, collected through hooks in bounded memory.

Two passes over the calibration rows are enough for every method: ``collect_inputs`` (ranges per
position and channel, and an even sample of token vectors) on the float model, and, once the
transforms are folded, ``collect_histograms`` (values per position) for the search of the static
scales. Nothing grows with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .calibration import Calibration

__all__ = ["InputStatistics", "collect_histograms", "collect_inputs", "watch_inputs"]

Progress = Callable[[str, int, int], None]


@dataclass
class InputStatistics:
    """What is known of one linear's input over the calibration rows.

    lo, hi float32 [T, K]: minimum and maximum per position and channel (T = 1 for an input
    without a token axis); sample float32 [S, K] and sample_position int64 [S]: token vectors taken
    evenly over rows and positions; rows: how many calibration rows were seen.
    """

    lo: Tensor
    hi: Tensor
    sample: Tensor
    sample_position: Tensor
    rows: int

    def transformed(self, scale: Tensor, shift: Tensor) -> InputStatistics:
        """Statistics of ``u / scale - shift`` (scale > 0, both [K])."""
        return InputStatistics(
            self.lo / scale - shift,
            self.hi / scale - shift,
            self.sample / scale - shift,
            self.sample_position,
            self.rows,
        )


@torch.inference_mode()
def watch_inputs(
    model: torch.nn.Module,
    calibration: Calibration,
    observers: dict[str, Callable[[Tensor, int], None]],
    batch_size: int = 16,
    progress: Progress | None = None,
    phase: str = "collect",
) -> None:
    """Replay the calibration rows and hand each named linear's input to its observer.

    An observer gets x [B, T, K] (T = 1 where the input has no token axis) and the index of the
    batch's first row.
    """
    start = 0

    def hook(observe: Callable[[Tensor, int], None]):
        def pre_hook(_module, args) -> None:
            x = args[0]
            observe(x if x.ndim == 3 else x.unsqueeze(1), start)

        return pre_hook

    handles = [
        model.transformer.get_submodule(name).register_forward_pre_hook(hook(observe))
        for name, observe in observers.items()
    ]
    try:
        for ids, labels in calibration.batches(batch_size):
            model.replay(ids, labels)
            start += len(labels)
            if progress:
                progress(phase, start, len(calibration.labels))
    finally:
        for handle in handles:
            handle.remove()


class _InputObserver:
    """Running range and an even sample of token vectors of one linear's input."""

    def __init__(self, rows: int, size: int) -> None:
        self.rows, self.size = rows, size
        self.lo = self.hi = None
        self.sample: list[Tensor] = []
        self.position: list[Tensor] = []

    def __call__(self, x: Tensor, start: int) -> None:
        batch, tokens, _ = x.shape
        lo, hi = x.amin(0).float(), x.amax(0).float()  # [T, K]
        self.lo = lo if self.lo is None else torch.minimum(self.lo, lo)
        self.hi = hi if self.hi is None else torch.maximum(self.hi, hi)
        # Token vectors number*step of the stream of all rows' positions: even, and the same
        # whatever the batch size. A step coprime to the row length visits all positions.
        step = max(self.rows * tokens // self.size, 1)
        while tokens > 1 and step > 1 and torch.gcd(torch.tensor(step), torch.tensor(tokens)) > 1:
            step -= 1
        first = -(-start * tokens // step) * step
        index = torch.arange(first, (start + batch) * tokens, step) - start * tokens
        flat = x.reshape(-1, x.shape[-1])  # [B * T, K]
        self.sample.append(flat[index.to(x.device)].float())
        self.position.append(index % tokens)

    def result(self) -> InputStatistics:
        return InputStatistics(
            self.lo, self.hi, torch.cat(self.sample), torch.cat(self.position), self.rows
        )


def collect_inputs(
    model: torch.nn.Module,
    calibration: Calibration,
    names: Sequence[str],
    sample: int = 1024,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, InputStatistics]:
    """Input statistics of the named linears over the calibration rows."""
    rows = len(calibration.labels)
    observers = {name: _InputObserver(rows, sample) for name in names}
    watch_inputs(model, calibration, observers, batch_size, progress, "collect")
    return {name: observer.result() for name, observer in observers.items()}


class _HistogramObserver:
    """Weighted histogram per group of positions of one linear's input."""

    def __init__(self, lo: Tensor, hi: Tensor, group: Tensor, weight: Tensor, bins: int) -> None:
        self.lo, self.group, self.weight, self.bins = lo, group, weight.float(), bins
        self.per_unit = bins / (hi - lo).clamp_min(torch.finfo(torch.float32).tiny)
        self.counts = torch.zeros(len(lo) * bins, dtype=torch.float64, device=lo.device)

    def __call__(self, x: Tensor, start: int) -> None:
        lo, per_unit = self.lo[self.group], self.per_unit[self.group]  # [T]
        index = ((x.float() - lo[None, :, None]) * per_unit[None, :, None]).to(torch.int32)
        index.clamp_(0, self.bins - 1)
        index += (self.group.to(torch.int32) * self.bins)[None, :, None]
        self.counts += torch.bincount(
            index.flatten(), self.weight.expand(index.shape).flatten(), len(self.counts)
        )

    def result(self) -> Tensor:
        return self.counts.view(len(self.lo), self.bins)  # [G, bins]


def collect_histograms(
    model: torch.nn.Module,
    calibration: Calibration,
    ranges: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]],
    bins: int = 1024,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Histograms [G, bins] of the named linears' inputs.

    ``ranges``: name -> (lo [G], hi [G], group of each position int64 [T], weight of each channel
    [K]); values outside a range fall into its end bins.
    """
    observers = {name: _HistogramObserver(*r, bins) for name, r in ranges.items()}
    watch_inputs(model, calibration, observers, batch_size, progress, "token scales")
    return {name: observer.result() for name, observer in observers.items()}
