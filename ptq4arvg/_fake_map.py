"""Fake (meta) kernels of the operators on maps, as those of `_fake`."""

from __future__ import annotations

import torch

from ._checks import (
    FLOATS,
    check_activation,
    check_bits,
    check_device,
    check_dtype,
    check_length,
    check_out_dtype,
)
from ._fake import fake_product


def _check_map(op, name, x):
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise RuntimeError(
            f"{op}: {name} has shape {list(x.shape)}, wanted [B, H, W, C] with H, W and C of 1 or "
            "more"
        )


def _check_one(op, name, table):
    check_dtype(op, name, table, torch.float32)
    if table.numel() != 1:
        raise RuntimeError(
            f"{op}: {name} has {table.numel()} entries, wanted 1: pixels have no positions"
        )


@torch.library.register_fake("ptq4arvg::quantize_map")
def _(
    x, inv_scale, zero, bits, *, groups=0, weight=None, bias=None, eps=1e-6, activation="none",
    scale=1, border=0,
):  # fmt: skip
    op = "quantize_map"
    check_device(op, x=x, inv_scale=inv_scale, zero=zero, weight=weight, bias=bias)
    check_bits(op, "bits", bits)
    _check_map(op, "x", x)
    check_dtype(op, "x", x, *FLOATS)
    _check_one(op, "inv_scale", inv_scale)
    check_dtype(op, "zero", zero, torch.int32)
    b, h, w, c = x.shape
    if groups < 0 or (groups and c % groups):
        raise RuntimeError(
            f"{op}: groups is {groups} and C {c}; wanted 0 (no norm), or a number that divides C"
        )
    if not groups and not (weight is None and bias is None):
        raise RuntimeError(
            f"{op}: weight or bias is given, but groups is 0 (no norm); wanted both None, or "
            "groups of 1 or more"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        check_dtype(op, name, value, *FLOATS)
        check_length(op, name, value, c, "one for each column")
    check_activation(op, activation)
    for name, value, least in (("scale", scale, 1), ("border", border, 0)):
        if not least <= value <= 8:
            raise RuntimeError(f"{op}: {name} is {value}, wanted {least} to 8")
    sides = (scale * side + 2 * border for side in (h, w))
    return x.new_empty((b, *sides, c), dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::conv2d")
def _(
    a, w, a_scale, w_scale, a_zero=None, w_sum=None, w_zero=None, bias=None, *, bits=8,
    kernel_size=3, activation="none", residual=None, out_dtype=torch.float32,
):  # fmt: skip
    op = "conv2d"
    check_device(
        op, a=a, w=w, a_scale=a_scale, w_scale=w_scale, a_zero=a_zero, w_sum=w_sum, w_zero=w_zero,
        bias=bias, residual=residual,
    )  # fmt: skip
    _check_map(op, "a", a)
    check_dtype(op, "a", a, torch.int8)
    b, height, width, c = a.shape
    k = kernel_size
    if k < 1 or k > height or k > width:  # not by min, which would ask which of them it is
        raise RuntimeError(
            f"{op}: kernel_size is {k} and a has shape {list(a.shape)}; wanted one from 1 to H and "
            "W"
        )
    _check_one(op, "a_scale", a_scale)
    check_out_dtype(op, out_dtype)
    sides = (side - k + 1 for side in (height, width))
    rows = a.new_empty((b, *sides, k * k * c))
    return fake_product(op, rows, w, w_scale, w_zero, bias, bits, activation, out_dtype)
