"""Fake (meta) kernels: shapes and dtypes of the operators' results, for torch.compile and export.

They check what can be known without data, with the texts of the real kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import ACTIVATIONS, MAX_EPILOGUE_ROTATION, MAX_ROTATION, rotation_fits
from .reference_attention import (
    HEAD_NORMS,
    KEY_GROUP,
    KEY_PANEL,
    MAX_HEAD_SIZE,
    MAX_KEYS,
    kv_cache_shapes,
)

PANEL, GROUP = 16, 4  # columns and k of the CPU layout, csrc/kernels/cpu/layout.h
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def packed_bytes(n: int, k: int, bits: int, device: str = "cpu") -> int:
    """Size of a packed [n, k] weight on a kind of device, its column sums included."""
    if device == "cuda":  # csrc/kernels/cuda/layout.h
        if bits == 8:
            return n * ((k + 15) // 16 * 16 + 4)
        tiles, blocks = (n + 15) // 16, (k + 63) // 64
        return tiles * (blocks * 16 * 64 * bits // 8 + 4 * 16)
    panels, groups = (n + PANEL - 1) // PANEL, (k + GROUP - 1) // GROUP
    return panels * (groups * PANEL * GROUP * bits // 8 + 4 * PANEL)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_dtype(op: str, name: str, x: Tensor | None, *wanted: torch.dtype) -> None:
    if x is not None and x.dtype not in wanted:
        *most, last = [_name(dtype) for dtype in wanted]
        text = f"{', '.join(most)} or {last}" if most else last
        raise RuntimeError(f"{op}: {name} has dtype {_name(x.dtype)}, wanted {text}")


def _check_device(op: str, **tensors: Tensor | None) -> None:
    """All on the device of the first."""
    (lead_name, lead), *others = tensors.items()
    for name, x in others:
        if x is not None and x.device != lead.device:
            raise RuntimeError(
                f"{op}: {name} is on {x.device}, but {lead_name} is on {lead.device}; wanted all "
                "on one device"
            )


def _check_bits(op: str, name: str, bits: int) -> None:
    if bits not in (4, 6, 8):
        raise RuntimeError(f"{op}: {name} is {bits}, wanted 4, 6 or 8")


def _check_rotation(
    op: str, block: int, columns: int, name: str = "rotation", letter: str = "K",
    most: int = MAX_ROTATION,
) -> None:  # fmt: skip
    if not rotation_fits(block, columns, most):
        raise RuntimeError(
            f"{op}: {name} is {block} and {letter} {columns}; wanted 0, or a power of two from 2 "
            f"to {most} that divides {letter}"
        )


def _check_activation(op: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise RuntimeError(
            f"{op}: activation is '{activation}', wanted one of {', '.join(ACTIVATIONS)}"
        )


def _check_out_dtype(op: str, out_dtype: torch.dtype) -> None:
    if out_dtype not in FLOATS:
        raise RuntimeError(
            f"{op}: out_dtype is {_name(out_dtype)}, wanted float32, float16 or bfloat16"
        )


def _check_length(op: str, name: str, x: Tensor | None, length: int, meaning: str) -> None:
    if x is None:
        return
    if x.dim() != 1:
        raise RuntimeError(f"{op}: {name} has shape {list(x.shape)}, wanted one dimension")
    torch._check(
        x.numel() == length,
        lambda: f"{op}: {name} has {x.numel()} entries, wanted {length} ({meaning})",
    )


def _check_packed(op: str, name: str, w: Tensor, n: int, k: int, bits: int) -> None:
    _check_dtype(op, name, w, torch.uint8)
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


def _check_table(op: str, name: str, scale: Tensor, tokens: int) -> None:
    _check_dtype(op, name, scale, torch.float32)
    if scale.dim() != 1:
        raise RuntimeError(f"{op}: {name} has shape {list(scale.shape)}, wanted one dimension")
    torch._check(
        tokens <= scale.numel(),
        lambda: (
            f"{op}: {name} has {scale.numel()} positions, but position 0 + tokens {tokens} = "
            f"{tokens} are needed"
        ),
    )


def _fake_product(
    op: str, a: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None, bias: Tensor | None,
    bits: int, activation: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Checks that all products share, and their output [..., N]."""
    _check_bits(op, "bits", bits)
    _check_dtype(op, "w_scale", w_scale, torch.float32)
    n = w_scale.shape[0]
    _check_packed(op, "w", w, n, a.shape[-1], bits)
    _check_dtype(op, "w_zero", w_zero, torch.int32)
    _check_length(op, "w_zero", w_zero, n, "N")
    _check_dtype(op, "bias", bias, *FLOATS)
    _check_length(op, "bias", bias, n, "one for each column")
    _check_activation(op, activation)
    return a.new_empty((*a.shape[:-1], n), dtype=dtype)


@torch.library.register_fake("ptq4arvg::pack_weight")
def _(codes, zero, bits):
    _check_device("pack_weight", codes=codes, zero=zero)
    _check_bits("pack_weight", "bits", bits)
    _check_dtype("pack_weight", "codes", codes, torch.int8)
    if codes.dim() != 2:
        raise RuntimeError(f"pack_weight: codes has shape {list(codes.shape)}, wanted [N, K]")
    n, k = codes.shape
    _check_length("pack_weight", "zero", zero, n, "N")
    return codes.new_empty((packed_bytes(n, k, bits, codes.device.type),), dtype=torch.uint8)


@torch.library.register_fake("ptq4arvg::unpack_weight")
def _(packed, zero, bits, n, k):
    _check_device("unpack_weight", packed=packed, zero=zero)
    _check_bits("unpack_weight", "bits", bits)
    _check_packed("unpack_weight", "packed", packed, n, k, bits)
    return packed.new_empty((n, k), dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::quantize")
def _(x, inv_scale, zero, bits, position=None, tokens=0, rotation=0):
    _check_device("quantize", x=x, inv_scale=inv_scale, zero=zero, position=position)
    _check_bits("quantize", "bits", bits)
    _check_dtype("quantize", "x", x, *FLOATS)
    _check_table("quantize", "inv_scale", inv_scale, tokens)
    _check_dtype("quantize", "zero", zero, torch.int32)
    _check_dtype("quantize", "position", position, torch.int32)
    _check_rotation("quantize", rotation, x.shape[-1])
    return x.new_empty(x.shape, dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::gemm")
def _(
    a, w, a_scale, w_scale, a_zero=None, w_sum=None, w_zero=None, bias=None, *, bits=8,
    position=None, tokens=0, activation="none", residual=None, gate=None,
    out_dtype=torch.float32,
):  # fmt: skip
    _check_device(
        "gemm", a=a, w=w, a_scale=a_scale, w_scale=w_scale, a_zero=a_zero, w_sum=w_sum,
        w_zero=w_zero, bias=bias, position=position, residual=residual, gate=gate,
    )  # fmt: skip
    _check_dtype("gemm", "a", a, torch.int8)
    _check_table("gemm", "a_scale", a_scale, tokens)
    _check_out_dtype("gemm", out_dtype)
    return _fake_product("gemm", a, w, w_scale, w_zero, bias, bits, activation, out_dtype)


@torch.library.register_fake("ptq4arvg::gemm_quantize")
def _(
    a, w, a_scale, w_scale, a_zero=None, w_sum=None, w_zero=None, bias=None, *, out_inv_scale,
    out_zero, out_bits, bits=8, position=None, tokens=0, activation="none", residual=None,
    gate=None, out_rotation=0,
):  # fmt: skip
    op = "gemm_quantize"
    _check_device(
        op, a=a, w=w, a_scale=a_scale, w_scale=w_scale, a_zero=a_zero, w_sum=w_sum, w_zero=w_zero,
        bias=bias, out_inv_scale=out_inv_scale, out_zero=out_zero, position=position,
        residual=residual, gate=gate,
    )  # fmt: skip
    _check_dtype(op, "a", a, torch.int8)
    _check_table(op, "a_scale", a_scale, tokens)
    _check_bits(op, "out_bits", out_bits)
    _check_table(op, "out_inv_scale", out_inv_scale, tokens)
    n = w_scale.shape[0]
    _check_rotation(op, out_rotation, n, "out_rotation", "N", MAX_EPILOGUE_ROTATION)
    return _fake_product(op, a, w, w_scale, w_zero, bias, bits, activation, torch.int8)


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
    _check_device(
        op, x=x, inv_scale=inv_scale, zero=zero, scale=scale, shift=shift, position=position,
        **columns,
    )  # fmt: skip
    _check_bits(op, "bits", bits)
    _check_dtype(op, "x", x, *FLOATS)
    _check_table(op, "inv_scale", inv_scale, tokens)
    for name, value in columns.items():
        _check_dtype(op, name, value, *FLOATS)
        _check_length(op, name, value, x.shape[-1], "one for each column")
    _check_rotation(op, rotation, x.shape[-1])
    return x.new_empty(x.shape, dtype=torch.int8)


@torch.library.register_fake("ptq4arvg::gemm_float")
def _(x, w, w_scale, w_zero=None, bias=None, *, bits=8, activation="none", out_dtype=torch.float32):
    _check_device("gemm_float", x=x, w=w, w_scale=w_scale, w_zero=w_zero, bias=bias)
    _check_dtype("gemm_float", "x", x, *FLOATS)
    _check_out_dtype("gemm_float", out_dtype)
    return _fake_product("gemm_float", x, w, w_scale, w_zero, bias, bits, activation, out_dtype)


def _check_shape(op: str, name: str, x: Tensor, wanted: tuple[int, ...], meaning: str = "") -> None:
    if tuple(x.shape) != wanted:
        raise RuntimeError(
            f"{op}: {name} has shape {list(x.shape)}, wanted {list(wanted)}{meaning}"
        )


def _check_heads(op: str, name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise RuntimeError(f"{op}: {name} has shape {list(x.shape)}, wanted [B, H, t, d]")
    _check_dtype(op, name, x, *FLOATS)
    _check_head_size(op, name, x, x.shape[1], "[B, H, t, d]")


def _check_head_size(op: str, name: str, x: Tensor, heads: int, wanted: str) -> None:
    size = x.shape[-1]
    if heads == 0 or size % KEY_GROUP or not 0 < size <= MAX_HEAD_SIZE:
        raise RuntimeError(
            f"{op}: {name} has shape {list(x.shape)}, wanted heads {wanted} of d channels, a "
            f"multiple of {KEY_GROUP} up to {MAX_HEAD_SIZE}"
        )


def _check_cache(op: str, lead: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """The int8 keys and values of ``lead``'s heads [B, H, t, d]."""
    images, heads, _, size = lead.shape
    panels = k_cache.shape[2] if k_cache.dim() == 6 else 0
    keys, values = kv_cache_shapes(images, heads, panels * KEY_PANEL, size)
    if panels == 0 or tuple(k_cache.shape) != keys:
        raise RuntimeError(
            f"{op}: k_cache has shape {list(k_cache.shape)}, wanted [{images}, {heads}, panels, "
            f"{size // KEY_GROUP}, {KEY_PANEL}, {KEY_GROUP}] as kv_cache_shapes gives them"
        )
    if panels * KEY_PANEL > MAX_KEYS:
        raise RuntimeError(
            f"{op}: k_cache has {panels * KEY_PANEL} keys, wanted at most {MAX_KEYS} so that sums "
            "fit in int32"
        )
    _check_shape(op, "v_cache", v_cache, values, ", as many keys as k_cache has")
    _check_dtype(op, "k_cache", k_cache, torch.int8)
    _check_dtype(op, "v_cache", v_cache, torch.int8)


def _check_head_tables(op: str, lead: Tensor, **tables: Tensor) -> None:
    for name, table in tables.items():
        _check_dtype(op, name, table, torch.float32)
        _check_shape(op, name, table, (lead.shape[1], lead.shape[3]), " (heads, channels)")


@torch.library.register_fake("ptq4arvg::store_kv")
def _(k, v, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, position=None):
    op, tables = "store_kv", {"k_scale": k_scale, "k_shift": k_shift, "v_scale": v_scale,
                              "v_shift": v_shift}  # fmt: skip
    _check_device(op, k=k, v=v, k_cache=k_cache, v_cache=v_cache, position=position, **tables)
    _check_heads(op, "k", k)
    _check_shape(op, "v", v, tuple(k.shape))
    _check_dtype(op, "v", v, *FLOATS)
    _check_cache(op, k, k_cache, v_cache)
    _check_head_tables(op, k, **tables)
    _check_dtype(op, "position", position, torch.int32)


@torch.library.register_fake("ptq4arvg::store_qkv")
def _(
    qkv, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, *, norm="none", eps=1e-6,
    q_weight=None, q_bias=None, k_weight=None, k_bias=None, rotation=None, q_factors=None,
    q_factor=1.0, position=None,
):  # fmt: skip
    op, tables = "store_qkv", {"k_scale": k_scale, "k_shift": k_shift, "v_scale": v_scale,
                               "v_shift": v_shift}  # fmt: skip
    vectors = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
    _check_device(op, qkv=qkv, k_cache=k_cache, v_cache=v_cache, **tables, **vectors,
                  q_factors=q_factors, rotation=rotation, position=position)  # fmt: skip
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise RuntimeError(f"{op}: qkv has shape {list(qkv.shape)}, wanted [B, t, 3, H, d]")
    _check_dtype(op, "qkv", qkv, *FLOATS)
    images, tokens, _, heads, size = qkv.shape
    _check_head_size(op, "qkv", qkv, heads, "[B, t, 3, H, d]")
    lead = qkv[:, :, 0].transpose(1, 2)
    _check_cache(op, lead, k_cache, v_cache)
    _check_head_tables(op, lead, **tables)
    if norm not in HEAD_NORMS:
        raise RuntimeError(f"{op}: norm is '{norm}', wanted one of {', '.join(HEAD_NORMS)}")
    if norm != "none" and not 2**-150 < eps < (2 - 2**-24) * 2**127:  # as float32: not 0, finite
        raise RuntimeError(f"{op}: eps is {eps:g}, wanted a finite float32 above 0")
    for name, vector in vectors.items():
        _check_dtype(op, name, vector, *FLOATS)
        _check_length(op, name, vector, size, "one for each channel of a head")
    _check_dtype(op, "q_factors", q_factors, *FLOATS)
    _check_length(op, "q_factors", q_factors, heads, "one for each head")
    _check_dtype(op, "rotation", rotation, torch.float32)
    if rotation is not None:
        _check_shape(op, "rotation", rotation, (tokens, size // 2, 2),
                     ": cosine and sine for every token and pair of channels")  # fmt: skip
    _check_dtype(op, "position", position, torch.int32)
    return qkv.new_empty((images, tokens, heads, size))


@torch.library.register_fake("ptq4arvg::attention")
def _(
    q, k_cache, v_cache, k_scale, v_scale, v_shift, *, limits=None, position=None,
    out_dtype=torch.float32,
):  # fmt: skip
    op, tables = "attention", {"k_scale": k_scale, "v_scale": v_scale, "v_shift": v_shift}
    _check_device(
        op, q=q, k_cache=k_cache, v_cache=v_cache, limits=limits, position=position, **tables
    )
    _check_heads(op, "q", q)
    _check_cache(op, q, k_cache, v_cache)
    _check_head_tables(op, q, **tables)
    if limits is not None and position is not None:
        raise RuntimeError(f"{op}: limits and position are both given, wanted one of them")
    _check_dtype(op, "limits", limits, torch.int32)
    _check_length(op, "limits", limits, q.shape[2], "one for each query")
    _check_dtype(op, "position", position, torch.int32)
    _check_out_dtype(op, out_dtype)
    images, heads, tokens, size = q.shape
    return q.new_empty((images, tokens, heads * size), dtype=out_dtype)
