"""Convolutions of the tokenizers' decoders, in floating point or replaced by ones in integers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import PackedConv2d

__all__ = [
    "convolve_normalized",
    "convolve_upsampled",
    "decoder_convolutions",
    "packed_convolutions",
    "replace_convolution_",
]


def convolve_normalized(
    norm: nn.GroupNorm, conv: nn.Module, x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """``conv(silu(norm(x)))``, plus ``residual`` if there is one."""
    if isinstance(conv, PackedConv2d):
        return conv.normalized(x, norm, residual)
    gradients = torch.is_grad_enabled()  # they need what work in place overwrites
    y = conv(F.silu(norm(x), inplace=not gradients))
    if residual is None:
        return y
    return residual + y if gradients else y.add_(residual)


def convolve_upsampled(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv`` of x [B, C, H, W] with every pixel repeated twice both ways."""
    if isinstance(conv, PackedConv2d):
        return conv.upsampled(x)
    return conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def decoder_convolutions(tokenizer: nn.Module) -> dict[str, nn.Module]:
    """Path inside ``tokenizer`` -> convolution of its decoder that can be in integers.

    They are those that the functions above compute, which modules name in
    ``integer_convolutions``: nearly all of a decoder's operations. The first convolution reads
    latents, and the last one writes pixels.
    """
    return {
        f"decoder.{path}.{leaf}": getattr(module, leaf)
        for path, module in tokenizer.decoder.named_modules()
        for leaf in getattr(module, "integer_convolutions", ())
        if getattr(module, leaf) is not None
    }


def packed_convolutions(tokenizer: nn.Module) -> dict[str, PackedConv2d]:
    """Those of them that are in integers."""
    found = decoder_convolutions(tokenizer)
    return {name: conv for name, conv in found.items() if isinstance(conv, PackedConv2d)}


def replace_convolution_(tokenizer: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the convolution ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(tokenizer.get_submodule(parent), leaf, module)
