"""Inception Score: how sure a classifier is of each image, and how many classes it sees in all."""

from __future__ import annotations

import torch
from torch import Tensor

from .bootstrap import Progress, bootstrap_interval

__all__ = ["SPLIT", "inception_score", "score_interval"]

SPLIT = 5000  # images of one split: ten of them in the usual 50 000


def _checked(probabilities: Tensor) -> Tensor:
    p = probabilities.detach().double().cpu()
    if p.ndim != 2 or not len(p):
        raise ValueError(
            f"inception_score: probabilities have shape {list(p.shape)}; wanted [n, classes], n > 0"
        )
    if not ((p >= 0).all() and torch.allclose(p.sum(1), p.new_ones(()), atol=1e-4)):
        raise ValueError(
            "inception_score: a row is no distribution; wanted probabilities that sum to 1 "
            "(the softmax of the logits)"
        )
    return p


def _score(p: Tensor, split: int) -> float:
    scores = []
    for part in p.split(split):
        mean = part.mean(0)
        # Where a probability is zero its term is, too.
        divergence = torch.xlogy(part, part).sum(1) - torch.xlogy(part, mean).sum(1)
        scores.append(divergence.mean().exp())
    return torch.stack(scores).mean().item()


def inception_score(probabilities: Tensor, split: int = SPLIT) -> float:
    """``exp(mean KL(p(class | image) || p(class)))`` of probabilities [n, classes], in float64.

    The mean over consecutive splits of ``split`` images, as the evaluator of guided diffusion takes
    it: ten splits for 50 000 images, one for 5000 or fewer. 1 is the least; the number of classes
    is the most. It grows with the number of images in a split.
    """
    return _score(_checked(probabilities), split)


def score_interval(
    probabilities: Tensor,
    split: int = SPLIT,
    seed: int = 0,
    resamples: int = 200,
    level: float = 0.95,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Bootstrap interval of ``inception_score``, over images."""
    p = _checked(probabilities)
    return bootstrap_interval(
        lambda rows: _score(p[rows], split), len(p), seed, resamples, level, 1.0, p.shape[1],
        progress,
    )  # fmt: skip
