"""Frechet distance between two sets of features, each described by its mean and covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bootstrap import Progress, bootstrap_interval

__all__ = ["FeatureStatistics", "distance_interval", "frechet_distance"]


def _symmetric_root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix [D, D]; rounding noise is cut."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet distance of two Gaussians, in float64; means [D], covariances [D, D].

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)`` (Dowson and Landau 1982). The product
    is symmetric, so its root needs only eigenvalues, and no imaginary part can appear. ValueError
    if the shapes disagree or a value is not finite.
    """
    mean1, cov1, mean2, cov2 = (t.detach().double().cpu() for t in (mean1, cov1, mean2, cov2))
    size = mean1.numel()
    shapes = [list(t.shape) for t in (mean1, cov1, mean2, cov2)]
    if shapes != [[size], [size, size]] * 2:
        raise ValueError(
            f"frechet_distance: means and covariances have shapes {shapes}; wanted [D], [D, D], "
            "[D], [D, D] with one D"
        )
    if not all(torch.isfinite(t).all() for t in (mean1, cov1, mean2, cov2)):
        raise ValueError("frechet_distance: a mean or covariance holds a value that is not finite")
    return _distance_to_root(mean1, cov1, mean2, _symmetric_root(cov2), cov2.trace())


def _distance_to_root(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, root2: Tensor, trace2: Tensor
) -> float:
    """The distance where the second covariance is known by its root and its trace."""
    product = root2 @ cov1 @ root2
    values = torch.linalg.eigvalsh((product + product.mT) / 2)
    cross = values.clamp_min(0).sqrt().sum()
    offset = (mean1 - mean2).square().sum()
    return max((offset + cov1.trace() + trace2 - 2 * cross).item(), 0.0)


@dataclass
class FeatureStatistics:
    """Mean and covariance of features, gathered in a stream of batches (float64 sums)."""

    count: int = 0
    mean: Tensor | None = None
    scatter: Tensor | None = None

    def update(self, features: Tensor) -> FeatureStatistics:
        """Add a batch of features [n, D], by the pairwise update of Chan et al. (1979)."""
        if features.ndim != 2:
            raise ValueError(
                f"FeatureStatistics: features have shape {list(features.shape)}; wanted [n, D]"
            )
        x = features.detach().double().cpu()
        n = x.shape[0]
        if n == 0:
            return self
        mean = x.mean(0)
        centred = x - mean
        scatter = centred.mT @ centred
        if self.mean is None:
            self.count, self.mean, self.scatter = n, mean, scatter
            return self
        total = self.count + n
        step = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(step, step) * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """Covariance over n - 1, float64 [D, D]. ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(
                f"FeatureStatistics: a covariance needs at least 2 images, there are {self.count}"
            )
        return self.scatter / (self.count - 1)

    def distance(self, mean: Tensor, cov: Tensor) -> float:
        """Frechet distance to a reference mean [D] and covariance [D, D]."""
        return frechet_distance(self.mean, self.covariance, mean, cov)


def distance_interval(
    features: Tensor,
    mean: Tensor,
    cov: Tensor,
    seed: int = 0,
    resamples: int = 200,
    level: float = 0.95,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Bootstrap interval of the distance of ``features`` [n, D] to a reference, over images.

    device: where it is computed, in float64. Every resample costs a covariance and the eigenvalues
    of a matrix [D, D]: a second or more in 2048 dimensions.
    """
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(
            f"distance_interval: features have shape {list(features.shape)}; wanted [n, D], n > 1"
        )
    x = features.detach().to(device, torch.float64)
    mean, cov = mean.to(x), cov.to(x)
    root, trace = _symmetric_root(cov), cov.trace()

    def distance(rows: Tensor) -> float:
        drawn = x[rows.to(x.device)]
        return _distance_to_root(drawn.mean(0), torch.cov(drawn.mT), mean, root, trace)

    return bootstrap_interval(distance, len(x), seed, resamples, level, progress=progress)
