"""What several quantizations of one model are measured against: the same rows, seeds, features."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import ARVGModel
from ..nn import PackedLinear, QuantLinear
from .agreement import agreement, evaluation_rows, float_logits
from .features import FeatureNetwork, load_features, load_reference
from .frechet import FeatureStatistics, distance_interval

__all__ = ["Yardstick", "draw_images", "linear_bytes"]

BATCH = 32

Progress = Callable[[str, int, int], None]


def linear_bytes(model: ARVGModel) -> int:
    """Bytes of the linears' weights: packed ones as they are in memory, simulated ones as they
    would be packed, float ones in half precision, in which the published models are kept."""
    total = 0
    for spec in model.linears():
        module = model.transformer.get_submodule(spec.name)
        if isinstance(module, PackedLinear):
            total += module.weight_bytes()
        else:
            bits = module.w_bits if isinstance(module, QuantLinear) else 16
            total += module.weight.numel() * bits // 8
            branch = [getattr(module, name, None) for name in ("up", "down")]
            total += sum(2 * factor.numel() for factor in branch if factor is not None)
    return total


@torch.inference_mode()
def draw_images(
    model: ARVGModel, labels: Tensor, seed: int, progress: Progress, phase: str
) -> tuple[Tensor, Tensor, float]:
    """(ids, images [n, 3, H, W], seconds per image) of one image per label [n]."""
    progress(phase, 0, len(labels))
    start = time.perf_counter()
    ids, images = [], []
    for first in range(0, len(labels), BATCH):
        part = labels[first : first + BATCH]
        ids.append(model.sample_ids(part, seed=seed, index=first))
        images.append(model.decode_ids(ids[-1]))
        progress(phase, first + len(part), len(labels))
    seconds = (time.perf_counter() - start) / len(labels)
    return torch.cat(ids), torch.cat(images), seconds


@dataclass
class Yardstick:
    """labels [n] of the images; rows: (ids, labels) compared under teacher forcing; logits: the
    float model's on them; network, reference: the feature space. seed: of the bootstrap."""

    labels: Tensor
    rows: tuple[Tensor, Tensor]
    logits: list[Tensor]
    network: FeatureNetwork
    reference: tuple[Tensor, Tensor]
    seed: int

    @classmethod
    def of(cls, model: ARVGModel, labels: Tensor, ids: Tensor, compared: int, seed: int):
        """Of the float ``model``, whose samples for ``labels`` [n] are ``ids``: the first
        ``compared`` of them are compared on."""
        rows = evaluation_rows(model, labels[:compared], ids=ids[:compared])
        logits = float_logits(model, *rows)
        return cls(labels, rows, logits, load_features(), load_reference(), seed)

    def measure(
        self, model: ARVGModel, images: Tensor | None, progress: Progress
    ) -> dict[str, Any]:
        """The figures of ``model``, whose images [n, 3, H, W] of the labels these are, if any.

        kl, top1_agreement: of the next token, None where tokens are continuous. relative_error: of
        the logits, or of the predicted noise. fd, fd_interval: in the bundled feature space.
        """
        close = agreement(self.logits, model, *self.rows, progress=progress)
        figures = {
            "kl": close.kl,
            "top1_agreement": close.top1,
            "relative_error": close.relative_error,
            "weight_bytes": linear_bytes(model),
        }
        return figures | (self._of_images(images) if images is not None else {})

    @torch.inference_mode()
    def _of_images(self, images: Tensor) -> dict[str, Any]:
        features = self.network.features(images)
        predicted = self.network.fc(features).argmax(1)
        return {
            "fd": FeatureStatistics().update(features).distance(*self.reference),
            "fd_interval": distance_interval(features, *self.reference, seed=self.seed),
            "class_accuracy": (predicted == self.labels).double().mean().item(),
        }
