"""The attention products: in floating point, and with simulated quantization of their operands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..numerics import round_to_grid
from .cursor import Cursor
from .prologue import Prologue

__all__ = ["SOFTMAX_KINDS", "AttentionCore", "QuantAttention", "quantize_softmax"]

SOFTMAX_KINDS = ("uniform", "log_sqrt2")


class AttentionCore(nn.Module):
    """The two attention products and the softmax between them, in floating point.

    q [B, H, Tq, d] (already scaled), k and v [B, H, Tk, d], mask broadcastable to
    [B, H, Tq, Tk] (boolean: True = attend; float: added). Returns [B, H, Tq, d].
    """

    cache_dtype: torch.dtype | None = None  # of a cache; None: that of k and v
    quantizer: Callable[..., Tensor] | None = None  # see ``IntAttention``

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)

    @property
    def integer(self) -> bool:
        """Whether a cache holds codes instead of k and v."""
        return self.cache_dtype is not None

    def attend(
        self, qkv: Tensor, prologue: Prologue, cache: tuple[Tensor, Tensor] | None = None,
        cursor: Cursor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All between the linear that gives qkv [B, t, 3, H, d] and the projection: [B, t, H d].

        With a cache that is a decoding step: k and v are stored at the cursor's positions, and
        the step attends to all up to the last of them, hidden by ``mask`` or not. qkv is then ours.
        """
        q, k, v = prologue.split(qkv, in_place=cache is not None)
        if cache is not None:
            k, v, mask = extend_cache(cache, cursor, k, v, mask)
        return self(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, H, t, d] -> [B, t, H d]

    def cache_shapes(
        self, images: int, heads: int, positions: int, size: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the two tensors of a cache for heads of ``size`` channels."""
        shape = images, heads, positions, size
        return shape, shape


def extend_cache(
    cache: tuple[Tensor, Tensor], cursor: Cursor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Store k and v [B, H, t, d] at the cursor's positions of a cache [B, H, T, d].

    Returns the keys and values to attend to, and their mask: those up to the cursor's last position
    and the given mask; or, in a step that reads its position from the device, all and its mask.
    """
    for store, new in zip(cache, (k, v), strict=True):
        store[:, :, cursor.rows] = new
    if cursor.mask is not None:
        return *cache, cursor.mask
    end = cursor.begin + k.shape[2]
    k, v = (store[:, :, :end] for store in cache)
    return k, v, mask


def quantize_softmax(e: Tensor, bits: int, kind: str) -> Tensor:
    """Round ``e = exp(score - row maximum)`` in [0, 1] to 2^bits fixed levels.

    "uniform": multiples of 1 / (2^bits - 1). "log_sqrt2": powers 2^(-level/2), the last level
    standing for zero. Both hold 1 exactly, and need no calibration because the range is fixed.
    """
    top = 2**bits - 1
    if kind == "uniform":
        return torch.round(e * top) / top
    level = torch.round(-2 * torch.log2(e))
    return torch.where(level >= top, torch.zeros_like(e), torch.exp2(-level / 2))


class QuantAttention(AttentionCore):
    """Attention with q, k, v and the softmax output rounded to static grids, simulated in float.

    q and k have a grid per head and position ([H, T]); v one per head and channel ([H, d]), which
    an integer product over positions can still take out of its sum. The softmax is quantized
    before its normalization, in the fixed range [0, 1], and divided by the sum of the rounded
    values, so that every row still sums to one.
    """

    def __init__(
        self,
        grids: dict[str, tuple[Tensor, Tensor]],
        bits: int,
        softmax: str,
        cursor: Cursor,
    ) -> None:
        super().__init__()
        self.bits, self.softmax, self.cursor = bits, softmax, cursor
        for operand in ("q", "k", "v"):
            scale, zero = grids[operand]
            self.register_buffer(f"{operand}_scale", scale)
            self.register_buffer(f"{operand}_zero", zero)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, softmax={self.softmax}"

    def _by_position(self, x: Tensor, operand: str, rows: slice | Tensor) -> Tensor:
        scale = getattr(self, f"{operand}_scale")[:, rows, None]  # [H, Tx, 1]
        zero = getattr(self, f"{operand}_zero")[:, rows, None]
        return round_to_grid(x, scale, zero, self.bits)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self._by_position(q, "q", self.cursor.rows)
        # The last key is the last query's, a step reading all positions before it or its own only;
        # but a step that reads its position from the device reads all there are.
        end = self.cursor.begin + q.shape[2] if self.cursor.mask is None else k.shape[2]
        k = self._by_position(k, "k", slice(end - k.shape[2], end))
        v = round_to_grid(v, self.v_scale[:, None], self.v_zero[:, None], self.bits)
        score = q @ k.transpose(2, 3)  # [B, H, Tq, Tk]
        if mask is not None:
            score = (
                score.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else score + mask
            )
        e = torch.exp(score - score.amax(-1, keepdim=True))
        e = quantize_softmax(e, self.bits, self.softmax)
        return (e @ v) / e.sum(-1, keepdim=True)
