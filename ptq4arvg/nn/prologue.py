"""What comes between the linear that gives q, k and v and the attention products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference_attention import HEAD_NORMS

__all__ = ["Prologue", "rotate"]


@dataclass(frozen=True)
class Prologue:
    """Norm of the heads of q and k, weight and bias [d], rotary embedding, and a factor of q; in
    this order.

    norm: "none"; "l2", division by the length or eps, what is larger; "layer"; "rms". rotation:
    complex64 [t, 1, 1, d / 2], see `rotate`. q_factors [H], or q_factor for all heads. ValueError
    for another norm.
    """

    norm: str = "none"
    eps: float = 1e-6
    q_weight: Tensor | None = None
    q_bias: Tensor | None = None
    k_weight: Tensor | None = None
    k_bias: Tensor | None = None
    rotation: Tensor | None = None
    q_factors: Tensor | None = None
    q_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in HEAD_NORMS:
            raise ValueError(
                f"Prologue: norm is {self.norm!r}; wanted one of {', '.join(HEAD_NORMS)}"
            )

    def split(self, qkv: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each [B, H, t, d], of what a linear gives, [B, t, 3, H, d].

        in_place: results may take the place of qkv.
        """
        # A compiler takes no strided ``out``, and a gradient no view that is written over.
        in_place &= not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        parts = qkv.unbind(2)
        q = self._normalized(parts[0], self.q_weight, self.q_bias, in_place)
        k, v = self._normalized(parts[1], self.k_weight, self.k_bias, in_place), parts[2]
        if self.rotation is not None:
            as_they_were = q is parts[0] and k is parts[1]
            qk = qkv[:, :, :2] if as_they_were else torch.stack([q, k], 2)
            q, k = rotate(qk, self.rotation).unbind(2)
        if self.q_factors is not None or self.q_factor != 1.0:
            factor = self.q_factor if self.q_factors is None else self.q_factors[:, None]
            q = q.mul_(factor) if in_place else q * factor
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _normalized(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, in_place: bool
    ) -> Tensor:
        size = x.shape[-1:]
        if self.norm == "layer":
            return F.layer_norm(x, size, weight, bias, self.eps)
        if self.norm == "rms":
            x, weight = F.rms_norm(x, size, weight, self.eps), None
        elif self.norm == "l2":
            x = F.normalize(x, dim=-1, eps=self.eps, out=x if in_place else None)
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of ``ops.store_qkv``."""
        turns = self.rotation
        if turns is not None:
            turns = torch.view_as_real(turns.flatten(0, 2))  # [t, 1, 1, d / 2] -> [t, d / 2, 2]
        return {
            "norm": self.norm, "eps": self.eps, "q_weight": self.q_weight, "q_bias": self.q_bias,
            "k_weight": self.k_weight, "k_bias": self.k_bias, "rotation": turns,
            "q_factors": self.q_factors, "q_factor": self.q_factor,
        }  # fmt: skip


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Neighbouring channels of x [B, t, 2, H, d] as complex numbers, times rotation
    [t, 1, 1, d / 2]; in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
