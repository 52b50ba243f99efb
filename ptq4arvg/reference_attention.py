"""Plain-torch specification of attention in integers over a cache of int8 keys and values.

As in `reference`, every element-wise step is one float32 operation with its own rounding, and all
sums are of integers: what a backend computes equals this bit for bit. Scales and shifts are static,
per head and channel. A shift of the keys adds the same to all scores of a query, and the softmax
takes it out again; one of the values adds itself to the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import larger, polynomial, power_of_two, quantize, scalar, smaller

__all__ = [
    "KEY_GROUP",
    "KEY_PANEL",
    "HEAD_NORMS",
    "MAX_HEAD_SIZE",
    "MAX_KEYS",
    "attention",
    "attention_quantize",
    "empty_kv_cache",
    "kv_cache_shapes",
    "store_kv",
    "store_qkv",
    "unpack_kv",
]

# csrc/kernels/attention.h: keys of a panel; channels of a key, and keys of a channel of the values,
# that lie side by side; the largest head and cache.
KEY_PANEL, KEY_GROUP, MAX_HEAD_SIZE, MAX_KEYS = 16, 4, 128, 65536
HEAD_NORMS = ("none", "l2", "layer", "rms")  # of q and k


def kv_cache_shapes(
    images: int, heads: int, positions: int, size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the int8 keys and values that hold ``positions`` positions of every image.

    ValueError for heads of other than a multiple of 4 channels, up to 128.
    """
    if size % KEY_GROUP or not 0 < size <= MAX_HEAD_SIZE:
        raise ValueError(
            f"kv_cache_shapes: heads of {size} channels; wanted a multiple of {KEY_GROUP} up to "
            f"{MAX_HEAD_SIZE}"
        )
    panels = (positions + KEY_PANEL - 1) // KEY_PANEL
    keys = (images, heads, panels, size // KEY_GROUP, KEY_PANEL, KEY_GROUP)
    return keys, (images, heads, panels * KEY_PANEL // KEY_GROUP, size, KEY_GROUP)


def empty_kv_cache(
    images: int, heads: int, positions: int, size: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A cache of zeros: int8 keys and values, see `kv_cache_shapes`."""
    keys, values = (
        torch.zeros(shape, dtype=torch.int8, device=device)
        for shape in kv_cache_shapes(images, heads, positions, size)
    )
    return keys, values


def unpack_kv(k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of keys and values [B, H, positions, d], all that there is room for."""
    # [B, H, panels, d / 4, 16, 4] -> [B, H, panels, 16, d / 4, 4] -> [B, H, T, d]
    k = k_cache.transpose(3, 4).flatten(4).flatten(2, 3)
    # [B, H, T / 4, d, 4] -> [B, H, T / 4, 4, d] -> [B, H, T, d]
    return k, v_cache.transpose(3, 4).flatten(2, 3)


def _code(scaled: Tensor) -> Tensor:
    least, most = scalar(-127.0, scaled), scalar(127.0, scaled)
    return torch.round(smaller(larger(scaled, least), most)).to(torch.int8)


def store_kv(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, k_shift: Tensor,
    v_scale: Tensor, v_shift: Tensor, position: Tensor | None = None,
) -> None:  # fmt: skip
    """See `ptq4arvg.ops.store_kv`."""
    begin = 0 if position is None else int(position)
    at = torch.arange(begin, begin + k.shape[2], device=k.device)
    one = torch.ones((), device=k.device)
    k_codes, v_codes = (
        _code((x.float() - shift[:, None]) * (one / scale)[:, None])
        for x, scale, shift in ((k, k_scale, k_shift), (v, v_scale, v_shift))
    )
    # [B, H, t, d] -> [B, H, t, d / 4, 4]
    panels = k_cache.transpose(3, 4)  # [B, H, panels, 16, d / 4, 4]
    panels[:, :, at // KEY_PANEL, at % KEY_PANEL] = k_codes.unflatten(3, (-1, KEY_GROUP))
    groups = v_cache.transpose(3, 4)  # [B, H, T / 4, 4, d]
    groups[:, :, at // KEY_GROUP, at % KEY_GROUP] = v_codes


def _head_sum(x: Tensor) -> Tensor:
    """Sums over the last dimension, kept, in the order of csrc/kernels/store_kv.h."""
    x = torch.nn.functional.pad(x, (0, MAX_HEAD_SIZE - x.shape[-1]))
    x = (x[..., 0::4] + x[..., 1::4]) + (x[..., 2::4] + x[..., 3::4])
    while x.shape[-1] > 1:
        first, second = x.chunk(2, -1)
        x = first + second
    return x


def _square_root(x: Tensor) -> Tensor:
    """Rounded once; torch.sqrt of float32 is not, on some processors."""
    return torch.sqrt(x.double()).float()


def _normalize(x: Tensor, norm: str, eps: float) -> Tensor:
    one, size, least = (scalar(value, x) for value in (1.0, x.shape[-1], eps))
    if norm == "none":
        return x
    if norm == "l2":
        return x * (one / larger(_square_root(_head_sum(x * x)), least))
    if norm == "layer":
        x = x - _head_sum(x) / size
    return x * (one / _square_root(_head_sum(x * x) / size + least))


def store_qkv(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, k_shift: Tensor,
    v_scale: Tensor, v_shift: Tensor, *, norm: str = "none", eps: float = 1e-6,
    q_weight: Tensor | None = None, q_bias: Tensor | None = None,
    k_weight: Tensor | None = None, k_bias: Tensor | None = None,
    rotation: Tensor | None = None, q_factors: Tensor | None = None, q_factor: float = 1.0,
    position: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `ptq4arvg.ops.store_qkv`."""
    q, k, v = qkv.float().unbind(2)  # each [B, t, H, d]

    def prepared(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        x = _normalize(x, norm, eps)
        x = x if weight is None else x * weight.float()
        x = x if bias is None else x + bias.float()
        if rotation is None:
            return x
        cosine, sine = rotation[:, None].unbind(-1)  # each [t, 1, d / 2]
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)

    k = prepared(k, k_weight, k_bias).transpose(1, 2)  # [B, H, t, d]
    store_kv(
        k, v.transpose(1, 2), k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, position
    )  # fmt: skip
    factor = scalar(q_factor, q) if q_factors is None else q_factors.float()[:, None]
    return (prepared(q, q_weight, q_bias) * factor).to(qkv.dtype)


def _levels(y: Tensor) -> Tensor:
    """rne(255 * 2^y) for y <= 0, by a polynomial of relative error 7.5e-5; see attention.h."""
    y = larger(y, scalar(-24.0, y))
    n = torch.round(y)
    p = polynomial(y - n, (14.068731, 61.865789, 176.781553, 254.981662))
    return torch.round(p * power_of_two(n))


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, v_scale: Tensor, v_shift: Tensor,
    *, limits: Tensor | None = None, position: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """See `ptq4arvg.ops.attention`."""
    # Sums of integers in float64, which has bits for all of them.
    k, v = (codes.double() for codes in unpack_kv(k_cache, v_cache))  # [B, H, T, d]
    tokens = q.shape[2]
    if limits is None:
        limits = torch.full((tokens,), tokens + (0 if position is None else int(position)))
    seen = torch.arange(k.shape[2], device=q.device) < limits.to(q.device)[:, None]  # [t, T]
    u = q.float() * k_scale[:, None]
    top = u.abs().nan_to_num(torch.inf, torch.inf).amax(-1, keepdim=True)  # [B, H, t, 1]
    small, large = top < 1e-30, top > 1e30
    exponent = top * torch.tensor(1.44269504088896341 / 127.0, device=q.device)
    exponent = exponent.masked_fill(small, 0.0).masked_fill(large, torch.nan)
    inverse = torch.tensor(127.0, device=q.device) / top
    codes = _code(u * inverse.masked_fill(small | large, 0.0))
    scores = codes.double() @ k.transpose(2, 3)  # [B, H, t, T]
    most = scores.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    levels = _levels((scores - most).float() * exponent).masked_fill(~seen, 0.0)
    reciprocal = torch.ones((), device=q.device) / levels.sum(-1, keepdim=True)
    out = (levels.double() @ v).float() * reciprocal * v_scale[:, None] + v_shift[:, None]
    return out.transpose(1, 2).flatten(2).to(out_dtype)  # [B, H, t, d] -> [B, t, H d]


def attention_quantize(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, v_scale: Tensor, v_shift: Tensor,
    *, out_inv_scale: Tensor, out_zero: Tensor, out_bits: int, limits: Tensor | None = None,
    position: Tensor | None = None, out_position: Tensor | None = None, out_rotation: int = 0,
) -> Tensor:  # fmt: skip
    """See `ptq4arvg.ops.attention_quantize`."""
    y = attention(q, k_cache, v_cache, k_scale, v_scale, v_shift, limits=limits, position=position)
    tokens = 1 if len(out_inv_scale) == 1 else q.shape[2]
    return quantize(y, out_inv_scale, out_zero, out_bits, out_position, tokens, out_rotation)
