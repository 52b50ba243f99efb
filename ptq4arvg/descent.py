"""Coordinate descent on the codes of a weight, in turn with the least-squares scale of every row.

Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder, "QuantEase: Optimization-based Quantization
for Language Models" (2023). What a row w [K] with codes q and scale s loses on inputs with
products H = X^T X is (w - s q) H (w - s q)^T. In one code, all others fixed, that is a parabola, so
that the best level is the one nearest to its lowest point,

    q_k + g_k / (s H_kk),    g = (w - s q) H.

GPTQ makes up for an error in later columns only; descent returns to all columns several times.
In the scale it is a parabola, too, lowest at s = w H q^T / (q H q^T). No step of either kind raises
the loss. All rows go in parallel, and a block of columns passes its changes on in one product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rounding import BLOCK, ROWS, limits

__all__ = ["descended"]

TURNS = 4  # of all columns and the scales; more lower the loss by half a per cent


def descended(
    weight: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    products: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """(codes int8 [N, K], scale float32 [N]) from those that ``compensated_codes`` found.

    The arguments are its own; the zero points stay.
    """
    low, high = limits(zero, bits, len(weight), weight.device)
    own = (weight.detach(), codes, scale.double(), low, high)
    parts = zip(*(t.split(ROWS) for t in own), strict=True)
    found, scales = zip(*(_descended(*part, products) for part in parts), strict=True)
    return torch.cat(found), torch.cat(scales)


def _descended(
    weight: Tensor, codes: Tensor, step: Tensor, low: Tensor, high: Tensor, products: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """``descended`` of some rows; step, low, high float64 [N]."""
    widths = [len(h) for h in products]
    columns = zip(weight.split(widths, 1), codes.split(widths, 1), products, strict=True)
    parts = [_Columns(w.t().double(), q.t().double().contiguous(), h) for w, q, h in columns]
    for _ in range(TURNS):
        moved = [part.descend_(step, low, high) for part in parts]
        if not any(moved):
            break
        step = _least_squares(parts, step)
    return torch.cat([part.codes for part in parts]).t().to(torch.int8).contiguous(), step.float()


class _Columns:
    """Columns with an H [k, k] of their own; transposed, so that a column lies in one piece.

    codes: q^T, float64 [k, N]; aim: H w^T and product: H q^T, which change with no scale.
    """

    def __init__(self, weight: Tensor, codes: Tensor, h: Tensor) -> None:
        self.codes, self.h = codes, h
        self.aim, self.product = h @ weight, h @ codes

    def descend_(self, step: Tensor, low: Tensor, high: Tensor) -> bool:
        """Move every column of codes once; whether any moved."""
        q, h = self.codes, self.h
        aim = self.aim / step
        gap = aim - self.product  # g / s, [k, N]
        moved = False
        for start in range(0, len(q), BLOCK):
            own, g = h[start : start + BLOCK, start : start + BLOCK], gap[start : start + BLOCK]
            g = g.clone()
            change = torch.empty_like(g)
            for k in range(len(g)):
                old = q[start + k]
                best = (g[k] / own[k, k] + old).round_().clamp_(low, high)
                torch.sub(best, old, out=change[k])
                g[k + 1 :].addr_(own[k, k + 1 :], change[k], alpha=-1)
                q[start + k] = best
            if change.any():
                gap.addmm_(h[:, start : start + BLOCK], change, alpha=-1)
                moved = True
        self.product = aim.sub_(gap)
        return moved


def _least_squares(parts: list[_Columns], step: Tensor) -> Tensor:
    """The best scale of every row as float32 holds it, float64 [N]; a row without one keeps its."""
    over = sum((part.codes * part.aim).sum(0) for part in parts)
    under = sum((part.codes * part.product).sum(0) for part in parts)
    best = (over / under.clamp_min(torch.finfo(under.dtype).tiny)).float().double()
    return torch.where((under > 0) & (best > 0), best, step)
