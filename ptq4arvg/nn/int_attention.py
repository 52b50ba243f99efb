"""Attention in integers, over a cache of int8 keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .attention import AttentionCore
from .cursor import Cursor
from .dtype import keeping_dtype
from .prologue import Prologue

__all__ = ["IntAttention"]


class IntAttention(AttentionCore):
    """Attention whose products, and whose cache, are of 8-bit integers; see ``ops.attention``.

    k_scale, k_shift, v_scale, v_shift float32 [H, d]: static scales and shifts per head and
    channel. A query needs none, because its scale is that of its own channels. ``operators``: what
    has the operators that compute. ``quantizer``, if set, computes in ``attend`` what
    ``operators.attention`` does, and returns the codes of the one linear that reads it.
    """

    cache_dtype = torch.int8
    TABLES = ("k_scale", "k_shift", "v_scale", "v_shift")
    operators: Any = ops

    def __init__(self, k_scale: Tensor, k_shift: Tensor, v_scale: Tensor, v_shift: Tensor) -> None:
        super().__init__()
        self.heads, self.size = k_scale.shape
        tables = zip(self.TABLES, (k_scale, k_shift, v_scale, v_shift), strict=True)
        for name, table in tables:
            self.register_buffer(name, table.float())

    def extra_repr(self) -> str:
        return f"{self.heads} heads of {self.size} channels"

    def _apply(self, function, recurse: bool = True):
        return super()._apply(keeping_dtype(function), recurse)

    def cache_shapes(
        self, images: int, heads: int, positions: int, size: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See ``ops.kv_cache_shapes``."""
        return ops.kv_cache_shapes(images, heads, positions, size)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """As ``AttentionCore``, for masks that let a query attend to the first so many positions.

        ValueError for another mask.
        """
        cache = self._new_cache(len(k), k.shape[2], k.device)
        self.operators.store_kv(k, v, *cache, *self._tables())
        limits = None
        if mask is not None or q.shape[2] != k.shape[2]:
            limits = limits_of(mask, q.shape[2], k.shape[2], q.device)
        y = self._products(q, cache, limits=limits)
        return y.unflatten(2, (self.heads, self.size)).transpose(1, 2)  # -> [B, H, t, d]

    def attend(
        self, qkv: Tensor, prologue: Prologue, cache: tuple[Tensor, Tensor] | None = None,
        cursor: Cursor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As ``AttentionCore.attend``, by ``ops.store_qkv``, with a cache in ``cache_shapes``;
        int8 codes where there is a ``quantizer``."""
        position, keys = None, qkv.shape[1]
        if cache is None:
            cache = self._new_cache(len(qkv), keys, qkv.device)
        else:
            position, keys = cursor.position, keys if mask is None else mask.shape[-1]
        q = self.operators.store_qkv(
            qkv, *cache, *self._tables(), **prologue.arguments(), position=position
        ).transpose(1, 2)  # [B, t, H, d] -> [B, H, t, d]
        where = {"position": position}
        if mask is not None:
            where = {"limits": limits_of(mask, q.shape[2], keys, q.device)}
        if self.quantizer is not None:
            return self.quantizer(q, *cache, self.k_scale, self.v_scale, self.v_shift, **where)
        return self._products(q, cache, **where)

    def _new_cache(
        self, images: int, positions: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        return ops.empty_kv_cache(images, self.heads, positions, self.size, device)

    def _tables(self) -> tuple[Tensor, ...]:
        return self.k_scale, self.k_shift, self.v_scale, self.v_shift

    def _products(self, q: Tensor, cache: tuple[Tensor, Tensor], **where: Tensor | None) -> Tensor:
        """[B, t, H d]."""
        return self.operators.attention(
            q, *cache, self.k_scale, self.v_scale, self.v_shift, **where, out_dtype=q.dtype
        )


def limits_of(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """How many positions each query attends to, int32 [queries], of a mask over ``keys`` of them.

    mask: None for all; else the same for all images and heads, boolean, or 0 and -inf. ValueError
    for a mask that hides a position before one that it does not hide; a compiler, which cannot look
    at its numbers, takes it to hide none.
    """
    if mask is None:
        return torch.full((queries,), keys, dtype=torch.int32, device=device)
    seen = mask if mask.dtype == torch.bool else mask == 0
    seen = seen.expand(*mask.shape[:-2], queries, keys).reshape(-1, queries, keys)
    limits = seen[0].sum(-1, dtype=torch.int32)
    if torch.compiler.is_compiling():
        return limits
    wanted = torch.arange(keys, device=device) < limits[:, None]
    known = mask.dtype == torch.bool or bool(((mask == 0) | (mask == -torch.inf)).all())
    if not known or not torch.equal(seen, wanted.expand_as(seen)):
        raise ValueError(
            "attention in integers: the mask is none that lets every query attend to the first so "
            "many positions, the same for all images and heads; wanted such a mask, or "
            "attention='float'"
        )
    return limits
