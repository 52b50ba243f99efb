"""Layers that the families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import PackedLinear

__all__ = [
    "ADALN_ROWS",
    "Activation",
    "FeedForward",
    "GatedFeedForward",
    "HeadNorm",
    "ModulatedNorm",
    "absorb_constant_",
    "add_gated",
    "divide_rows_",
    "fold_modulation_",
    "head_size",
    "scaled_buffer",
]

# Row blocks of VAR's and Switti's AdaLN linears: gate1, gate2, scale1, scale2, shift1, shift2; of
# the head's: scale, shift. Role of the modulated linear -> (its scale, its shift).
ADALN_ROWS = {"qkv": (2, 4), "fc1": (3, 5), "head": (0, 1)}


def head_size(width: int, heads: int) -> int:
    """Channels of each of ``heads`` heads; they divide the width, or it is a ValueError."""
    if width % heads:
        raise ValueError(f"embed_dim is {width}; wanted a multiple of {heads}, the number of heads")
    return width // heads


class ModulatedNorm(nn.Module):
    """LayerNorm or RMSNorm, then AdaLN modulation: ``n(x) * (constant + scale) + shift``.

    affine: n has a ``weight``, and a ``bias`` unless rms. ``constant``, ``post_scale`` and
    ``post_shift`` ([C] or None) appear when a transform of the input of the following linear is
    folded in: the constant replaces the 1 of ``1 + scale``, and the result is multiplied by
    ``post_scale`` and shifted by ``post_shift``. ``quantizer``, if set, computes all of it and
    returns the codes of the one linear that reads this norm.
    """

    def __init__(self, dim: int, eps: float, affine: bool = False, rms: bool = False) -> None:
        super().__init__()
        self.dim, self.eps, self.rms = dim, eps, rms
        self.quantizer: Callable[..., Tensor] | None = None
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        if affine and rms:
            self.register_parameter("bias", None)  # a fold may bring it about
        else:
            self.bias = nn.Parameter(torch.zeros(dim)) if affine else None
        for name in ("constant", "post_scale", "post_shift"):
            self.register_buffer(name, None)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, affine={self.weight is not None}, rms={self.rms}"

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """x [B, T, C]; scale, shift [B, 1, C] or [B, T, C] -> [B, T, C]."""
        if self.quantizer is not None and (scale is None or scale.shape[1] == 1):
            return self.quantizer(self, x, scale, shift)
        return self.compute(x, scale, shift)

    def compute(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """The same, in floating point even where the norm is fused with its linear."""
        if self.rms:
            y = F.rms_norm(x, (self.dim,), self.weight, self.eps)
            y = y if self.bias is None else y + self.bias
        else:
            y = F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)
        if scale is not None:
            y = y * (scale + (1.0 if self.constant is None else self.constant)) + shift
        if self.post_scale is not None:
            y = y * self.post_scale
        return y if self.post_shift is None else y + self.post_shift

    @torch.no_grad()
    def fold_(self, scale: Tensor, shift: Tensor) -> None:
        """Make the output ``y / scale - shift`` through weight and bias; a bias appears if needed.

        For norms with a weight and without modulation. scale, shift float64 [C].
        """
        like = self.weight
        self.weight = nn.Parameter((like.double() / scale).to(like.dtype), requires_grad=False)
        if self.bias is None and not shift.any():
            return
        bias = 0.0 if self.bias is None else self.bias.double()
        moved = (bias / scale - shift).to(like.dtype)
        self.bias = nn.Parameter(moved, requires_grad=False)


class HeadNorm(nn.Module):
    """The norm before the head of VAR and Switti, modulated by what the image shows (AdaLN).

    RAR has its own: it is modulated by the position, too, under other published names.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = ModulatedNorm(dim, eps)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """(scale, shift), each [B, 1, C], of the condition [B, C]."""
        # [B, 2 C] -> [B, 1, 2, C] -> twice [B, 1, C]
        return self.ada_lin(condition).view(len(condition), 1, 2, -1).unbind(2)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """x [B, T, C] -> [B, T, C], or codes where the norm is fused with the head."""
        return self.norm(x, *modulation)


@torch.no_grad()
def fold_modulation_(
    norm: ModulatedNorm, linear: nn.Linear, of_scale: slice, of_shift: slice,
    scale: Tensor, shift: Tensor,
) -> None:  # fmt: skip
    """Make the output of a modulated norm ``y / scale - shift`` through its AdaLN linear.

    of_scale, of_shift: the rows of ``linear`` that make the norm's scale and shift.
    """
    divide_rows_(linear, of_scale, scale, None)
    divide_rows_(linear, of_shift, scale, shift)
    norm.constant = scaled_buffer(norm.constant, scale, linear.bias)


@torch.no_grad()
def absorb_constant_(norm: ModulatedNorm, linear: nn.Linear, of_scale: slice) -> None:
    """Move the norm's ``constant`` into the bias of the rows that make its scale."""
    if norm.constant is None:
        return
    bias = linear.bias.detach().clone()
    bias[of_scale] = (bias[of_scale].double() + norm.constant.double() - 1).to(bias.dtype)
    linear.bias = nn.Parameter(bias, requires_grad=False)
    norm.constant = None


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


class FeedForward(nn.Module):
    """Two linears around an activation function, by the name that the ops give it."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(width, hidden), Activation(activation)
        self.fc2 = nn.Linear(hidden, width)

    def hidden(self, x: Tensor) -> Tensor:
        """What fc2 reads."""
        return self.act(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        return self.fc2(self.hidden(x))


class GatedFeedForward(nn.Module):
    """``w2(silu(w1 x) * w3 x)``; w13 holds the rows of w1, then those of w3.

    published: what files call w1, w3 and w2, which have no biases. quantizer: what makes w2's codes
    of w13's outputs, if the product is not made in floating point.
    """

    def __init__(
        self, width: int, hidden: int, published: tuple[str, str, str] = ("w1", "w3", "w2")
    ) -> None:
        super().__init__()
        self.w13 = nn.Linear(width, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.published = published
        self.quantizer: Callable[[Tensor, str], Tensor] | None = None
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Published checkpoints hold w1 and w3 apart."""
        w1, w3, w2 = (f"{prefix}{name}.weight" for name in self.published)
        if w1 in state and w3 in state:
            state[f"{prefix}w13.weight"] = torch.cat([state.pop(w1), state.pop(w3)])
        if w2 in state:
            state[f"{prefix}w2.weight"] = state.pop(w2)

    def hidden(self, x: Tensor) -> Tensor:
        """What w2 reads."""
        both = self.w13(x)
        if self.quantizer is not None:
            return self.quantizer(both, "silu")
        gate, value = both.chunk(2, -1)
        return F.silu(gate) * value

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        return self.w2(self.hidden(x))


def add_gated(linear: nn.Module, x: Tensor, residual: Tensor, gate: Tensor | None) -> Tensor:
    """``residual + linear(x) * gate``, in the GEMM's epilogue where it can be.

    residual [B, T, N], gate [B, 1, N], [B, T, N] or None (no gate). The epilogue has one gate per
    image, and sink positions are computed after it. It gives the same bits in float32; in narrower
    types it rounds once, where separate steps round three times.
    """
    one = gate is None or gate.shape[1] == 1
    if isinstance(linear, PackedLinear) and one and not linear.sink:
        return linear(x, residual, None if gate is None else gate.squeeze(1))
    y = linear(x)
    return residual + (y if gate is None else y * gate)


def divide_rows_(linear: nn.Linear, rows: slice, scale: Tensor, shift: Tensor | None) -> None:
    """Make the outputs ``rows`` of a linear ``y / scale - shift``, computed in float64.

    Through new parameters: the old tensors, which others may hold, keep their values. A linear
    without a bias gets one if there is a shift.
    """
    weight = linear.weight.detach().clone()
    weight[rows] = (weight[rows].double() / scale[:, None]).to(weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        bias = linear.bias.detach().clone()
    elif shift is None or not shift.any():
        return
    else:
        bias = weight.new_zeros(len(weight))
    moved = bias[rows].double() / scale
    bias[rows] = (moved if shift is None else moved - shift).to(bias.dtype)
    linear.bias = nn.Parameter(bias, requires_grad=False)


def scaled_buffer(old: Tensor | None, scale: Tensor, like: Tensor) -> Tensor:
    """``old / scale`` (1 where there is none yet), computed in float64, typed like ``like``."""
    old = torch.ones_like(scale) if old is None else old.double()
    return (old / scale).to(like.dtype)
