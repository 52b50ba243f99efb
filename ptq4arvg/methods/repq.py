"""RepQ-ViT: a quantizer per channel behind a norm, rewritten as one per tensor.

Li, Xiao, Yang, Gu, "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers" (2023), sec. 3.2: a norm's output is given the grid (step s_k, zero z_k) of each
channel; dividing channel k by r_k = s_k / mean(s) and moving its zero point to the mean one puts
all channels on one grid, (mean(s), mean(z)), and both fold into the norm and the next weight. The
zero points of the channels are not rounded here, since a shift need not be a whole number of steps.
Softmax outputs, where their quantization is simulated, have a grid of powers of the square root of
two (sec. 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..numerics import Scheme
from .base import LayerView, Method, Transform, register

__all__ = ["NORM_FED", "RepQ"]

NORM_FED = ("qkv", "fc1", "head", "diff_fc1")  # roles whose input is the output of a norm


@register
@dataclass(frozen=True)
class RepQ(Method):
    """Inputs that no norm feeds stay as they are; one that can take no shift gets grids around
    zero, which differ in their step only."""

    name: ClassVar[str] = "repq"
    summary: ClassVar[str] = "ranges of a norm's channels made equal, other inputs as they are"

    softmax: str = "log_sqrt2"

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """Every channel's range over all positions becomes the grid of mean step and zero."""
        if not layer.foldable or layer.role not in NORM_FED:
            return None
        lo, hi = layer.stats.lo.double().amin(0), layer.stats.hi.double().amax(0)
        if not layer.shiftable:
            hi = torch.maximum(hi, -lo)
            lo = -hi
        levels = 2**scheme.a_bits - 1
        step = (hi - lo) / levels
        live = step > 0
        if not bool(live.any()):
            return None
        mean = step[live].mean()
        zero = -lo[live] / step[live]
        to = torch.round(zero.mean()).clamp(0, levels) if layer.shiftable else levels / 2
        scale, shift = torch.ones_like(step), torch.zeros_like(step)
        scale[live] = step[live] / mean
        if layer.shiftable:  # u / scale - shift is (level - to) * mean; a constant becomes zero
            shift[live] = (to - zero) * mean
            shift[~live] = lo[~live]
        return Transform(scale, shift, {"step": mean.item(), "zero": float(to)})
