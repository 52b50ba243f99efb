"""Streaming statistics of the inputs of linears, collected through hooks in bounded memory.

Up to three passes over the calibration rows, all on the float model as it is: ``collect_inputs``
(ranges per decoding step and channel, and an even sample of token vectors); once the transforms are
known, ``collect_ranges`` of the inputs that are rotated, which no earlier range tells, and
``collect_histograms`` (values of the transformed inputs per position) for the search of the static
scales. Nothing grows with the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .calibration import Calibration
from .distributed import ALONE, Group, current
from .reference import rotate

__all__ = ["SAMPLE", "InputStatistics", "collect_histograms", "collect_inputs", "collect_ranges",
           "watch_inputs"]  # fmt: skip

SAMPLE = 1024  # token vectors that are enough to compare transforms on

WEIGHT_BITS = 24  # of the weights in histograms, as many as float32 has

Progress = Callable[[str, int, int], None]
Input = Callable[[Tensor], Tensor]  # of u in float32 to what the linear reads instead


@dataclass
class InputStatistics:
    """What is known of one linear's input over the calibration rows.

    lo, hi [S, K]: minimum and maximum per decoding step and channel (S = 1 for an input without a
    token axis); step int64 [T]: the step of each position; sample [M, K] and sample_position int64
    [M]: token vectors taken evenly over rows and positions. Values are float32; as collected from
    a model in half precision they are in its dtype, which holds the same in half the memory.
    """

    lo: Tensor
    hi: Tensor
    step: Tensor
    sample: Tensor
    sample_position: Tensor

    def float(self) -> InputStatistics:
        """The same in float32."""
        return replace(self, lo=self.lo.float(), hi=self.hi.float(), sample=self.sample.float())

    def thinned(self, size: int) -> InputStatistics:
        """The same with at most ``size`` token vectors, drawn from the sample at random."""
        if len(self.sample) <= size:
            return self
        order = torch.randperm(len(self.sample), generator=torch.Generator().manual_seed(0))
        kept = order[:size].sort().values
        return replace(
            self, sample=self.sample[kept.to(self.sample.device)],
            sample_position=self.sample_position[kept],
        )  # fmt: skip

    def transformed(self, scale: Tensor, shift: Tensor) -> InputStatistics:
        """Statistics of ``u / scale - shift`` (scale > 0, both float32 [K]), in float32."""
        lo, hi, sample = (x / scale - shift for x in (self.lo, self.hi, self.sample))
        return replace(self, lo=lo, hi=hi, sample=sample)

    def sampled(self) -> InputStatistics:
        """The same with the ranges of the sample; that of a step without any is 0 to 0."""
        if not len(self.sample):
            return replace(self, lo=torch.zeros_like(self.lo), hi=torch.zeros_like(self.hi))
        at = self.step[self.sample_position].to(self.sample.device)
        index = at[:, None].expand_as(self.sample)  # [M, K]
        lo, hi = (
            like.new_zeros(like.shape).scatter_reduce_(
                0, index, self.sample, how, include_self=False
            )
            for like, how in ((self.lo, "amin"), (self.hi, "amax"))
        )
        return replace(self, lo=lo, hi=hi)

    def turned(self, block: int) -> InputStatistics:
        """Those of the input rotated in blocks of so many columns, in float32.

        The ranges are those of the sample: ranges of channels do not tell those of their sums.
        """
        return replace(self.float(), sample=rotate(self.sample.float(), block)).sampled()


@torch.inference_mode()
def watch_inputs(
    model: torch.nn.Module,
    calibration: Calibration,
    observers: dict[str, Callable[[Tensor, int], None]],
    batch_size: int = 16,
    progress: Progress | None = None,
    phase: str = "collect",
    group: Group = ALONE,
) -> None:
    """Replay the calibration rows and hand each named linear's input to its observer.

    An observer gets x [B, t, K] (t = 1 where the input has no token axis), the first t of the
    linear's T positions, and the index of the batch's first row; of all batches, or of those that
    this rank of ``group`` owns.
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
        for number, (ids, labels) in enumerate(calibration.batches(batch_size)):
            mine = group.owns(number)
            if mine:
                model.replay(ids, labels)
            start += len(labels)
            if progress and mine:
                progress(phase, start, len(calibration.labels))
    finally:
        for handle in handles:
            handle.remove()


def _narrow(x: Tensor) -> Tensor:
    """Half precision as it is, everything else as float32."""
    return x if x.dtype in (torch.float16, torch.bfloat16) else x.float()


class _Range:
    """Running minimum and maximum [S, K] of vectors [B, t, K], by the step of each position."""

    def __init__(self, step: Tensor) -> None:
        self.step = step
        self.lo = self.hi = None

    def add(self, x: Tensor) -> None:
        _, tokens, channels = x.shape
        lo, hi = _narrow(x.amin(0)), _narrow(x.amax(0))  # [t, K]
        index = self.step[:tokens, None].expand(-1, channels)
        if self.lo is None:
            steps = int(self.step.max()) + 1
            self.lo, self.hi = (
                lo.new_full((steps, channels), torch.inf),
                hi.new_full((steps, channels), -torch.inf),
            )
        self.lo.scatter_reduce_(0, index, lo, "amin")
        self.hi.scatter_reduce_(0, index, hi, "amax")

    def parts(self) -> dict[str, Tensor]:
        """What a rank hands over for ``_joined``; nothing if it had no rows."""
        return {} if self.lo is None else {"lo": self.lo, "hi": self.hi}


def _joined(parts: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """(lo, hi) [S, K] of all ranks; a step that no row reached has the range of a zero."""
    lows, highs = [part["lo"] for part in parts], [part["hi"] for part in parts]
    # Of 0 and -0 either may come first: plus 0 makes them one.
    lo, hi = torch.stack(lows).amin(0) + 0.0, torch.stack(highs).amax(0) + 0.0
    seen = lo <= hi
    return lo.where(seen, 0.0), hi.where(seen, 0.0)


class _InputObserver:
    """Running range per step and an even sample of token vectors of one linear's input."""

    def __init__(self, step: Tensor, rows: int, size: int) -> None:
        self.step, self.rows, self.size = step, rows, size
        self.range = _Range(step)
        self.sample: list[Tensor] = []
        self.position: list[Tensor] = []
        self.start: list[Tensor] = []

    def __call__(self, x: Tensor, start: int) -> None:
        batch, tokens, channels = x.shape
        self.range.add(x)
        # Every stride-th token vector of the stream of all rows: even over rows and positions, and
        # the same whatever the batch size. A stride coprime to the row length visits all positions.
        stride = max(self.rows * tokens // self.size, 1)
        while math.gcd(stride, tokens) > 1:
            stride -= 1
        first = -(-start * tokens // stride) * stride
        end = (start + batch) * tokens  # a small batch may have none
        index = torch.arange(min(first, end), end, stride) - start * tokens
        flat = x.reshape(-1, channels)  # [B * t, K]
        self.sample.append(_narrow(flat[index.to(x.device)]))
        self.position.append(index % tokens)
        self.start.append(torch.full_like(index, start))

    def result(self) -> InputStatistics:
        """What all ranks found; the parts of the sample are given up."""
        mine = {}
        if self.range.lo is not None:  # a rank may have had no rows
            kept = {"sample": self.sample, "position": self.position, "start": self.start}
            mine = {name: torch.cat(parts) for name, parts in kept.items()}
            mine |= self.range.parts()
        self.sample = []
        parts = [part for part in current().gather(mine) if part]
        # A batch is one rank's: in a stable order of batches the sample is that of one process.
        order = torch.cat([part["start"] for part in parts]).argsort(stable=True)
        position = torch.cat([part["position"] for part in parts])[order]
        sample = torch.cat([part["sample"] for part in parts])[order]
        lo, hi = _joined(parts)
        return InputStatistics(lo, hi, self.step, sample, position)


def collect_inputs(
    model: torch.nn.Module,
    calibration: Calibration,
    steps: dict[str, Tensor],
    visits: dict[str, int] | None = None,
    sample: int = SAMPLE,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, InputStatistics]:
    """Input statistics of linears over the calibration rows; steps: name -> step per position.

    visits: name -> how often a replay runs it (once); sample: about how many token vectors to keep
    of each.
    """
    rows, often = len(calibration.labels), visits or {}
    observers = {
        name: _InputObserver(step, rows * often.get(name, 1), sample)
        for name, step in steps.items()
    }
    watch_inputs(model, calibration, observers, batch_size, progress, "collect", current())
    return {name: observer.result() for name, observer in observers.items()}


class _RangeObserver:
    """Running range per step of ``transform`` of one linear's input."""

    def __init__(self, step: Tensor, transform: Input) -> None:
        self.range, self.transform = _Range(step), transform

    def __call__(self, x: Tensor, start: int) -> None:
        self.range.add(self.transform(x.float()))

    def result(self) -> tuple[Tensor, Tensor]:
        """(lo, hi) [S, K] of all ranks' rows."""
        return _joined([part for part in current().gather(self.range.parts()) if part])


def collect_ranges(
    model: torch.nn.Module,
    calibration: Calibration,
    inputs: Mapping[str, tuple[Tensor, Input]],
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(lo, hi) float32 [S, K] of linears' transformed inputs over the calibration rows.

    inputs: name -> (step of each position [T], what to make of the input in float32).
    """
    observers = {name: _RangeObserver(*given) for name, given in inputs.items()}
    watch_inputs(model, calibration, observers, batch_size, progress, "rotated ranges", current())
    return {name: observer.result() for name, observer in observers.items()}


class _HistogramObserver:
    """Weighted histogram per position of one linear's input, ``transform`` of u (None: u), of even
    and of odd rows apart.

    Weights are whole numbers of ``unit``, 2^-24 of the largest: their sums are exact in float64,
    and so the same in whatever order rows are taken, by one process or by several.
    """

    def __init__(
        self, lo: Tensor, hi: Tensor, weight: Tensor, bins: int, transform: Input | None = None
    ) -> None:
        self.lo, self.bins, self.transform = lo, bins, transform
        self.unit = 2.0 ** (int(torch.frexp(weight.max()).exponent) - WEIGHT_BITS)
        self.weight = (weight.double() / self.unit).round()
        self.weight.clamp_(min=1).mul_(weight > 0)  # a bin that holds any value is not empty
        self.per_unit = bins / (hi - lo).clamp_min(torch.finfo(torch.float32).tiny)
        self.counts = torch.zeros(2, len(lo) * bins, dtype=torch.float64)

    def __call__(self, x: Tensor, start: int) -> None:
        for half in (0, 1):
            rows, tokens = x[(start + half) % 2 :: 2].float(), x.shape[1]
            if self.transform is not None:
                rows = self.transform(rows)
            lo, per_unit = self.lo[:tokens, None], self.per_unit[:tokens, None]
            index = ((rows - lo) * per_unit).to(torch.int32)
            index.clamp_(0, self.bins - 1)
            index += (torch.arange(tokens, dtype=torch.int32) * self.bins)[:, None]
            self.counts[half] += torch.bincount(
                index.flatten(), self.weight.expand(index.shape).flatten(), self.counts.shape[1]
            )

    def result(self) -> Tensor:
        """The histogram float32 [2, T, bins] of all ranks' rows; the sums are given up."""
        counts = current().sum_(self.counts) * self.unit
        del self.counts
        return counts.float().view(2, len(self.lo), self.bins)


def collect_histograms(
    model: torch.nn.Module,
    calibration: Calibration,
    ranges: dict[str, tuple[Tensor, Tensor, Tensor]],
    bins: int,
    transforms: Mapping[str, Input] | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Histograms [2, T, bins] of linears' inputs: even rows, odd rows; per position.

    ``ranges``: name -> (lo [T], hi [T], weight of each channel [K]); values outside a range fall
    into its end bins. ``transforms``: name -> what to make of that input in float32 first.
    """
    given = transforms or {}
    observers = {name: _HistogramObserver(*r, bins, given.get(name)) for name, r in ranges.items()}
    watch_inputs(model, calibration, observers, batch_size, progress, "token scales", current())
    return {name: observer.result() for name, observer in observers.items()}
