"""A measured figure, and the figures that are taken over features of images.

The same formulas serve two feature spaces: the Inception network's, in which published figures
are, and the bundled one, whose figures have names that begin with "bundled" and stand in for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .bootstrap import Progress, share_interval
from .frechet import FeatureStatistics, distance_interval, frechet_distance
from .inception_score import inception_score, score_interval
from .manifold import precision_recall

__all__ = ["Features", "Figure", "ImageReference", "image_figures", "moments"]

CHUNK = 4096  # features of one update of their covariance


@dataclass(frozen=True)
class Figure:
    """value: None where it does not exist, which ``note`` explains; interval: of 95 %, if taken."""

    value: float | None
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass
class Features:
    """What a feature network sees in images, gathered batch by batch.

    pool float32 [n, D]; probabilities float32 [n, classes]; spatial float32 [n, S], if it has any.
    """

    pool: list[Tensor] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)
    spatial: list[Tensor] = field(default_factory=list)

    def add(self, pool: Tensor, probabilities: Tensor, spatial: Tensor | None = None) -> None:
        """Add a batch; its tensors are moved to the CPU."""
        self.pool.append(pool.cpu())
        self.probabilities.append(probabilities.cpu())
        if spatial is not None:
            self.spatial.append(spatial.cpu())

    def __len__(self) -> int:
        return sum(map(len, self.pool))


Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImageReference:
    """What images are compared with. hash: of the statistics, 64 hexadecimal digits.

    pool, spatial: mean [D] and covariance [D, D] of features, float64; features [m, D]: those of
    single images, which precision and recall need, or None with the reason in ``no_features``.
    """

    name: str
    hash: str
    pool: Moments
    spatial: Moments | None = None
    features: Tensor | None = None
    no_features: str = "the reference has statistics only, no images"


def moments(features: list[Tensor]) -> Moments:
    """(mean, covariance) float64 of batches of features [n, D]."""
    statistics = FeatureStatistics()
    for part in torch.cat(features).split(CHUNK):
        statistics.update(part)
    return statistics.mean, statistics.covariance


def _frechet(
    features: list[Tensor], reference: Moments | None, seed: int, resamples: int,
    device: str | torch.device, progress: Progress | None,
) -> Figure:  # fmt: skip
    if reference is None or not features:
        return Figure(None, note="the reference has no spatial statistics (mu_s, sigma_s)")
    value = frechet_distance(*moments(features), *reference)
    if not resamples:
        return Figure(value)
    interval = distance_interval(
        torch.cat(features), *reference, seed, resamples, device=device, progress=progress
    )
    return Figure(value, interval)


def image_figures(
    features: Features,
    reference: ImageReference,
    names: tuple[str, ...],
    seed: int = 0,
    resamples: int = 200,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Figure]:
    """The figures ``names`` of "frechet", "spatial_frechet", "score", "precision", "recall".

    resamples: of the bootstrap intervals; 0: none. device: where distances between images and the
    intervals of Frechet distances are computed. ValueError for another name, or for fewer than two
    images.
    """
    known = ("frechet", "spatial_frechet", "score", "precision", "recall")
    wrong = [name for name in names if name not in known]
    if wrong or len(features) < 2:
        raise ValueError(
            f"image_figures: {len(features)} images, figures {', '.join(names)}; wanted at least 2 "
            f"images and figures among {', '.join(known)}"
        )
    found: dict[str, Figure] = {}
    bootstrap = (seed, resamples, device, progress)
    if "frechet" in names:
        found["frechet"] = _frechet(features.pool, reference.pool, *bootstrap)
    if "spatial_frechet" in names:
        found["spatial_frechet"] = _frechet(features.spatial, reference.spatial, *bootstrap)
    if "score" in names:
        p = torch.cat(features.probabilities)
        interval = score_interval(p, seed=seed, resamples=resamples) if resamples else None
        found["score"] = Figure(inception_score(p), interval)
    if {"precision", "recall"} & set(names):
        found |= _shares(features, reference, seed, resamples, device)
    return {name: found[name] for name in names}


def _shares(
    features: Features,
    reference: ImageReference,
    seed: int,
    resamples: int,
    device: str | torch.device,
) -> dict[str, Figure]:
    if reference.features is None:
        return dict.fromkeys(("precision", "recall"), Figure(None, note=reference.no_features))
    rows = torch.cat(features.pool).to(device)
    found = precision_recall(reference.features.to(device), rows)
    inside = {"precision": found.samples_inside, "recall": found.reference_inside}
    return {
        name: Figure(
            getattr(found, name),
            share_interval(part, seed, resamples) if resamples else None,
        )
        for name, part in inside.items()
    }
