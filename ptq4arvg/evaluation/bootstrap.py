"""Bootstrap intervals: how far a figure moves when other images are drawn from the same source."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["bootstrap_interval", "share_interval"]

Progress = Callable[[str, int, int], None]


def bootstrap_interval(
    figure: Callable[[Tensor], float],
    count: int,
    seed: int = 0,
    resamples: int = 200,
    level: float = 0.95,
    low: float = 0.0,
    high: float = torch.inf,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Interval of ``figure``, a function of the rows int64 [count] that it is taken over.

    Percentiles of the figures of resampled rows, moved so that their mean lies on the measured
    figure: a resample repeats images, which changes the figure by about the same bias that a small
    set already has, and without the move the interval would lie beside the figure it is for. Ends
    are kept within what is possible, ``low`` to ``high``.
    """
    if count < 2 or resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap_interval: {count} images, {resamples} resamples, level {level}; wanted at "
            "least 2 of both and a level between 0 and 1"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for number in range(resamples):
        drawn.append(figure(torch.randint(count, (count,), generator=generator)))
        if progress:
            progress("bootstrap", number + 1, resamples)
    figures = torch.tensor(drawn, dtype=torch.float64)
    centred = figures - figures.mean() + figure(torch.arange(count))
    tail = (1 - level) / 2
    ends = torch.quantile(centred, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    first, last = ends.clamp(low, high).tolist()
    return first, last


def share_interval(
    inside: Tensor, seed: int = 0, resamples: int = 200, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the share of true values in ``inside`` bool [n], over its entries."""
    values = inside.double().cpu()
    return bootstrap_interval(
        lambda rows: values[rows].mean().item(), len(values), seed, resamples, level, high=1.0
    )
