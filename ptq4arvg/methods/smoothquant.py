"""SmoothQuant: move the difficulty of outlier channels from the inputs into the weights.

Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models" (2022), eq. 4: channel k of the input is divided by

    s_k = max|x_k|^alpha / max|W_k|^(1 - alpha),

and column k of the weight multiplied by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import Scheme
from .base import LayerView, Method, Transform, register

__all__ = ["EXPONENTS", "SmoothQuant", "smooth_scale"]

EXPONENTS = (0.2, 0.35, 0.5, 0.65, 0.8)


def smooth_scale(reach: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """The factors ``reach^alpha / max|W|^(1 - alpha)`` float64 [K] from the inputs' reach [K].

    Scaling a channel by t and its weights by 1/t scales its factor by t: what remains after the
    division does not depend on how the two were balanced. A dead channel or column takes 1.
    """
    column = weight.double().abs().amax(0)
    scale = reach.double().pow(alpha) / column.clamp_min(1e-30).pow(1 - alpha)
    dead = (reach <= 0) | (column <= 0)
    scale[dead] = 1.0
    return scale


@register
@dataclass(frozen=True)
class SmoothQuant(Method):
    """alpha: share of the difficulty that the weights take, in [0, 1]; None takes the exponent of
    least output error for every layer."""

    name: ClassVar[str] = "smoothquant"
    summary: ClassVar[str] = "outlier channels balanced against the weights by a fixed exponent"

    alpha: float | None = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(
                f"method {self.name!r}: alpha is {self.alpha!r}; wanted a number from 0 to 1, or "
                "None to search it"
            )

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """Eq. 4 over all positions, with the given exponent or the best of ``EXPONENTS``."""
        if not layer.foldable:
            return None
        reach = torch.maximum(layer.stats.hi, -layer.stats.lo).amax(0)
        alphas = EXPONENTS if self.alpha is None else (self.alpha,)
        trials = {alpha: self._transform(layer, reach, alpha) for alpha in alphas}
        if len(trials) == 1:
            return trials[alphas[0]]
        return min(trials.values(), key=lambda t: self.output_error(layer, t, scheme))

    def _transform(self, layer: LayerView, reach: Tensor, alpha: float) -> Transform:
        scale = smooth_scale(reach, layer.weight, alpha)
        return Transform(scale, torch.zeros_like(scale), {"alpha": alpha})
