"""Improved precision and recall (Kynkäänniemi et al. 2019) of sets of features.

Around every feature of a set lies a ball that reaches to its k-th nearest neighbour in the set; the
balls together are the set's manifold. Precision is the share of samples within the manifold of the
reference, recall the share of the reference within the manifold of the samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bootstrap import share_interval

__all__ = ["PrecisionRecall", "manifold_radii", "precision_recall"]

NEIGHBOURS = 3
BLOCK = 4096  # rows of one block of distances: 64 MiB in float32


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, m] of a [n, D] and b [m, D]."""
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)).clamp_min(0)


def manifold_radii(features: Tensor, neighbours: int = NEIGHBOURS, block: int = BLOCK) -> Tensor:
    """Squared distance [n] of every feature [n, D] to its ``neighbours``-th nearest other one.

    Memory: blocks of ``block`` squared distances. ValueError for too few features.
    """
    if features.ndim != 2 or len(features) <= neighbours:
        raise ValueError(
            f"precision_recall: features have shape {list(features.shape)}; wanted [n, D] with "
            f"n > {neighbours}, so that each has {neighbours} neighbours"
        )
    radii = []
    for rows in features.split(block):
        # Itself is among the nearest, at distance zero.
        least = rows.new_full((len(rows), neighbours + 1), torch.inf)
        for columns in features.split(block):
            both = torch.cat([least, _distances(rows, columns)], 1)
            least = both.topk(neighbours + 1, 1, largest=False).values
        radii.append(least[:, -1])
    return torch.cat(radii)


def _inside(points: Tensor, centres: Tensor, radii: Tensor, block: int) -> Tensor:
    """Whether each of points [n, D] lies in a ball around centres [m, D]: bool [n]."""
    found = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for rows, result in zip(points.split(block), found.split(block), strict=True):
        for columns, reach in zip(centres.split(block), radii.split(block), strict=True):
            result |= (_distances(rows, columns) <= reach).any(1)
    return found


class PrecisionRecall(NamedTuple):
    """Both shares, and what they are the shares of: bool [samples], bool [reference]."""

    precision: float
    recall: float
    samples_inside: Tensor
    reference_inside: Tensor

    def intervals(
        self, seed: int = 0, resamples: int = 200, level: float = 0.95
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Bootstrap intervals of precision, over samples, and recall, over the reference.

        The manifolds are kept as they are: a resample repeats images, whose balls would shrink to
        points.
        """
        return (
            share_interval(self.samples_inside, seed, resamples, level),
            share_interval(self.reference_inside, seed, resamples, level),
        )


def precision_recall(
    reference: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS, block: int = BLOCK
) -> PrecisionRecall:
    """Precision and recall of samples [n, D] against reference [m, D], on the device they are on.

    Distances are in float32 (float64 if the features are), where the evaluator of guided diffusion
    rounds them to half precision. Both figures depend on n and m: it takes 50 000 and 10 000.
    """
    if samples.ndim != 2 or reference.shape[1:] != samples.shape[1:]:
        raise ValueError(
            f"precision_recall: reference {list(reference.shape)}, samples {list(samples.shape)}; "
            "wanted [m, D] and [n, D]"
        )
    dtype = torch.promote_types(torch.promote_types(reference.dtype, samples.dtype), torch.float32)
    # Distances are the same about any origin, and rounded least about the middle.
    origin = reference.double().mean(0).to(dtype)
    reference, samples = reference.to(dtype) - origin, samples.to(dtype) - origin
    within = _inside(samples, reference, manifold_radii(reference, neighbours, block), block)
    covered = _inside(reference, samples, manifold_radii(samples, neighbours, block), block)
    shares = (part.double().mean().item() for part in (within, covered))
    return PrecisionRecall(*shares, within.cpu(), covered.cpu())
