"""GPTQ: rounding a weight column by column, each rounding error made up for by later columns.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (2022), algorithm 1. With H = X^T X over the inputs and U the upper
Cholesky factor of H^-1 (U^T U = H^-1), rounding column k with error e changes the columns j > k by

    w_j -= e / U_kk * U_kj,

which is the least-squares correction of the output. All rows of the weight go in parallel, and a
block of columns at a time passes its correction on to the rest in one product.

H comes from a sample, and with few vectors to each channel it holds correlations that are none. Its
off-diagonal part is therefore shrunk by the factor that Schaefer and Strimmer ("A Shrinkage
Approach to Large-Scale Covariance Matrix Estimation", 2005, target D) derive from the sample
itself. Still the codes fit the very inputs that a layer's SQNR is then measured on, so that SQNR
flatters them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "ROWS", "channel_products", "compensated_codes", "limits", "mean_products"]

BLOCK = 128
ROWS = 2048  # at a time, where float64 copies of a whole weight would take gigabytes
PRODUCTS = 1024  # rows of inputs whose products are summed before that is added up in float64
COLUMNS = 256  # of inputs whose products are taken at a time
CHANNELS = 4096  # that make up for each other; H of more would take gigabytes
DAMPING = 0.01  # of the mean diagonal of H


def compensated_codes(
    weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int, products: list[Tensor]
) -> Tensor:
    """Codes int8 [N, K] of ``weight`` [N, K] on a grid that ``quantize_weight`` found.

    scale float32 [N], zero int32 [N] or None: that grid; products: ``channel_products`` of inputs
    as the layer will see them, that is, quantized. The limits are the grid's: [-zero, 2**bits - 1 -
    zero], or [-127, 127] where there is no zero point. Sums are in float64.
    """
    low, high = limits(zero, bits, len(weight), weight.device)
    grids = [*zip(*(t.split(ROWS) for t in (scale.double(), low, high)), strict=True)]
    codes = []
    columns = weight.detach().split([len(h) for h in products], 1)
    for part, h in zip(columns, products, strict=True):
        upper = _inverse_factor(h)
        rows = zip(part.split(ROWS), grids, strict=True)
        codes.append(torch.cat([_compensate(w, *grid, upper) for w, grid in rows]))
    return torch.cat(codes, 1)


def _compensate(weight: Tensor, step: Tensor, low: Tensor, high: Tensor, upper: Tensor) -> Tensor:
    """Codes int8 [N, k] of columns [N, k] of a weight; upper [k, k]."""
    w = weight.t().to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    codes = torch.empty_like(w, dtype=torch.int8)  # transposed, so that a column lies in one piece
    for start in range(0, len(w), BLOCK):
        block, own = w[start : start + BLOCK], upper[start : start + BLOCK, start : start + BLOCK]
        errors = torch.empty_like(block)
        for k, column in enumerate(block):
            level = (column / step).round_().clamp_(low, high)
            codes[start + k] = level
            torch.addcmul(column, level, step, value=-1, out=errors[k]).div_(own[k, k])
            block[k + 1 :].addr_(own[k, k + 1 :], errors[k], alpha=-1)
        after = start + len(block)
        w[after:].addmm_(upper[start:after, after:].t(), errors, alpha=-1)
    return codes.t().contiguous()


def limits(zero: Tensor | None, bits: int, rows: int, device: torch.device):
    """(lowest, highest) level of every row, float64 [N]."""
    if zero is None:
        high = torch.full((rows,), 2.0 ** (bits - 1) - 1, dtype=torch.float64, device=device)
        return -high, high
    low = -zero.double()
    return low, low + (2**bits - 1)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of H [K, K].

    Where H = M M^T with M upper triangular, it is the inverse of M; and M is the lower factor of H
    with its rows and columns in reverse, reversed likewise.
    """
    root = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, identity, upper=True)


def channel_products(x: Tensor) -> list[Tensor]:
    """H of inputs x [M, K], float64 [k, k] for every ``CHANNELS`` channels of them."""
    return [_damped_products(own) for own in x.split(CHANNELS, 1)]


def _damped_products(x: Tensor) -> Tensor:
    """H: ``mean_products`` with more on its diagonal, float64 [K, K].

    Where the inputs are all zero, it is the identity and every column is rounded on its own; so is
    a single channel that is always zero.
    """
    hessian = mean_products(x)
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    diagonal += DAMPING * mean if mean > 0 else 1.0
    return hessian


def mean_products(x: Tensor) -> Tensor:
    """The mean of x_t x_t^T over the rows of x [M, K], its off-diagonal part shrunk; float64.

    The share taken off is the variance of the off-diagonal means over their squares, summed (the
    cited paper's lambda for a diagonal target), from 0 to 1.
    """
    mean = _products(x) / len(x)
    diagonal = mean.diagonal().clone()
    # Sums over i != j, of mean(x_i^2 x_j^2) and of mean(x_i x_j)^2.
    fourth = torch.zeros_like(mean[0, 0])
    for part in x.split(PRODUCTS):
        squares = part.double().square()
        fourth += (squares.sum(1).square() - squares.square().sum(1)).sum() / len(x)
    second = mean.square().sum() - diagonal.square().sum()
    if second > 0:
        share = (fourth - second) / max(len(x) - 1, 1) / second
        mean *= 1 - share.clamp(0, 1)
        mean.diagonal().copy_(diagonal)
    return mean


def _products(x: Tensor) -> Tensor:
    """x^T x of x [M, K], float64 [K, K]: sums of products over so many rows in the dtype of x.

    Those of a block of columns with later columns, and those with earlier ones by symmetry.
    """
    columns = x.shape[1]
    total = torch.zeros(columns, columns, dtype=torch.float64, device=x.device)
    for part in x.split(PRODUCTS):
        for k in range(0, columns, COLUMNS):
            total[k : k + COLUMNS, k:] += part[:, k : k + COLUMNS].t() @ part[:, k:]
    return total.triu_().add_(total.triu(1).t())
