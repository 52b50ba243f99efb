"""The attention products, in floating point."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AttentionCore"]


class AttentionCore(nn.Module):
    """The two attention products and the softmax between them, in floating point.

    q [B, H, Tq, d] (already scaled), k and v [B, H, Tk, d], mask broadcastable to
    [B, H, Tq, Tk] (boolean: True = attend; float: added). Returns [B, H, Tq, d].
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
