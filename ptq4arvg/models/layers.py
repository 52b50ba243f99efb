"""Layers that the families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import PackedLinear

__all__ = ["Activation", "ModulatedNorm", "add_gated"]


class ModulatedNorm(nn.Module):
    """LayerNorm without parameters, then AdaLN modulation: ``LN(x) * (constant + scale) + shift``.

    ``constant``, ``post_scale`` and ``post_shift`` ([C] or None) appear when a transform of the
    input of the following linear is folded in: the constant replaces the 1 of ``1 + scale``, and
    the result is multiplied by ``post_scale`` and shifted by ``post_shift``. ``quantizer``, if set,
    computes all of it and returns the codes of the one linear that reads this norm.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.quantizer: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None
        for name in ("constant", "post_scale", "post_shift"):
            self.register_buffer(name, None)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x [B, T, C]; scale, shift [B, 1, C] -> [B, T, C]."""
        if self.quantizer is not None:
            return self.quantizer(self, x, scale, shift)
        y = F.layer_norm(x, (self.dim,), eps=self.eps)
        y = y * (scale + (1.0 if self.constant is None else self.constant)) + shift
        if self.post_scale is not None:
            y = y * self.post_scale
        return y if self.post_shift is None else y + self.post_shift


class Activation(nn.Module):
    """An activation function by the name that the ops give it; identity once ``fused``.

    It is fused when the epilogue of the GEMM before it computes it.
    """

    FUNCTIONS: ClassVar = {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
    }

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.fused = name, False

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        return x if self.fused else self.FUNCTIONS[self.name](x)


def add_gated(linear: nn.Module, x: Tensor, residual: Tensor, gate: Tensor) -> Tensor:
    """``residual + linear(x) * gate``, in the GEMM's epilogue where that gives the same bits.

    residual [B, T, N], gate [B, 1, N]. In other dtypes than float32 the epilogue rounds less often,
    and sink positions are computed after it.
    """
    if isinstance(linear, PackedLinear) and residual.dtype == torch.float32 and not linear.sink:
        return linear(x, residual, gate.squeeze(1))
    return residual + linear(x) * gate


def divide_rows_(linear: nn.Linear, rows: slice, scale: Tensor, shift: Tensor | None) -> None:
    """Make the outputs ``rows`` of a linear ``y / scale - shift``, in place, in float64."""
    weight, bias = linear.weight.data, linear.bias.data
    weight[rows] = (weight[rows].double() / scale[:, None]).to(weight.dtype)
    moved = bias[rows].double() / scale
    bias[rows] = (moved if shift is None else moved - shift).to(bias.dtype)


def scaled_buffer(old: Tensor | None, scale: Tensor, like: Tensor) -> Tensor:
    """``old / scale`` (1 where there is none yet), computed in float64, typed like ``like``."""
    old = torch.ones_like(scale) if old is None else old.double()
    return (old / scale).to(like.dtype)
