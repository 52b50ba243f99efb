"""Fake (meta) kernels of the attention operators; see `_fake`."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import (
    FLOATS,
    check_bits,
    check_device,
    check_dtype,
    check_length,
    check_out_dtype,
    check_rotation,
    check_shape,
    check_table,
)
from .reference import MAX_EPILOGUE_ROTATION
from .reference_attention import (
    HEAD_NORMS,
    KEY_GROUP,
    KEY_PANEL,
    MAX_HEAD_SIZE,
    MAX_KEYS,
    kv_cache_shapes,
)


def _check_heads(op: str, name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise RuntimeError(f"{op}: {name} has shape {list(x.shape)}, wanted [B, H, t, d]")
    check_dtype(op, name, x, *FLOATS)
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
    check_shape(op, "v_cache", v_cache, values, ", as many keys as k_cache has")
    check_dtype(op, "k_cache", k_cache, torch.int8)
    check_dtype(op, "v_cache", v_cache, torch.int8)


def _check_head_tables(op: str, lead: Tensor, **tables: Tensor) -> None:
    for name, table in tables.items():
        check_dtype(op, name, table, torch.float32)
        check_shape(op, name, table, (lead.shape[1], lead.shape[3]), " (heads, channels)")


@torch.library.register_fake("ptq4arvg::store_kv")
def _(k, v, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, position=None):
    op, tables = "store_kv", {"k_scale": k_scale, "k_shift": k_shift, "v_scale": v_scale,
                              "v_shift": v_shift}  # fmt: skip
    check_device(op, k=k, v=v, k_cache=k_cache, v_cache=v_cache, position=position, **tables)
    _check_heads(op, "k", k)
    check_shape(op, "v", v, tuple(k.shape))
    check_dtype(op, "v", v, *FLOATS)
    _check_cache(op, k, k_cache, v_cache)
    _check_head_tables(op, k, **tables)
    check_dtype(op, "position", position, torch.int32)


@torch.library.register_fake("ptq4arvg::store_qkv")
def _(
    qkv, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, *, norm="none", eps=1e-6,
    q_weight=None, q_bias=None, k_weight=None, k_bias=None, rotation=None, q_factors=None,
    q_factor=1.0, position=None,
):  # fmt: skip
    op, tables = "store_qkv", {"k_scale": k_scale, "k_shift": k_shift, "v_scale": v_scale,
                               "v_shift": v_shift}  # fmt: skip
    vectors = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
    check_device(op, qkv=qkv, k_cache=k_cache, v_cache=v_cache, **tables, **vectors,
                  q_factors=q_factors, rotation=rotation, position=position)  # fmt: skip
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise RuntimeError(f"{op}: qkv has shape {list(qkv.shape)}, wanted [B, t, 3, H, d]")
    check_dtype(op, "qkv", qkv, *FLOATS)
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
        check_dtype(op, name, vector, *FLOATS)
        check_length(op, name, vector, size, "one for each channel of a head")
    check_dtype(op, "q_factors", q_factors, *FLOATS)
    check_length(op, "q_factors", q_factors, heads, "one for each head")
    check_dtype(op, "rotation", rotation, torch.float32)
    if rotation is not None:
        check_shape(op, "rotation", rotation, (tokens, size // 2, 2),
                     ": cosine and sine for every token and pair of channels")  # fmt: skip
    check_dtype(op, "position", position, torch.int32)
    return qkv.new_empty((images, tokens, heads, size))


def _check_attention(
    op: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, limits: Tensor | None,
    position: Tensor | None, **tables: Tensor,
) -> tuple[int, int, int]:  # fmt: skip
    """The shape of what attention gives."""
    check_device(
        op, q=q, k_cache=k_cache, v_cache=v_cache, limits=limits, position=position, **tables
    )
    _check_heads(op, "q", q)
    _check_cache(op, q, k_cache, v_cache)
    _check_head_tables(op, q, **tables)
    if limits is not None and position is not None:
        raise RuntimeError(f"{op}: limits and position are both given, wanted one of them")
    check_dtype(op, "limits", limits, torch.int32)
    check_length(op, "limits", limits, q.shape[2], "one for each query")
    check_dtype(op, "position", position, torch.int32)
    images, heads, tokens, size = q.shape
    return images, tokens, heads * size


@torch.library.register_fake("ptq4arvg::attention")
def _(
    q, k_cache, v_cache, k_scale, v_scale, v_shift, *, limits=None, position=None,
    out_dtype=torch.float32,
):  # fmt: skip
    op, tables = "attention", {"k_scale": k_scale, "v_scale": v_scale, "v_shift": v_shift}
    shape = _check_attention(op, q, k_cache, v_cache, limits, position, **tables)
    check_out_dtype(op, out_dtype)
    return q.new_empty(shape, dtype=out_dtype)


@torch.library.register_fake("ptq4arvg::attention_quantize")
def _(
    q, k_cache, v_cache, k_scale, v_scale, v_shift, *, out_inv_scale, out_zero, out_bits,
    limits=None, position=None, out_position=None, out_rotation=0,
):  # fmt: skip
    op, tables = "attention_quantize", {"k_scale": k_scale, "v_scale": v_scale, "v_shift": v_shift}
    shape = _check_attention(op, q, k_cache, v_cache, limits, position, **tables)
    check_device(op, q=q, out_inv_scale=out_inv_scale, out_zero=out_zero, out_position=out_position)
    check_bits(op, "out_bits", out_bits)
    tokens = 1 if out_inv_scale.numel() == 1 else q.shape[2]
    check_table(op, "out_inv_scale", out_inv_scale, tokens, "out_position")
    check_dtype(op, "out_zero", out_zero, torch.int32)
    check_dtype(op, "out_position", out_position, torch.int32)
    check_rotation(op, out_rotation, q.shape[3], "out_rotation", "d", MAX_EPILOGUE_ROTATION)
    return q.new_empty(shape, dtype=torch.int8)
