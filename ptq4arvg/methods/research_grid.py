"""The research code's quantizers as pure functions, for ``compat="research"`` and its tests.

They differ from this package's grids: ranges are one of three percentiles, chosen by squared
error; zero need not lie in the range; and an average over calibration batches makes zero points
fractional, which no integer kernel can hold. Facts about that code are given with each function.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "Average",
    "gps_scale",
    "percentile_grid",
    "round_to",
    "smooth_factors",
    "zero_centring_shift",
]

PERCENTILES = (0.999, 0.9999, 0.99999)


def round_to(x: Tensor, delta: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Dequantized values: levels ``clamp(round(x / delta) + zero, 0, 2^bits - 1)``."""
    level = torch.round(x / delta) + zero
    return (level.clamp(0, 2**bits - 1) - zero) * delta


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Linear-interpolation quantile of rows sorted ascending, [G, n] -> [G]."""
    at = torch.tensor(q, dtype=ordered.dtype) * (ordered.shape[1] - 1)
    low = int(at.floor())
    high = min(low + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], float(at - low))


def percentile_grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Grid of each row of x [G, n]: (delta [G], zero [G], integral but stored as float).

    Of the percentile pairs (1 - p, p), the one of least mean squared error; the earlier wins ties.
    A constant row, where the research code fails, gets a grid that holds its value exactly.
    """
    ordered = x.sort(1).values
    best = torch.full_like(x[:, 0], torch.inf)
    delta, zero = torch.ones_like(best), torch.zeros_like(best)
    for p in PERCENTILES:
        hi, lo = _quantile(ordered, p), _quantile(ordered, 1 - p)
        step = (hi - lo) / (2**bits - 1)
        step = torch.where(step > 0, step, torch.where(lo == 0, torch.ones_like(lo), lo.abs()))
        point = torch.round(-lo / step)
        rounded = round_to(x, step[:, None], point[:, None], bits)
        error = (rounded - x).abs().square().mean(1)
        better = error < best
        best = torch.where(better, error, best)
        delta, zero = torch.where(better, step, delta), torch.where(better, point, zero)
    return delta, zero


class Average:
    """The research code's running average: 0.1 new + 0.9 old, the first value standing for both."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, new: Tensor) -> Tensor:
        old = new if self.value is None else self.value
        self.value = 0.1 * new + 0.9 * old
        return self.value


def smooth_factors(x: Tensor, weight: Tensor) -> Tensor:
    """SmoothQuant at one half: x [S, K], weight [N, K] -> [K]; both maxima at least 1e-6."""
    return x.abs().amax(0).clamp_min(1e-6).sqrt() / weight.abs().amax(0).clamp_min(1e-6).sqrt()


def zero_centring_shift(delta: Tensor, zero: Tensor, bits: int) -> Tensor:
    """What to subtract from each channel so that its zero point becomes 2^(bits-1) - 1."""
    # A difference of two offsets, as in that code: the last bit depends on it.
    return -zero * delta - -(2 ** (bits - 1) - 1) * delta


def gps_scale(
    x: Tensor,
    weight: Tensor,
    act: tuple[Tensor, Tensor],
    w_grid: tuple[Tensor, Tensor],
    bits: int,
) -> Tensor:
    """GPS factors [K] in the L2 form: x [S, K]; weight [N, K]; act: (delta, zero) per channel [K];
    w_grid: per row [N]. No clamp: a zero numerator gives 0, a zero denominator 1."""
    reach = x.amax(0) - x.amin(0)
    anchor = int(reach.argmax())
    column = weight.amax(0) - weight.amin(0)
    base = (reach[anchor] / column[anchor]).sqrt()
    w = round_to(weight, w_grid[0][:, None], w_grid[1][:, None], bits)
    dx = round_to(x, act[0][anchor], act[1][anchor], bits) - x
    a = dx.square().sum(0) * w.square().sum(0)
    b = x.square().sum(0) * (w - weight).square().sum(0)
    scale = base * (b / a).pow(0.25)
    scale = torch.where(a == 0, torch.ones_like(scale), scale)
    scale[anchor] = base
    return scale
