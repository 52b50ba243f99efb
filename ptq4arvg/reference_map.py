"""Plain-torch specification of the operators on maps of pixels, as `reference` for those on rows.

A map is [B, H, W, C], channels last. That of codes has a border that convolutions reach into. Every
element-wise step is one float32 operation with its own rounding, in the order written.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import activate, dequantize, larger, quantize, unpack_weight

__all__ = ["conv2d", "conv_columns", "quantize_map"]

RUN, LANES = 64, 16  # pixels and runs that are summed in turn, csrc/kernels/quantize_map.h


def _channel_sums(values: Tensor) -> Tensor:
    """Sums over the pixels of float32 values [B, P, C]: float64 [B, C]."""
    # Zeros that fill up a run or a lane change no sum.
    runs = F.pad(values, (0, 0, 0, -values.shape[1] % RUN)).unflatten(1, (-1, RUN))
    sums = torch.zeros_like(runs[:, :, 0])
    for pixel in runs.unbind(2):
        sums = sums + pixel  # [B, runs, C]
    lanes = F.pad(sums.double(), (0, 0, 0, -sums.shape[1] % LANES)).unflatten(1, (-1, LANES))
    total = torch.zeros_like(lanes[:, 0])
    for turn in lanes.unbind(1):
        total = total + turn  # [B, LANES, C]
    return _in_turn(total)


def _in_turn(values: Tensor) -> Tensor:
    """The sum over dimension 1, from the first on."""
    total = values[:, 0]
    for value in values.unbind(1)[1:]:
        total = total + value
    return total


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """x float32 [B, P, C], normalized over the pixels and the channels of each group."""
    size = x.shape[2] // groups
    count = x.shape[1] * size
    sums, squares = (
        _in_turn(_channel_sums(v).unflatten(1, (groups, size)).transpose(1, 2)) for v in (x, x * x)
    )  # [B, groups]
    mean = sums / count
    variance = larger(squares / count - mean * mean, torch.zeros_like(mean))
    rstd = (1.0 / torch.sqrt(variance + eps)).float()
    rstd, mean = (v.repeat_interleave(size, 1) for v in (rstd, mean.float()))  # [B, C]
    factor = rstd if weight is None else rstd * weight.float()
    offset = (0.0 if bias is None else bias.float()) - mean * factor
    return x * factor[:, None] + offset[:, None]


def quantize_map(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int, *, groups: int = 0,
    weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6,
    activation: str = "none", scale: int = 1, border: int = 0,
) -> Tensor:  # fmt: skip
    """Norm, activation, quantization, upsampling, border; see `ptq4arvg.ops.quantize_map`."""
    y = x.float().flatten(1, 2)  # [B, H, W, C] -> [B, H W, C]
    if groups:
        y = _group_norm(y, groups, weight, bias, eps)
    codes = quantize(activate(activation, y), inv_scale, zero, bits).reshape(x.shape)
    codes = codes.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    of_zero = int(zero) - 128 if bits == 8 else 0
    return F.pad(codes, (0, 0, border, border, border, border), value=of_zero)


def conv_columns(weight: Tensor) -> Tensor:
    """The weight [N, C, k, k] of a convolution as a matrix [N, k k C]: line by line, each pixel by
    pixel, each channel by channel, as the patches that `conv2d` multiplies it with."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def conv2d(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None = None,
    w_sum: Tensor | None = None, w_zero: Tensor | None = None, bias: Tensor | None = None, *,
    bits: int = 8, kernel_size: int = 3, activation: str = "none", residual: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Convolution of codes with their border, a product of patches; see `ptq4arvg.ops.conv2d`."""
    k, (images, height, width, channels) = kernel_size, a.shape
    height, width, n = height - k + 1, width - k + 1, len(w_scale)
    weight = unpack_weight(w, w_zero, bits, n, k * k * channels)
    columns = weight.double().split(channels, 1)  # a pixel of the patch each
    acc = torch.zeros(images * height * width, n, dtype=torch.float64, device=a.device)
    for i in range(k):
        for j in range(k):
            pixels = a[:, i : i + height, j : j + width].reshape(-1, channels)  # [B H W, C]
            # float64 holds these sums exactly (below 2^53).
            acc += pixels.double() @ columns[i * k + j].T
    first = torch.zeros(len(acc), dtype=torch.int64, device=a.device)
    acc = acc.to(torch.int32)
    y = dequantize(acc, weight, a_scale, w_scale, a_zero, w_sum, bias, activation, first)
    y = y.reshape(images, height, width, n)
    if residual is not None:
        y = residual.float() + y
    return y.to(out_dtype)
