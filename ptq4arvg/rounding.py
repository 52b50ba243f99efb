"""GPTQ: rounding a weight column by column, each rounding error made up for by later columns.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2022), algorithm 1. With H = X^T X over the inputs and U the upper
Cholesky factor of H^-1 (U^T U = H^-1), rounding column k with error e changes the columns j > k by

    w_j -= e / U_kk * U_kj,

which is the least-squares correction of the output. All rows of the weight go in parallel, and a
block of columns at a time passes its correction on to the rest in one product.

The codes fit the very inputs that a layer's SQNR is then measured on, so that SQNR flatters them:
unseen inputs gain less, the less the more channels there are to each input vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["compensated_codes"]

BLOCK = 128
DAMPING = 0.01  # of the mean diagonal of H


def compensated_codes(
    weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int, x: Tensor
) -> Tensor:
    """Codes int8 [N, K] of ``weight`` [N, K] on a grid that ``quantize_weight`` found.

    scale float32 [N], zero int32 [N] or None: that grid; x [M, K]: inputs as the layer will see
    them, that is, quantized. The limits are the grid's: [-zero, 2**bits - 1 - zero], or
    [-127, 127] where there is no zero point. Sums are in float64.
    """
    w = weight.detach().double().clone()
    rows, columns = w.shape
    step = scale.double()
    low, high = _limits(zero, bits, rows, w.device)
    upper = _inverse_factor(x)
    codes = torch.empty(columns, rows, dtype=torch.int8, device=w.device)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block = w[:, start:stop]  # a view: corrections within the block stay in w
        errors = torch.empty_like(block)
        for k in range(stop - start):
            row = upper[start + k, start + k : stop]
            level = torch.round(block[:, k] / step).clamp_(low, high)
            codes[start + k] = level.to(torch.int8)
            errors[:, k] = (block[:, k] - level * step) / row[0]
            block[:, k + 1 :] -= errors[:, k, None] * row[1:]
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes.t().contiguous()


def _limits(zero: Tensor | None, bits: int, rows: int, device: torch.device):
    """(lowest, highest) level of every row, float64 [N]."""
    if zero is None:
        high = torch.full((rows,), 2.0 ** (bits - 1) - 1, dtype=torch.float64, device=device)
        return -high, high
    low = -zero.double()
    return low, low + (2**bits - 1)


def _inverse_factor(x: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped x^T x, float64 [K, K].

    Where the inputs are all zero, H is the identity and every column is rounded on its own; so is
    a single channel that is always zero.
    """
    x = x.double()
    hessian = x.t() @ x
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    diagonal += DAMPING * mean if mean > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)
