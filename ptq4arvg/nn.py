"""Modules that quantization puts into a model: the position cursor, attention products, linears."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AttentionCore", "Cursor"]


class Cursor:
    """Where in the sequence the rows that a model is processing sit.

    A model owns one cursor and moves it before each step; every quantized linear of that model
    reads its static scales at ``begin .. begin + tokens - 1``. ``position`` is the same ``begin``
    as a one-element int32 tensor, which is what the ops take, so that a captured CUDA graph can be
    replayed for every step.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.begin = 0
        self.tokens = 0
        self.position = torch.zeros(1, dtype=torch.int32, device=device)

    def set(self, begin: int, tokens: int) -> None:
        """Declare that the next rows are ``tokens`` positions per image, from ``begin`` on."""
        self.begin = begin
        self.tokens = tokens
        self.position.fill_(begin)


class AttentionCore(nn.Module):
    """The two attention products and the softmax between them, in floating point.

    q [B, H, Tq, d] (already scaled), k and v [B, H, Tk, d], mask broadcastable to
    [B, H, Tq, Tk] (boolean: True = attend; float: added). Returns [B, H, Tq, d].
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
