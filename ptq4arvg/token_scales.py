"""Static token-wise quantization (paper sec. 4.2): the input grids of a linear, per position.

Sequence length and order are fixed, and what a position holds hardly changes from image to image,
so every position can have a scale of its own, found offline. How fine the scales may be is a
question of how many rows they are estimated from: with few, a range per position is too narrow for
the next image. ``granularity="auto"`` therefore shrinks the positions' ranges towards the range of
their decoding step by the factor that does best on rows it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .calibration import Calibration
from .numerics import affine_grid, grid_error, search_range
from .statistics import SAMPLE, InputStatistics, collect_inputs

__all__ = ["GRANULARITIES", "collect_steps", "input_grid", "position_groups"]

GRANULARITIES = ("tensor", "group", "step", "position", "auto")
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)

Range = tuple[Tensor, Tensor]


def position_groups(spec, granularity: str) -> Tensor:
    """Group of each position int64 [T]: one for all, the paper's, one per step, or one each.

    "position" and "auto" keep together what the family does not tell apart (``spec.finest``).
    """
    positions = len(spec.groups)
    each = list(range(positions)) if spec.finest is None else list(spec.finest)
    groups = {
        "tensor": [0] * positions,
        "group": list(spec.groups),
        "step": list(spec.scale_groups),
        "position": each,
        "auto": each,
    }[granularity]
    return torch.tensor(groups, dtype=torch.int64)


def collect_steps(
    model: torch.nn.Module,
    plan: Sequence[Any],
    calibration: Calibration,
    sample: int = SAMPLE,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, InputStatistics]:
    """``collect_inputs`` of the planned linears of ``model``, with ranges by decoding step."""
    steps = {p.name: position_groups(p.spec, "step") for p in plan}
    visits = {name: model.visits(name) for name in steps}
    return collect_inputs(model, calibration, steps, visits, sample, batch_size, progress)


def step_ranges(stats: InputStatistics) -> Range:
    """(lo, hi) of each position's decoding step, [T]: what the histograms are taken over."""
    lo, hi = stats.lo.amin(1).clamp(max=0), stats.hi.amax(1).clamp(min=0)
    return lo[stats.step], hi[stats.step]


def input_grid(
    spec, stats: InputStatistics, histogram: Tensor | None, bits: int, granularity: str
) -> tuple[Tensor, Tensor, Tensor, float | None]:
    """(scale [G], zero [G], group of each position [T], blend or None) of a linear's input.

    histogram [2, T, bins] over ``step_ranges`` (even and odd rows), or None for the minimum and
    maximum of each group. blend: 1 = every position on its own, 0 = all as their step ("auto").
    """
    group = position_groups(spec, granularity)
    lo, hi = step_ranges(stats)
    if histogram is None:
        wide = position_groups(spec, "step" if granularity in ("position", "auto") else granularity)
        return *affine_grid(*_group_range(lo, hi, wide), bits), wide, None
    count = int(group.max()) + 1
    if granularity != "auto" or count == 1:
        return *affine_grid(*_search(histogram.sum(0), lo, hi, group, bits), bits), group, None
    step = stats.step
    step_of = torch.zeros(count, dtype=torch.int64).scatter_(0, group, step)  # of each group
    blend = _best_blend(histogram, lo, hi, (group, step, step_of), bits)
    fine = _search(histogram.sum(0), lo, hi, group, bits)
    coarse = _search(histogram.sum(0), lo, hi, step, bits)
    lo, hi = _blended(fine, coarse, step_of, blend)
    if blend == 0.0:
        return *affine_grid(*coarse, bits), step, blend
    return *affine_grid(lo, hi, bits), group, blend


def _group_range(lo: Tensor, hi: Tensor, group: Tensor) -> Range:
    count = int(group.max()) + 1
    return (
        torch.zeros(count).scatter_reduce(0, group, lo, "amin"),
        torch.zeros(count).scatter_reduce(0, group, hi, "amax"),
    )


def _search(histogram: Tensor, lo: Tensor, hi: Tensor, group: Tensor, bits: int) -> Range:
    """Least-squares range [G] of each group from histograms [T, bins] over [lo, hi] [T]."""
    low, high = _group_range(lo, hi, group)
    pooled = torch.zeros(len(low), histogram.shape[1])
    same = torch.equal(low[group], lo) and torch.equal(high[group], hi)
    if not same:  # groups that join steps of different range: bring the bins to a common range
        histogram = _rebin(histogram, lo, hi, low[group], high[group])
    pooled.index_add_(0, group, histogram)
    return search_range(pooled, *_occupied(pooled, low, high), bits, over=(low, high))


def _occupied(histogram: Tensor, lo: Tensor, hi: Tensor) -> Range:
    """The ends of the occupied bins of each row: its minimum and maximum, to one bin."""
    bins = histogram.shape[1]
    index = torch.arange(bins)
    used = histogram > 0
    first = torch.where(used, index, bins).amin(1).clamp(max=bins - 1)
    last = torch.where(used, index, -1).amax(1).clamp(min=0)
    width = (hi - lo) / bins
    return (lo + first * width).clamp(max=0), (lo + (last + 1) * width).clamp(min=0)


def _rebin(histogram: Tensor, lo: Tensor, hi: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Histograms over [lo, hi] [T] as histograms over the wider [low, high] [T]."""
    bins = histogram.shape[1]
    centre = lo[:, None] + (hi - lo)[:, None] * (torch.arange(bins) + 0.5) / bins
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    index = ((centre - low[:, None]) / span[:, None] * bins).long().clamp_(0, bins - 1)
    return torch.zeros_like(histogram).scatter_add_(1, index, histogram)


def _blended(fine: Range, coarse: Range, step_of: Tensor, blend: float) -> Range:
    """Ranges [G] between a group's own (blend 1) and its step's (blend 0)."""
    return tuple(blend * f + (1 - blend) * c[step_of] for f, c in zip(fine, coarse, strict=True))


def _best_blend(
    histogram: Tensor, lo: Tensor, hi: Tensor, groups: tuple[Tensor, Tensor, Tensor], bits: int
) -> float:
    """The blend of least error on one half of the rows when fitted on the other, both ways.

    groups: (group of each position, step of each position, step of each group).
    """
    group, step, step_of = groups
    errors = [0.0] * len(BLENDS)
    for fit, held_out in ((0, 1), (1, 0)):
        fine = _search(histogram[fit], lo, hi, group, bits)
        coarse = _search(histogram[fit], lo, hi, step, bits)
        for i, blend in enumerate(BLENDS):
            low, high = (r[group] for r in _blended(fine, coarse, step_of, blend))
            errors[i] += grid_error(histogram[held_out], lo, hi, low, high, bits).sum().item()
    return BLENDS[min(range(len(BLENDS)), key=errors.__getitem__)]
