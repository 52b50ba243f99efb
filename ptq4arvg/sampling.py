"""Choosing tokens from logits: guidance, filters, and one stream of random numbers per image."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import Tensor

__all__ = [
    "Sampler",
    "filter_logits",
    "guide",
    "image_generator",
    "image_streams",
    "number",
    "whole",
    "whole_index",
]

TIES = 32  # logits equal to the least of the top-k that are expected; with more it is slower

Choose = Callable[[Tensor, int], Tensor]


def guide(conditional: Tensor, unconditional: Tensor, strength: float) -> Tensor:
    """Classifier-free guidance: ``(1 + t) conditional - t unconditional``."""
    return (1 + strength) * conditional - strength * unconditional


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Logits [..., V] with everything outside top-k, then top-p, set to -inf (0 = off).

    top-p keeps the most likely tokens until their mass reaches ``top_p``, counted from the least
    likely end (a token goes if the mass up to it does not exceed 1 - top_p), and always the best.
    """
    vocabulary, kept = logits.shape[-1], None
    if 0 < top_k < vocabulary:
        # Equal logits stay together, so a few more than top_k are looked at.
        kept, index = logits.topk(min(top_k + TIES, vocabulary))  # descending
        least = kept[..., top_k - 1 : top_k]
        if not top_p or ((logits >= least).sum(-1) > kept.shape[-1]).any():
            logits, kept = logits.masked_fill(logits < least, -torch.inf), None
        else:
            kept = kept.masked_fill(kept < least, -torch.inf)
    if not top_p:
        return logits
    if kept is None:
        kept, index = logits.sort(dim=-1, descending=True)
    removed = kept.flip(-1).softmax(-1).cumsum(-1).flip(-1) <= 1 - top_p
    removed[..., 0] = False
    kept = kept.masked_fill(removed, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter_(-1, index, kept)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random stream of image ``index`` under ``seed``: a hash of the two seeds it."""
    digest = hashlib.sha256(f"ptq4arvg image {seed} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def image_streams(images: int, seed: int, index: int | Tensor = 0) -> list[torch.Generator]:
    """The random streams of ``images`` images under ``seed``; index: of the first of them, those
    that follow being next to it, or integers [images], of each. ValueError for anything else."""
    seed, index = whole("seed", seed), whole_index(index)
    if isinstance(index, int):
        index = torch.arange(index, index + images)
    if index.shape != (images,):
        raise ValueError(
            f"index has shape {list(index.shape)}; wanted one number, or [{images}], one of each "
            "image"
        )
    return [image_generator(seed, i) for i in index.tolist()]


def whole(name: str, value: SupportsIndex) -> int:
    """The integer that ``value`` is, also one of numpy or torch. ValueError if it is none."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise ValueError(f"{name} is {value!r}; wanted a whole number") from None


def number(value: Any) -> float:
    """The number that ``value`` is, nan for what is none, such as a text."""
    try:
        return float(value + 0.0)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def whole_index(index: SupportsIndex | Tensor) -> int | Tensor:
    """The index of the first image, or int64 [n], of each. ValueError if it is of no integers."""
    if not isinstance(index, Tensor) or not index.ndim:
        return whole("index", index)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"index has dtype {index.dtype}; wanted whole numbers")
    return index.to(torch.int64)


class Sampler:
    """Draws tokens of every image from a stream that depends on its seed and index only.

    The draw is the inverse of the cumulative distribution over the tokens sorted by id, so that a
    change of the logits within rounding changes a token only where the uniform number lies within
    rounding of a boundary.
    """

    def __init__(
        self, images: int, seed: int, top_k: int, top_p: float, index: int | Tensor = 0
    ) -> None:
        if whole("top_k", top_k) < 0 or not 0 <= number(top_p) <= 1:
            raise ValueError(
                f"top_k is {top_k!r}, top_p {top_p!r}; wanted top_k of 0 (off) or more, and top_p "
                "from 0 (off) to 1"
            )
        self.top_k, self.top_p = top_k, top_p
        self.streams = image_streams(images, seed, index)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """Token ids [n, t] from logits [n, t, V]. ValueError where they are not numbers, on the
        CPU: on another device the step would have to wait for it."""
        if logits.device.type == "cpu" and logits.isnan().any():
            raise ValueError(
                f"step {step}: some logits are not numbers; wanted finite weights and prompts"
            )
        filtered = filter_logits(logits.float(), self.top_k, self.top_p)
        cumulative = filtered.double().softmax(-1).cumsum(-1)
        tokens = logits.shape[1]
        uniform = torch.stack(
            [torch.rand(tokens, 1, generator=s, dtype=torch.float64) for s in self.streams]
        ).to(logits.device)
        # Scaled by the last sum, which rounding leaves just off one; never past the last token.
        ids = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)
        return ids[..., 0].clamp_max(logits.shape[-1] - 1)
