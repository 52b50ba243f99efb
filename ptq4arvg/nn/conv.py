"""Quantized convolutions, computed in integers from packed weights."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..numerics import LinearQuantization
from .linear import PackedWeight

__all__ = ["PackedConv2d"]


class PackedConv2d(PackedWeight):
    """A convolution of stride 1 that keeps the size of its input, in integers.

    q: its weight as the matrix [N, k k C] of `reference_map.conv_columns`, k odd, and one grid for
    the whole input. Maps x are [B, C, H, W], as convolutions have them, and are read and written
    channels last. ``operators``: what has the operators that compute.
    """

    operators: Any = ops

    def __init__(
        self, q: LinearQuantization, channels: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(q, None, dtype)
        self.kernel_size = isqrt(self.in_features // channels)
        if self.kernel_size % 2 == 0 or self.kernel_size**2 * channels != self.in_features:
            raise ValueError(
                f"PackedConv2d: a weight of {self.in_features} columns and {channels} channels; "
                "wanted the channels times the square of an odd number"
            )
        if len(self.position_group) != 1 or self.rotation:
            raise ValueError(
                f"PackedConv2d: {len(self.position_group)} positions, rotation {self.rotation}; "
                "wanted 1 position and no rotation"
            )

    def normalized(self, x: Tensor, norm: nn.GroupNorm, residual: Tensor | None = None) -> Tensor:
        """The convolution of silu(norm(x)), plus ``residual`` [B, N, H, W] if there is one."""
        return self._convolve(
            x, residual, groups=norm.num_groups, weight=norm.weight, bias=norm.bias, eps=norm.eps,
            activation="silu",
        )  # fmt: skip

    def upsampled(self, x: Tensor) -> Tensor:
        """The convolution of x with every pixel repeated twice both ways."""
        return self._convolve(x, None, scale=2)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x."""
        return self._convolve(x, None)

    def _convolve(self, x: Tensor, residual: Tensor | None, **preparation: Any) -> Tensor:
        own = self._buffers
        codes = self.operators.quantize_map(
            _channels_last(x), own["a_inv_scale"], own["a_level_zero"], self.a_bits,
            border=self.kernel_size // 2, **preparation,
        )  # fmt: skip
        y = self.operators.conv2d(
            codes, *self._weight(), bits=self.w_bits, kernel_size=self.kernel_size,
            residual=None if residual is None else _channels_last(residual), out_dtype=x.dtype,
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)  # [B, H, W, N] -> [B, N, H, W]


def _channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] as [B, H, W, C], without a copy where it lies channels last."""
    return x.permute(0, 2, 3, 1)
