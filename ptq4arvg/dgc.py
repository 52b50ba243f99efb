"""Distribution-guided calibration: which of the sampled rows to calibrate on (paper sec. 4.3).

The paper keeps the rows with the largest Mahalanobis distance to the sample set, so that
near-duplicates do not crowd out the tails. Its research code computes that distance in more
dimensions than it has rows, where every row is equally far from the mean, and then keeps the
first rows. ``select_dgc`` is the sound form; ``research_ratio`` reproduces the other one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["farthest_rows", "mahalanobis", "research_distances", "research_ratio", "select_dgc"]


def mahalanobis(features: Tensor, rank: int | None = None) -> Tensor:
    """Distance of each row to the mean of all, float64 [n], from ``features`` [n, D].

    The features are projected on their leading principal components (at most ``rank``, default a
    quarter of the rows, so that the distance stays informative), and the eigenvalues are shrunk
    towards their mean by the Ledoit-Wolf intensity of the projected rows.
    """
    x = features.double()
    x = x - x.mean(0)
    n = x.shape[0]
    if n < 4:
        return x.square().sum(1).sqrt()
    rank = min(rank or max(n // 4, 1), n - 1, x.shape[1])
    u, singular, _ = torch.linalg.svd(x, full_matrices=False)
    kept = singular[:rank] > singular[0] * 1e-9
    z = (u[:, :rank] * singular[:rank])[:, kept]  # [n, r]
    if z.shape[1] == 0:
        return torch.zeros(n, dtype=torch.float64)
    variance = z.square().mean(0)
    target = variance.mean()
    # Ledoit and Wolf 2004: noise of the sample covariance over its distance to the target.
    noise = ((z.square().sum(1).square().mean() - variance.square().sum()) / n).clamp_min(0)
    distance = (variance - target).square().sum()
    shrink = (noise / distance).clamp(max=1.0) if distance > 0 else torch.tensor(1.0)
    variance = (1 - shrink) * variance + shrink * target
    return (z.square() / variance).sum(1).sqrt()


def select_dgc(features: Tensor, conditional: Tensor, keep: int, floor: float = 0.25) -> Tensor:
    """Indices (sorted, int64 [keep]) of the ``keep`` rows farthest out in one joint distribution.

    ``conditional`` bool [n]. At least ``floor * keep`` rows of each kind are kept as far as there
    are any: at inference with guidance half of all rows are unconditional.
    """
    n = features.shape[0]
    if not 0 < keep <= n:
        raise ValueError(f"select_dgc: keep is {keep}; wanted 1 to {n}, the number of rows")
    return farthest_rows(mahalanobis(features), conditional, keep, floor)


def farthest_rows(distance: Tensor, conditional: Tensor, keep: int, floor: float = 0.25) -> Tensor:
    """What ``select_dgc`` chooses, from the rows' distances [n]."""
    order = torch.argsort(distance, descending=True, stable=True)
    least = int(floor * keep)
    chosen: list[int] = []
    for kind in (True, False):
        members = [i for i in order.tolist() if bool(conditional[i]) is kind]
        chosen += members[:least]
    taken = set(chosen)
    chosen += [i for i in order.tolist() if i not in taken][: keep - len(chosen)]
    return torch.tensor(sorted(chosen[:keep]), dtype=torch.int64)


def research_distances(features: Tensor) -> Tensor:
    """The research code's distance: full covariance over n - 1, pseudo-inverse, float32 [n]."""
    x = features.float() - features.float().mean(0)
    inverse = torch.linalg.pinv(x.T @ x / (x.shape[0] - 1))
    return ((x @ inverse) * x).sum(1).clamp_min(0).sqrt()


def research_ratio(conditional: Tensor, unconditional: Tensor, keep: int) -> float:
    """Share of conditional rows that the research code keeps, from token-0 features [n, D] each.

    One half if all distances agree within 1e-3, else the conditional share of the ``keep`` largest
    distances. It then keeps the *first* rows of each half in that ratio, whatever their distance.
    """
    cond, uncond = research_distances(conditional), research_distances(unconditional)
    if torch.allclose(cond, uncond, atol=1e-3):
        return 0.5
    top = torch.argsort(torch.cat([cond, uncond]), descending=True)[:keep]
    return (top < cond.numel()).double().mean().item()
