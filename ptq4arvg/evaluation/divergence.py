"""Where the images of a quantized model leave those of the float one: the first other token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import current
from ..models import ARVGModel
from ..sampling import Sampler

__all__ = ["FirstDivergence", "first_divergence"]

Progress = Callable[[str, int, int], None]
Choose = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class FirstDivergence:
    """first: index of each image's first token that differs, counted as they are generated;
    ``tokens``, the length of a sequence, where none does."""

    first: tuple[int, ...]
    tokens: int

    @property
    def mean(self) -> float:
        """Mean index over the images, as a share of the sequence: 1 if no token differs."""
        return sum(self.first) / (len(self.first) * self.tokens)

    @property
    def equal(self) -> float:
        """Share of images all of whose tokens are the same."""
        return sum(index == self.tokens for index in self.first) / len(self.first)


def _greedy(logits: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


@torch.inference_mode()
def _generated(model: ARVGModel, labels: Tensor, choose: Choose, cfg: float | None) -> Tensor:
    """Ids [n, T] in the order in which they were generated, which need not be that of images."""
    steps: list[Tensor] = []

    def record(logits: Tensor, step: int) -> Tensor:
        steps.append(choose(logits, step))
        return steps[-1]

    model.sample_ids(labels, cfg=cfg, choose=record)
    return torch.cat([ids.cpu() for ids in steps], 1)


def first_divergence(
    reference: ARVGModel,
    model: ARVGModel,
    labels: Tensor,
    seed: int = 0,
    greedy: bool = False,
    cfg: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> FirstDivergence:
    """Generate one image per label with both models, from the same random numbers, and compare.

    greedy: the most likely token is taken instead of a random one. cfg, top_k, top_p: None takes
    the model's. ValueError for a model whose tokens are continuous: they differ from the first on.
    """
    if model.continuous:
        raise ValueError(
            f"first_divergence: the tokens of {model.name} are continuous and differ from the "
            "first on; compare replayed outputs with agreement instead"
        )
    defaults = model.config.sampling
    top_k = defaults.top_k if top_k is None else top_k
    top_p = defaults.top_p if top_p is None else top_p
    group, found = current(), {}
    for number, begin in enumerate(range(0, len(labels), batch_size)):
        if not group.owns(number):
            continue
        part = labels[begin : begin + batch_size]
        both = []
        for each in (reference, model):
            choose = _greedy if greedy else Sampler(len(part), seed, top_k, top_p, begin)
            both.append(_generated(each, part, choose, cfg))
        found[number] = both[0] != both[1]  # [n, T]
        if progress:
            progress("first divergence", begin + len(part), len(labels))
    differ = torch.cat(group.gather_batches(found))
    tokens = differ.shape[1]
    first = torch.where(differ.any(1), differ.int().argmax(1), tokens)
    return FirstDivergence(tuple(first.tolist()), tokens)
