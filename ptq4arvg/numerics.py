"""Schemes, affine grids and the search for their ranges.

Every grid is ``x_hat = scale * (q - zero)`` with integer levels ``0 <= q <= 2**bits - 1`` and an
integer zero point inside the level range, so that zero is always represented exactly. Rounding is
to nearest even. Searches run in float32 over float64 sums; scales are returned as float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import closest
from .reference import MAX_ROTATION

__all__ = [
    "SCHEMES",
    "LinearQuantization",
    "Scheme",
    "affine_grid",
    "expand_groups",
    "get_scheme",
    "grid_error",
    "quantize_weight",
    "rotation_block",
    "round_to_grid",
    "round_weight",
    "search_range",
    "sqnr_db",
    "weight_bounds",
    "weight_grid",
    "weight_range",
]


@dataclass(frozen=True)
class Scheme:
    """Bit widths of weights and activations."""

    name: str
    w_bits: int
    a_bits: int


# 6-bit activations save nothing over 8-bit ones, which take the same bytes and multipliers: W6A6 is
# what papers report, W6A8 what W6A6 costs.
SCHEMES = {
    s.name: s
    for s in (
        Scheme("W8A8", 8, 8), Scheme("W6A8", 6, 8), Scheme("W6A6", 6, 6), Scheme("W4A8", 4, 8)
    )
}  # fmt: skip


def get_scheme(scheme: str | Scheme) -> Scheme:
    """The scheme of that name (any case). ValueError names the nearest one otherwise."""
    if isinstance(scheme, Scheme):
        return scheme
    found = SCHEMES.get(str(scheme).upper())
    if found is None:
        raise ValueError(
            f"unknown scheme {scheme!r}; wanted one of {', '.join(SCHEMES)}. "
            f"{closest(str(scheme).upper(), SCHEMES)}"
        )
    return found


@dataclass(frozen=True)
class LinearQuantization:
    """One quantized linear layer in canonical form (row-major, no kernel's layout).

    codes int8 [N, K]: weight levels with the zero point already taken off; w_scale float32 [N];
    w_zero int32 [N] at 6 and 4 bits, None at 8; bias float32 [N] or None; input_scale float32 [G]
    and input_zero int32 [G] in [0, 2**a_bits - 1]: one grid per group of positions;
    position_group int64 [T]: the group of every position; sink: positions computed from float
    activations. rotation: the input is rotated in blocks of so many columns (0: it is not), and the
    weight is the one that goes with that.
    """

    codes: Tensor
    w_scale: Tensor
    w_zero: Tensor | None
    bias: Tensor | None
    input_scale: Tensor
    input_zero: Tensor
    position_group: Tensor
    w_bits: int
    a_bits: int
    sink: tuple[int, ...] = ()
    rotation: int = 0

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dequantized weight [N, K]."""
        return self.codes.to(dtype) * self.w_scale.to(dtype)[:, None]


def rotation_block(columns: int, most: int = MAX_ROTATION) -> int:
    """The largest block that ``columns`` can be rotated in; 0 if their number is odd."""
    block = min(columns & -columns, most)
    return block if block > 1 else 0


def affine_grid(lo: Tensor, hi: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Grid over [min(lo, 0), max(hi, 0)]: (scale float32, zero int32), shaped like ``lo``.

    An empty range (a constant zero, a dead channel) gets scale 1 and zero 0: it is exact.
    """
    lo = lo.double().clamp(max=0.0)
    hi = hi.double().clamp(min=0.0)
    levels = 2**bits - 1
    scale = ((hi - lo) / levels).float()
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    zero = torch.round(-lo / scale.double()).clamp(0, levels).to(torch.int32)
    return scale, zero


def round_to_grid(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """x rounded to the affine grid (scale, zero), which broadcast against x."""
    scale, zero = scale.to(x.dtype), zero.to(x.dtype)
    level = (x / scale).round_()
    return level.clamp_(-zero, 2**bits - 1 - zero).mul_(scale)


def sqnr_db(signal: Tensor, noise: Tensor) -> float:
    """Signal to quantization noise in dB, of sums of squares in float64, within the 24 bits of a
    float32: what comes out exactly, be it zero, has 144.5 dB and no infinite ones."""
    limit = 20 * math.log10(2.0**24)
    if noise == 0:
        return limit
    return (10 * torch.log10(signal / noise)).clamp(-limit, limit).item()


def expand_groups(values: Tensor, position_group: Tensor) -> Tensor:
    """Per-group values [G] to a contiguous table over the positions [T]."""
    return values[position_group].contiguous()


def _row_error(w: Tensor, lo: Tensor, hi: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    """Weighted squared rounding error of each row of ``w`` [N, K] on the grid over [lo, hi] [N]."""
    scale, zero = weight_grid(lo, hi, bits)
    error = _row_levels(w, scale, zero, bits).mul_(scale[:, None]).sub_(w).square_()
    return error.sum(1) if importance is None else error @ importance


def _row_levels(w: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Levels less zero point [N, K] of w [N, K], in its dtype."""
    return (w / scale[:, None]).round_().clamp_(*weight_bounds(zero, bits))


def weight_grid(lo: Tensor, hi: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """(scale float32 [N], zero int32 [N], None at 8 bits) of weight rows of range [lo, hi] [N].

    8 bits: symmetric, so that the larger end decides. 6 and 4 bits: affine.
    """
    if bits == 8:
        reach = torch.maximum(hi, -lo) * (255 / 127)
        return affine_grid(torch.zeros_like(hi), reach, bits)[0], None
    return affine_grid(lo, hi, bits)


def weight_bounds(zero: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    """Least and largest level less zero point, float32 [N, 1] ([] at 8 bits), of weight rows."""
    if zero is None:
        return torch.tensor(-127.0), torch.tensor(127.0)
    low = -zero[:, None].float()
    return low, low + (2**bits - 1)


def quantize_weight(
    weight: Tensor, bits: int, importance: Tensor | None = None, search: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize a weight per output channel: (codes int8 [N, K], scale [N], zero int32 [N] or None).

    8 bits: symmetric, codes in [-127, 127], no zero point. 6 and 4 bits: affine. With ``search``
    the range of each row is shrunk to the one of least squared error, weighted per input channel
    by ``importance`` [K] (the mean square of that channel's activation turns the weight's error
    into the layer output's). Without it the range is the row's minimum and maximum.
    """
    scale, zero = weight_grid(*weight_range(weight, bits, importance, search), bits)
    return round_weight(weight, scale, zero, bits), scale, zero


def weight_range(
    weight: Tensor, bits: int, importance: Tensor | None = None, search: bool = True
) -> tuple[Tensor, Tensor]:
    """The range (lo, hi) [N] of each row that ``quantize_weight`` takes."""
    w = weight.detach().float()
    lo, hi = w.amin(1), w.amax(1)
    if not search:
        return lo, hi
    importance = None if importance is None else importance.to(w.dtype)
    return _search_rows(w, lo, hi, bits, importance)


def round_weight(weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Codes int8 [N, K] of the nearest points of each row's grid (``weight_grid``)."""
    return _row_levels(weight.detach().float(), scale, zero, bits).to(torch.int8)


def _search_rows(
    w: Tensor, lo: Tensor, hi: Tensor, bits: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Shrink both ends of each row's range together, then (affine only) each end on its own."""
    full_lo, full_hi = lo, hi
    best = _row_error(w, lo, hi, bits, importance)
    best_lo, best_hi = lo.clone(), hi.clone()

    def consider(lo: Tensor, hi: Tensor) -> None:
        nonlocal best, best_lo, best_hi
        error = _row_error(w, lo, hi, bits, importance)
        better = error < best
        best = torch.where(better, error, best)
        best_lo, best_hi = torch.where(better, lo, best_lo), torch.where(better, hi, best_hi)

    floor = {8: 0.8, 6: 0.6, 4: 0.4}[bits]
    for ratio in torch.linspace(1.0, floor, 17).tolist()[1:]:
        consider(full_lo * ratio, full_hi * ratio)
    if bits != 8:
        for step in (0.08, -0.08, 0.04, -0.04):
            consider(best_lo + step * full_lo, best_hi)
            consider(best_lo, best_hi + step * full_hi)
    return best_lo, best_hi


def grid_error(
    histogram: Tensor, over_lo: Tensor, over_hi: Tensor, lo: Tensor, hi: Tensor, bits: int
) -> Tensor:
    """Squared error [G] of rounding the histograms' mass to the grids over [lo, hi].

    ``histogram`` [G, bins] in equal bins over [over_lo, over_hi]; taken at the bins' centres, so
    ``bins`` should be several times the number of levels.
    """
    bins = histogram.shape[1]
    centre = (torch.arange(bins, dtype=torch.float32, device=lo.device) + 0.5) / bins
    x = over_lo[:, None] + (over_hi - over_lo)[:, None] * centre  # [G, bins]
    return _mass_error(x, histogram, *affine_grid(lo, hi, bits), bits)


def _mass_error(x: Tensor, mass: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Squared error [G] of rounding values x [G, bins] of that mass to grids [G]."""
    rounded = round_to_grid(x, scale[:, None], zero[:, None], bits)
    return rounded.sub_(x).square_().mul_(mass).sum(1)


def search_range(
    histogram: Tensor,
    lo: Tensor,
    hi: Tensor,
    bits: int,
    candidates: int = 16,
    over: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Least-squares range per group from histograms: (lo, hi) float32 [G].

    ``histogram`` [G, bins]: weight of the values in equal bins over ``over`` (two [G], default lo
    and hi); lo <= 0 <= hi [G]: the full range to start from. Both ends shrink together, then each
    on its own, then in small steps around the best. Unlike the three percentiles of the research
    code, the full range is always a candidate: a clipped outlier has to pay for itself.
    """
    bins = histogram.shape[1]
    full_lo, full_hi = lo.float(), hi.float()
    over_lo, over_hi = over or (full_lo, full_hi)
    centre = (torch.arange(bins, dtype=torch.float32, device=lo.device) + 0.5) / bins
    x = over_lo[:, None] + (over_hi - over_lo)[:, None] * centre  # [G, bins]
    mass = histogram.float()
    best_lo, best_hi = full_lo, full_hi
    best = _mass_error(x, mass, *affine_grid(full_lo, full_hi, bits), bits)

    def consider(lo: Tensor, hi: Tensor) -> None:
        """Take ranges lo, hi [C, G], or [G] where all have the same, where they are better."""
        nonlocal best, best_lo, best_hi
        lo, hi = torch.broadcast_tensors(lo, hi)
        scale, zero = affine_grid(lo, hi, bits)
        errors = [_mass_error(x, mass, *grid, bits) for grid in zip(scale, zero, strict=True)]
        new, index = torch.stack(errors).min(0, keepdim=True)  # the first of equals, [1, G]
        better = new[0] < best
        best = torch.where(better, new[0], best)
        best_lo = torch.where(better, lo.gather(0, index)[0], best_lo)
        best_hi = torch.where(better, hi.gather(0, index)[0], best_hi)

    ratio = torch.linspace(1.0, 0.25, candidates, device=lo.device)[1:, None]
    consider(full_lo * ratio, full_hi * ratio)
    consider(best_lo, full_hi * ratio)
    consider(full_lo * ratio, best_hi)
    for step in (0.02, 0.01):
        for sign in (-step, step):
            consider((best_lo + sign * full_lo).clamp(max=0)[None], best_hi)
            consider(best_lo, (best_hi + sign * full_hi).clamp(min=0)[None])
    return best_lo, best_hi
