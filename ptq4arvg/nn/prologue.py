"""What comes between the linear that gives q, k and v and the attention products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Prologue", "rotate"]


@dataclass(frozen=True)
class Prologue:
    """Norm of the heads of q and k, rotary embedding, and a factor of q; in this order.

    norm: "none"; "l2", to unit length, of at least eps; "layer", with weights and biases [d].
    rotation: complex [t, 1, 1, d / 2], see `rotate`. q_factors [H], or q_factor for all heads.
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

    def split(self, qkv: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each [B, H, t, d], of what a linear gives, [B, t, 3, H, d].

        in_place: results may take the place of qkv.
        """
        # A compiler takes no strided ``out``.
        in_place = in_place and not torch.compiler.is_compiling()
        q, k, v = qkv.unbind(2)
        if self.norm == "l2":
            q, k = (
                F.normalize(x, dim=-1, eps=self.eps, out=x if in_place else None) for x in (q, k)
            )
        elif self.norm == "layer":
            size = q.shape[-1:]
            q = F.layer_norm(q, size, self.q_weight, self.q_bias, self.eps)
            k = F.layer_norm(k, size, self.k_weight, self.k_bias, self.eps)
        if self.rotation is not None:
            qk = qkv[:, :, :2] if self.norm == "none" else torch.stack([q, k], 2)
            q, k = rotate(qk, self.rotation).unbind(2)
        if self.q_factors is not None or self.q_factor != 1.0:
            factor = self.q_factor if self.q_factors is None else self.q_factors[:, None]
            q = q.mul_(factor) if in_place else q * factor
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

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
