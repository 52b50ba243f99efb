"""Gain-projected scaling (paper sec. 4.1, appendix A), the transform of the ptq4arvg method.

Second-order expansion of the loss gives, for input channel k with scale ``s_k`` and the anchor a
(the channel of widest range, which sets the grid of the whole tensor and of every weight row),

    gain(s_k) = 1/2 [ A_k + B_k - A_k (s_k/s_a)^2 - B_k (s_a/s_k)^2 ],
    A_k = sum_t dx_tk^2 * sum_n W_nk^2,      B_k = sum_t x_tk^2 * sum_n dW_nk^2,

which is concave and largest at ``s_k = s_a (B_k / A_k)^(1/4)``; ``s_a = sqrt(R_x[a] / R_W[a])``
makes the two ranges of the anchor equal. ``dx`` is the rounding error on the anchor's grid, ``dW``
that of the per-row weight grid. The paper prints the L1 cousin of this; both are here.

The gain takes the grids to stay as they are, but they move with the scales, so that it does not
tell how the measured error changes. The expansion itself does once the grids are those of the
scaled tensors: see ``expected_error``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import Scheme, affine_grid, quantize_weight, weight_grid, weight_range
from ..statistics import InputStatistics
from .base import LayerView, Method, Transform, register
from .smoothquant import EXPONENTS, smooth_scale

__all__ = ["GPSResult", "PTQ4ARVG", "center", "expected_error", "gain_projected_scaling"]


COLUMNS = 256  # taken at a time where float64 copies of a whole weight would take gigabytes
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class GPSResult:
    """scale float64 [K]; anchor: its channel; gain: predicted, summed over channels."""

    scale: Tensor
    anchor: int
    gain: float


def gain_projected_scaling(
    x: Tensor, weight: Tensor, bits: int, weight_hat: Tensor, norm: str = "l2", limit: float = 16.0
) -> GPSResult:
    """Closed-form scales for input x [S, K] of ``weight`` [N, K] quantized to ``weight_hat``.

    ``bits``: of the activations. Ratios ``s_k / s_a`` stay within [1/limit, limit]; a channel
    whose weights or values are all zero takes the anchor's scale, since nothing depends on it.
    """
    x = x.double()
    parts = [
        _column_sums(*pair, norm)
        for pair in zip(weight.split(COLUMNS, 1), weight_hat.split(COLUMNS, 1), strict=True)
    ]
    of_w, of_dw, column = (torch.cat(sums) for sums in zip(*parts, strict=True))
    reach = x.amax(0) - x.amin(0)
    anchor = int(reach.argmax())
    step, zero = affine_grid(x[:, anchor].amin(), x[:, anchor].amax(), bits)
    level = torch.round(x / step.double()).clamp_(-int(zero), 2**bits - 1 - int(zero))
    dx = level * step.double() - x
    if norm == "l2":
        a, b = dx.square().sum(0) * of_w, x.square().sum(0) * of_dw
        power = 0.25
    else:  # Eq. 16 and Algorithm 1 of the paper: square root of a ratio of L1 sums
        a, b = dx.abs().sum(0) * of_w, x.abs().sum(0) * of_dw
        power = 0.5
    tiny = 1e-12 * torch.stack([a.mean(), b.mean()]).max().clamp_min(1e-300)
    ratio = ((b + tiny) / (a + tiny)).pow(power).clamp(1 / limit, limit)
    ratio[(reach == 0) | (column == 0)] = 1.0
    ratio[anchor] = 1.0
    base = (
        (reach[anchor] / column[anchor]).sqrt() if column[anchor] > 0 and reach[anchor] > 0 else 1
    )
    gain = 0.5 * (a + b - a * ratio.square() - b / ratio.square()).sum().item()
    return GPSResult(ratio * base, anchor, gain)


def _column_sums(weight: Tensor, weight_hat: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of each column: size of weight_hat and of its error (squared sum or l1); its range."""
    w = weight_hat.double()
    dw = w - weight.double()
    size = torch.square if norm == "l2" else torch.abs
    return size(w).sum(0), size(dw).sum(0), w.amax(0) - w.amin(0)


def expected_error(
    layer: LayerView, transform: Transform, scheme: Scheme, one_grid: bool = False
) -> float:
    """Mean squared output error of the linear, from the ranges and the sample without rounding.

    Rounding errors of inputs and weights taken as uniform on their grids and unrelated: with step
    ``d`` of an input grid and ``e_n`` of the weight's row n, both of the transformed tensors,

        sum_k W_nk^2 d^2 / 12 + sum_k x_k^2 e_n^2 / 12, averaged over rows and token vectors,

    where a value so small that it becomes zero has itself as its error at most.
    There is one input grid per step, or one for all (``one_grid``), as in ``Method.output_error``,
    which measures the same.
    """
    stats = transform.statistics(layer.stats)
    lo, hi = stats.lo.amin(1), stats.hi.amax(1)  # [S]
    if one_grid:
        lo, hi = lo.amin().expand(len(lo)), hi.amax().expand(len(hi))
    step, _ = affine_grid(lo, hi, scheme.a_bits)
    weight = transform.weight(layer.weight).float()
    row, _ = weight_grid(*weight_range(weight, scheme.w_bits, search=False), scheme.w_bits)
    step = step[stats.step[stats.sample_position], None]
    x, w = stats.sample.square(), weight.square()
    of_input = torch.minimum(x, step.square() / 12).double().mean(0)  # [K]
    of_weight = torch.minimum(w, row.square()[:, None] / 12).double().mean(0)
    return (of_input @ w.double().mean(0) + of_weight @ x.double().mean(0)).item()


def center(stats: InputStatistics) -> tuple[Tensor, Tensor]:
    """(midpoint, half range) of every channel, float64 [K]: averages over the decoding steps.

    Averages, not extremes over all positions: with static token-wise scales every step has grids of
    its own, and one wide step must not stretch the others. Each step counts alike: there are few
    tokens in the first ones, but all later ones depend on them.
    """
    lo, hi = stats.lo.double(), stats.hi.double()
    return ((lo + hi) / 2).mean(0), ((hi - lo) / 2).square().mean(0).sqrt()


@register
@dataclass(frozen=True)
class PTQ4ARVG(Method):
    """GPS on a smoothed and zero-centred input, rotated where that pays, with static token-wise
    scales, searched ranges, and GPTQ followed at 4 bits by coordinate descent.

    smooth: exponent of the SmoothQuant pre-pass, 0 for none, None to search it. center: subtract
    each channel's midpoint where the model can absorb that. gps: the gain-projected factors; norm:
    their "l2" or "l1" form; limit: clamp of their ratio to the anchor's. search: take the exponent,
    and the share of the GPS step, that measure best on the calibration sample; otherwise 1/2 and
    the whole step, as derived.
    """

    name: ClassVar[str] = "ptq4arvg"
    summary: ClassVar[str] = "GPS or rotated inputs, static token-wise scales, searched ranges"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {**Method.CHOICES, "norm": ("l2", "l1")}

    granularity: str = "auto"
    activation_range: str = "mse"
    weight_range: str = "mse"
    rounding: str = "auto"
    bias_correction: bool = True
    rotation: str = "measured"
    gps: bool = True
    smooth: float | None = None
    center: bool = True
    norm: str = "l2"
    limit: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.smooth, int | float)
        if self.smooth is not None and not (number and 0 <= self.smooth <= 1):
            raise ValueError(
                f"method {self.name!r}: smooth is {self.smooth!r}; wanted a number from 0 to 1, or "
                "None to search it"
            )
        if not 1 <= self.limit < math.inf:
            raise ValueError(f"method {self.name!r}: limit is {self.limit!r}; wanted 1 or more")

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """Smooth, centre, then scale by the closed form; see the module's formula."""
        if not layer.foldable:
            return None
        exponents = EXPONENTS if self.smooth is None else (self.smooth,)
        trials = [(self._base(layer, alpha), alpha) for alpha in exponents]
        errors = [self.output_error(layer, base, scheme) for base, _ in trials]
        best = min(range(len(trials)), key=errors.__getitem__)
        (base, alpha), before = trials[best], errors[best]
        record = {"smooth": alpha, "error_before": before}
        if not self.gps:
            return Transform(base.scale, base.shift, record)
        weight = base.weight(layer.weight)
        codes, w_scale, _ = quantize_weight(weight, scheme.w_bits)
        result = gain_projected_scaling(
            layer.stats.sample.double() / base.scale - base.shift,
            weight, scheme.a_bits, codes.float() * w_scale[:, None], self.norm, self.limit,
        )  # fmt: skip
        # Along s^share from no step to the whole one: the derivation ignores that the grids move
        # with the scales, so the measured optimum often lies short of it.
        steps = {share: base.then(result.scale.pow(share)) for share in SHARES}
        after = {share: self.output_error(layer, t, scheme) for share, t in steps.items()}
        share = min(after, key=after.__getitem__)
        one = self.granularity == "tensor"
        record |= {
            "anchor": result.anchor, "gain_predicted": result.gain,
            "error_after": after[share], "error_whole_step": after[1.0],
            "expected_before": expected_error(layer, base, scheme, one),
            "expected_whole_step": expected_error(layer, steps[1.0], scheme, one),
        }  # fmt: skip
        if after[share] >= before:
            return Transform(base.scale, base.shift, record | {"gps_share": 0.0})
        chosen = steps[share]
        return Transform(chosen.scale, chosen.shift, record | {"gps_share": share})

    def _base(self, layer: LayerView, alpha: float) -> Transform:
        """Smoothing and centring, before GPS."""
        centered = self.center and layer.shiftable
        middle, half = center(layer.stats)
        scale = torch.ones_like(middle)
        if alpha:
            reach = half if centered else _reach(layer.stats)
            scale = smooth_scale(reach, layer.weight, alpha)
        shift = middle / scale if centered else torch.zeros_like(middle)
        return Transform(scale, shift)


def _reach(stats: InputStatistics) -> Tensor:
    """Largest magnitude of every channel, root mean square over the steps, float64 [K]."""
    return torch.maximum(stats.hi, -stats.lo).double().square().mean(0).sqrt()
