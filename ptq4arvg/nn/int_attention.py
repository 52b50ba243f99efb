"""Attention in integers, over a cache of int8 keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .attention import AttentionCore
from .cursor import Cursor

__all__ = ["IntAttention"]


class IntAttention(AttentionCore):
    """Attention whose products, and whose cache, are of 8-bit integers; see ``ops.attention``.

    k_scale, k_shift, v_scale, v_shift float32 [H, d]: static scales and shifts per head and
    channel. A query needs none, because its scale is that of its own channels.
    """

    cache_dtype = torch.int8
    TABLES = ("k_scale", "k_shift", "v_scale", "v_shift")

    def __init__(self, k_scale: Tensor, k_shift: Tensor, v_scale: Tensor, v_shift: Tensor) -> None:
        super().__init__()
        self.heads, self.size = k_scale.shape
        tables = zip(self.TABLES, (k_scale, k_shift, v_scale, v_shift), strict=True)
        for name, table in tables:
            self.register_buffer(name, table.float())

    def extra_repr(self) -> str:
        return f"{self.heads} heads of {self.size} channels"

    def _apply(self, function, recurse: bool = True):
        def kept(table: Tensor) -> Tensor:
            # Scales stay float32 when the model changes its dtype.
            made = function(table)
            return made if made.dtype == table.dtype else table.to(made.device)

        return super()._apply(kept, recurse)

    def cache_shapes(
        self, images: int, heads: int, positions: int, size: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See ``ops.kv_cache_shapes``."""
        return ops.kv_cache_shapes(images, heads, positions, size)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """As ``AttentionCore``, for masks that let a query attend to the first so many positions.

        ValueError for another mask.
        """
        return self._whole(ops, q, k, v, mask)

    def specified(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """What ``forward`` has to compute, by ``ops.reference_attention``."""
        return self._whole(ops.reference_attention, q, k, v, mask)

    def _whole(self, by: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        cache = ops.empty_kv_cache(len(k), self.heads, k.shape[2], self.size, k.device)
        self._store(by, k, v, cache, None)
        limits = None
        if mask is not None or q.shape[2] != k.shape[2]:
            limits = limits_of(mask, q.shape[2], k.shape[2], q.device)
        return self._attend(by, q, cache, limits=limits)

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], cursor: Cursor,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As ``AttentionCore.cached``, over a cache in ``cache_shapes``."""
        self._store(ops, k, v, cache, cursor.position)
        if mask is None:
            return self._attend(ops, q, cache, position=cursor.position)
        limits = limits_of(mask, q.shape[2], mask.shape[-1], q.device)
        return self._attend(ops, q, cache, limits=limits)

    def _store(
        self, by: Any, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], position: Tensor | None
    ) -> None:
        tables = (self.k_scale, self.k_shift, self.v_scale, self.v_shift)
        by.store_kv(k, v, *cache, *tables, position)

    def _attend(
        self, by: Any, q: Tensor, cache: tuple[Tensor, Tensor], **where: Tensor | None
    ) -> Tensor:
        b, h, t, d = q.shape
        y = by.attention(
            q, *cache, self.k_scale, self.v_scale, self.v_shift, **where, out_dtype=q.dtype
        )
        return y.view(b, t, h, d).transpose(1, 2)  # [B, t, H d] -> [B, H, t, d]


def limits_of(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """How many positions each query attends to, int32 [queries], of a mask over ``keys`` of them.

    mask: None for all; else the same for all images and heads, boolean, or 0 and -inf. ValueError
    for a mask that hides a position before one that it does not hide.
    """
    if mask is None:
        return torch.full((queries,), keys, dtype=torch.int32, device=device)
    seen = mask if mask.dtype == torch.bool else mask == 0
    seen = seen.expand(*mask.shape[:-2], queries, keys).reshape(-1, queries, keys)
    limits = seen[0].sum(-1, dtype=torch.int32)
    wanted = torch.arange(keys, device=device) < limits[:, None]
    known = mask.dtype == torch.bool or bool(((mask == 0) | (mask == -torch.inf)).all())
    if not known or not torch.equal(seen, wanted.expand_as(seen)):
        raise ValueError(
            "attention in integers: the mask is none that lets every query attend to the first so "
            "many positions, the same for all images and heads; wanted such a mask, or "
            "attention='float'"
        )
    return limits
