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

from .rounding import BLOCK, limits

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
    w, levels, step = weight.detach().double(), codes.double(), scale.double()
    low, high = limits(zero, bits, len(w), w.device)
    widths = [len(h) for h in products]
    parts = list(zip(levels.split(widths, 1), w.split(widths, 1), products, strict=True))
    for _ in range(TURNS):
        moved = [_descend_(level, own, h, step, low, high) for level, own, h in parts]
        if not any(moved):
            break
        step = _least_squares(parts, step)
    return levels.to(torch.int8), step.float()


def _descend_(q: Tensor, w: Tensor, h: Tensor, step: Tensor, low: Tensor, high: Tensor) -> bool:
    """Move each column of the codes q [N, k] of w [N, k] once; whether any moved. h [k, k]."""
    gradient = (w - q * step[:, None]) @ h
    moved = False
    for start in range(0, q.shape[1], BLOCK):
        stop = min(start + BLOCK, q.shape[1])
        own, g = h[start:stop, start:stop], gradient[:, start:stop].clone()
        change = torch.empty_like(g)
        for k in range(stop - start):
            old = q[:, start + k]
            best = torch.round(old + g[:, k] / (step * own[k, k])).clamp_(low, high)
            change[:, k] = (best - old) * step
            g -= change[:, k, None] * own[k]
            q[:, start + k] = best
        if change.any():
            gradient -= change @ h[start:stop]
            moved = True
    return moved


def _least_squares(parts: list[tuple[Tensor, Tensor, Tensor]], step: Tensor) -> Tensor:
    """The best scale of every row as float32 holds it, float64 [N]; a row without one keeps its."""
    over = torch.zeros_like(step)
    under = torch.zeros_like(step)
    for q, w, h in parts:
        product = q @ h
        over += (product * w).sum(1)
        under += (product * q).sum(1)
    best = (over / under.clamp_min(torch.finfo(under.dtype).tiny)).float().double()
    return torch.where((under > 0) & (best > 0), best, step)
