"""Outlier Suppression+: shift every channel to the middle, then squeeze the ones that stand out.

Wei, Zhang, Li, Zhang, Gong, Guo, Liu, "Outlier Suppression+: Accurate quantization of large
language models by equivalent and effective shifting and scaling" (2023), eq. 2 and sec. 4.2:

    z_k = (max x_k + min x_k) / 2,      s_k = max(1, max|x_k - z_k| / t),

with one threshold t per layer, by grid search over the output error of the quantized layer. The
grid here is geometric, from the widest channel to the median one: below that, nothing stands out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import Scheme
from .base import LayerView, Method, Transform, register

__all__ = ["OutlierSuppressionPlus", "threshold_grid"]


def threshold_grid(reach: Tensor, count: int) -> Tensor:
    """``count`` thresholds float64, falling from the largest of ``reach`` [K] to its median; no
    channel that is always zero counts."""
    live = reach[reach > 0].double()
    if not len(live):
        return torch.ones(1, dtype=torch.float64)
    top, low = live.amax(), live.median()
    return top * (low / top) ** torch.linspace(0, 1, count, dtype=torch.float64)


@register
@dataclass(frozen=True)
class OutlierSuppressionPlus(Method):
    """thresholds: how many outlier thresholds are tried for each layer; the first scales nothing.
    An input that can take no shift is scaled only."""

    name: ClassVar[str] = "os_plus"
    summary: ClassVar[str] = "channels shifted to the middle, outliers scaled to a searched bound"

    thresholds: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thresholds < 1:
            raise ValueError(
                f"method {self.name!r}: thresholds is {self.thresholds}; wanted 1 or more"
            )

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """The shift, and the scales of the threshold of least output error."""
        if not layer.foldable:
            return None
        lo, hi = layer.stats.lo.double().amin(0), layer.stats.hi.double().amax(0)
        middle = (lo + hi) / 2 if layer.shiftable else torch.zeros_like(lo)
        reach = torch.maximum(hi - middle, middle - lo)
        best, least = None, float("inf")
        for threshold in threshold_grid(reach, self.thresholds).tolist():
            scale = (reach / threshold).clamp_min(1.0)
            trial = Transform(scale, middle / scale, {"threshold": threshold})
            error = self.output_error(layer, trial, scheme)
            if best is None or error < least:
                best, least = trial, error
        return best
