"""SVDQuant (Li et al. 2024, arXiv 2411.05007): a low-rank branch absorbs the outliers.

Outliers of the input first move into the weight by smoothing; the largest singular directions of
the smoothed weight, which hold them, then become a branch in high precision, ``L1 L2`` of rank r,
and only the rest is quantized (sec. 4.2): ``x W = x L1 L2 + Q(x) Q(W - L1 L2)``. The smoothing
strength is the one of least output error, branch included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import Scheme
from .base import LayerView, Method, Transform, register
from .smoothquant import smooth_scale

__all__ = ["SVDQuant", "low_rank"]

ALPHAS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8)


def low_rank(
    weight: Tensor, rank: int, seed: int = 0, oversampling: int = 8, iterations: int = 4
) -> tuple[Tensor, Tensor]:
    """(up [N, r], down [r, K]): about the best rank-r part of a weight [N, K]; r <= min(N, K).

    Randomized SVD (Halko et al. 2011, algorithms 4.4 and 5.1): the range of ``weight`` is found by
    subspace iteration from a random start of ``rank + oversampling`` directions.
    """
    w = weight.double()
    rank = min(rank, *w.shape)
    width = min(rank + oversampling, *w.shape)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(w.shape[1], width, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(w @ start.to(w.device))[0]
    for _ in range(iterations):
        q = torch.linalg.qr(w @ torch.linalg.qr(w.T @ q)[0])[0]
    u, s, v = torch.linalg.svd(q.T @ w, full_matrices=False)
    root = s[:rank].sqrt()
    up, down = (q @ u[:, :rank]) * root, root[:, None] * v[:rank]
    return up.to(weight.dtype), down.to(weight.dtype)


@register
@dataclass(frozen=True)
class SVDQuant(Method):
    """Smoothing where the model can absorb it, and a low-rank branch in every linear.

    rank: of the branch, at most the smaller side of the weight; seed: of the randomized SVD.
    """

    name: ClassVar[str] = "svdquant"
    summary: ClassVar[str] = "smoothing and a low-rank branch in float (Li et al. 2024)"
    integer: ClassVar[bool] = False
    no_integer: ClassVar[str] = "its low-rank branch reads float inputs"

    rank: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"method 'svdquant': rank is {self.rank}; wanted 1 or more")

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """The smoothing of least output error once the branch is taken off."""
        if not layer.foldable:
            return None
        reach = torch.maximum(layer.stats.hi, -layer.stats.lo).amax(0)  # [S, K] -> [K]
        best = None
        for alpha in ALPHAS:
            scale = torch.ones_like(reach).double()
            if alpha:
                scale = smooth_scale(reach, layer.weight, alpha)
            trial = Transform(scale, torch.zeros_like(scale))
            branch = self.branch(trial.weight(layer.weight).float())
            error = self.output_error(layer, trial, scheme, branch)
            if best is None or error < best.record["error_after"]:
                record = {"smooth": alpha, "rank": len(branch[1]), "error_after": error}
                best = Transform(scale, trial.shift, record)
        return best

    def branch(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The low-rank part of the smoothed weight."""
        return low_rank(weight, self.rank, self.seed)
