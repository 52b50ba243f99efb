"""Fake (meta) kernels: shapes and dtypes of the operators' results, for torch.compile and export.

They check what can be known without data, with the texts of the real kernels. Those of attention
are in `_fake_attention`, those on maps in `_fake_map`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import (
    FLOATS,
    check_activation,
    check_bits,
    check_device,
    check_dtype,
    check_length,
    check_out_dtype,
    check_rotation,
    check_rows,
    check_table,
    check_vector,
)
from .reference import MAX_EPILOGUE_ROTATION

PANEL, GROUP = 16, 4  # columns and k of the CPU layout, csrc/kernels/cpu/layout.h


def packed_bytes(n: int, k: int, bits: int, device: str = "cpu") -> int:
    """Size of a packed [n, k] weight on a kind of device, its column sums included."""
    if device == "cuda":  # csrc/kernels/cuda/layout.h
        if bits == 8:
            return n * ((k + 15) // 16 * 16 + 4)
        tiles, blocks = (n + 15) // 16, (k + 63) // 64
        return tiles * (blocks * 16 * 64 * bits // 8 + 4 * 16)
    panels, groups = (n + PANEL - 1) // PANEL, (k + GROUP - 1) // GROUP
    return panels * (groups * PANEL * GROUP * bits // 8 + 4 * PANEL)


def _check_packed(op: str, name: str, w: Tensor, n: int, k: int, bits: int) -> None:
    check_dtype(op, name, w, torch.uint8)
    if w.device.type not in ("cpu", "cuda"):
        return  # a layout that only the backend knows
    wanted = packed_bytes(n, k, bits, w.device.type)
    torch._check(
        w.numel() == wanted,
        lambda: (
            f"{op}: {name} has shape {list(w.shape)}, wanted [{wanted}]: N {n}, K {k}, {bits} bits "
            "as pack_weight lays them out"
        ),
    )


def fake_product(
    op: str, a: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None, bias: Tensor | None,
    bits: int, activation: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Checks that all products share, and their output [..., N]."""
    check_bits(op, "bits", bits)
    check_dtype(op, "w_scale", w_scale, torch.float32)
    check_vector(op, "w_scale", w_scale)
    n = w_scale.numel()
    if n == 0:
        raise RuntimeError(f"{op}: w_scale is empty, wanted one entry or more")
    _check_packed(op, "w", w, n, a.shape[-1], bits)
    check_dtype(op, "w_zero", w_zero, torch.int32)
    check_length(op, "w_zero", w_zero, n, "N")
    check_dtype(op, "bias", bias, *FLOATS)
    check_length(op, "bias", bias, n, "one for each column")
    check_activation(op, activation)
    return a.new_empty((*a.shape[:-1], n), dtype=dtype)


@torch.library.register_fake("ptq4arvg::pack_weight")
def _(codes, zero, bits):
    check_device("pack_weight", codes=codes, zero=zero)
    check_bits("pack_weight", "bits", bits)
    check_dtype("pack_weight", "codes", codes, torch.int8)
    if codes.dim() != 2:
        raise RuntimeError(f"pack_weight: codes has shape {list(codes.shape)}, wanted [N, K]")
    n, k = codes.shape
    if n == 0:
        raise RuntimeError(f"pack_weight: codes has shape {[n, k]}, wanted N of 1 or more")
    check_rows("pack_weight", "codes", codes)
    check_dtype("pack_weight", "zero", zero, torch.int32)
    check_length("pack_weight", "zero", zero, n, "N")
    return codes.new_empty((packed_bytes(n, k, bits, codes.device.type),), dtype=torch.uint8)


@torch.library.register_fake("ptq4arvg::unpack_weight")
def _(packed, zero, bits, n, k):
    check_device("unpack_weight", packed=packed, zero=zero)
    check_bits("unpack_weight", "bits", bits)
    if n < 1 or k < 1:
        raise RuntimeError(f"unpack_weight: n is {n} and k is {k}, wanted 1 or more")
    _check_packed("unpack_weight", "packed", packed, n, k, bits)
    check_dtype("unpack_weight", "zero", zero, torch.int32)
    check_length("unpack_weight", "zero", zero, n, "N")
    return packed.new_empty((n, k), dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::quantize")
def _(x, inv_scale, zero, bits, position=None, tokens=0, rotation=0):
    check_device("quantize", x=x, inv_scale=inv_scale, zero=zero, position=position)
    check_bits("quantize", "bits", bits)
    check_dtype("quantize", "x", x, *FLOATS)
    check_rows("quantize", "x", x)
    check_table("quantize", "inv_scale", inv_scale, tokens)
    check_dtype("quantize", "zero", zero, torch.int32)
    check_dtype("quantize", "position", position, torch.int32)
    check_rotation("quantize", rotation, x.shape[-1])
    return x.new_empty(x.shape, dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::gate_quantize")
def _(x, inv_scale, zero, bits, *, activation="silu", position=None, tokens=0, rotation=0):
    op = "gate_quantize"
    check_device(op, x=x, inv_scale=inv_scale, zero=zero, position=position)
    check_bits(op, "bits", bits)
    check_dtype(op, "x", x, *FLOATS)
    check_rows(op, "x", x)
    if x.shape[-1] % 2:
        raise RuntimeError(
            f"{op}: x has shape {list(x.shape)}, wanted [..., 2 K]: gates, then what they gate"
        )
    check_activation(op, activation)
    check_table(op, "inv_scale", inv_scale, tokens)
    check_dtype(op, "zero", zero, torch.int32)
    check_dtype(op, "position", position, torch.int32)
    check_rotation(op, rotation, x.shape[-1] // 2)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::gemm")
def _(
    a, w, a_scale, w_scale, a_zero=None, w_sum=None, w_zero=None, bias=None, *, bits=8,
    position=None, tokens=0, activation="none", residual=None, gate=None,
    out_dtype=torch.float32,
):  # fmt: skip
    check_device(
        "gemm", a=a, w=w, a_scale=a_scale, w_scale=w_scale, a_zero=a_zero, w_sum=w_sum,
        w_zero=w_zero, bias=bias, position=position, residual=residual, gate=gate,
    )  # fmt: skip
    check_dtype("gemm", "a", a, torch.int8)
    check_rows("gemm", "a", a)
    check_table("gemm", "a_scale", a_scale, tokens)
    check_dtype("gemm", "position", position, torch.int32)
    check_out_dtype("gemm", out_dtype)
    return fake_product("gemm", a, w, w_scale, w_zero, bias, bits, activation, out_dtype)


@torch.library.register_fake("ptq4arvg::gemm_quantize")
def _(
    a, w, a_scale, w_scale, a_zero=None, w_sum=None, w_zero=None, bias=None, *, out_inv_scale,
    out_zero, out_bits, bits=8, position=None, tokens=0, activation="none", residual=None,
    gate=None, out_rotation=0,
):  # fmt: skip
    op = "gemm_quantize"
    check_device(
        op, a=a, w=w, a_scale=a_scale, w_scale=w_scale, a_zero=a_zero, w_sum=w_sum, w_zero=w_zero,
        bias=bias, out_inv_scale=out_inv_scale, out_zero=out_zero, position=position,
        residual=residual, gate=gate,
    )  # fmt: skip
    check_dtype(op, "a", a, torch.int8)
    check_rows(op, "a", a)
    check_table(op, "a_scale", a_scale, tokens)
    check_dtype(op, "position", position, torch.int32)
    check_bits(op, "out_bits", out_bits)
    check_table(op, "out_inv_scale", out_inv_scale, tokens)
    check_dtype(op, "out_zero", out_zero, torch.int32)
    n = w_scale.numel()
    check_rotation(op, out_rotation, n, "out_rotation", "N", MAX_EPILOGUE_ROTATION)
    return fake_product(op, a, w, w_scale, w_zero, bias, bits, activation, torch.int8)


@torch.library.register_fake("ptq4arvg::norm_quantize")
def _(
    x, inv_scale, zero, bits, *, weight=None, bias=None, scale=None, shift=None, constant=None,
    post_scale=None, post_shift=None, eps=1e-6, rms=False, position=None, tokens=0, rotation=0,
):  # fmt: skip
    op = "norm_quantize"
    columns = {
        "weight": weight, "bias": bias, "constant": constant, "post_scale": post_scale,
        "post_shift": post_shift,
    }  # fmt: skip
    check_device(
        op, x=x, inv_scale=inv_scale, zero=zero, scale=scale, shift=shift, position=position,
        **columns,
    )  # fmt: skip
    check_bits(op, "bits", bits)
    check_dtype(op, "x", x, *FLOATS)
    check_rows(op, "x", x)
    check_table(op, "inv_scale", inv_scale, tokens)
    check_dtype(op, "zero", zero, torch.int32)
    check_dtype(op, "position", position, torch.int32)
    for name, value in columns.items():
        check_dtype(op, name, value, *FLOATS)
        check_length(op, name, value, x.shape[-1], "one for each column")
    check_rotation(op, rotation, x.shape[-1])
    return x.new_empty(x.shape, dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::gemm_float")
def _(x, w, w_scale, w_zero=None, bias=None, *, bits=8, activation="none", out_dtype=torch.float32):
    check_device("gemm_float", x=x, w=w, w_scale=w_scale, w_zero=w_zero, bias=bias)
    check_dtype("gemm_float", "x", x, *FLOATS)
    check_rows("gemm_float", "x", x)
    check_out_dtype("gemm_float", out_dtype)
    return fake_product("gemm_float", x, w, w_scale, w_zero, bias, bits, activation, out_dtype)
