"""Plain-torch specification of every operator: what each backend must compute.

Integer outputs, and the float outputs of `gemm`, equal the kernels' bit for bit: every element-wise
step below is one float32 operation with its own rounding, in the order written. `gemm_float` sums
in float64 here, and backends only have to come close. Arguments are those of `ptq4arvg.ops`; rows
are laid out [images, tokens] and row m uses table entry position + m % tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "MAX_EPILOGUE_ROTATION",
    "MAX_ROTATION",
    "activate",
    "dequantize",
    "gate_quantize",
    "gemm",
    "gemm_float",
    "gemm_quantize",
    "hadamard_",
    "larger",
    "norm_quantize",
    "pack_weight",
    "quantize",
    "rotate",
    "rotation_fits",
    "scalar",
    "smaller",
    "unpack_weight",
]


MAX_ROTATION = 128  # columns of a block, csrc/kernels/rotation.h
MAX_EPILOGUE_ROTATION = 16  # the same in a GEMM's epilogue


def scalar(value: float, like: Tensor) -> Tensor:
    """A float32 scalar, so that no step is carried out in Python's float64."""
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def larger(a: Tensor, b: Tensor) -> Tensor:
    """max(a, b), and b where a is NaN."""
    return torch.where(a > b, a, b)


def smaller(a: Tensor, b: Tensor) -> Tensor:
    """min(a, b), and b where a is NaN."""
    return torch.where(a < b, a, b)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c of float32 tensors, rounded once."""
    product, c = a.double() * b.double(), c.double()  # a product of two is exact in float64
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)  # what that sum rounded away, exactly
    # Rounded to odd, a number of float64 tells what it is to be rounded to in float32.
    bits = total.view(torch.int64)
    lost = (error != 0) & total.isfinite() & (bits & 1 == 0)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(lost, bits + step, bits).view(torch.float64).float()


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, highest power first."""
    y = scalar(coefficients[0], x).expand_as(x)
    for c in coefficients[1:]:
        y = fused(y, x, scalar(c, x))
    return y


def exponential(x: Tensor) -> Tensor:
    """exp(x) for float32 x, clamped to [-87, 87]; x = n ln 2 + r, then a polynomial in r."""
    x = smaller(larger(x, scalar(-87.0, x)), scalar(87.0, x))
    shift = scalar(1.5 * 2**23, x)  # its sums are integers
    n = fused(x, scalar(1.44269504088896341, x), shift) - shift
    r = fused(n, scalar(2.12194440e-4, x), fused(n, scalar(-0.693359375, x), x))
    p = polynomial(
        r,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
         5.0000001201e-1, 1.0, 1.0),
    )  # fmt: skip
    return p * power_of_two(n)


def power_of_two(n: Tensor) -> Tensor:
    """2^n for integral n in [-126, 127], float32."""
    return ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def _silu(x: Tensor) -> Tensor:
    one = scalar(1.0, x)
    return x * (one / (one + exponential(x * scalar(-1.0, x))))


def _gelu_tanh(x: Tensor) -> Tensor:
    one = scalar(1.0, x)
    slope = fused(x * x, scalar(-0.0713548162726, x), scalar(-1.59576912161, x))
    return x * (one / (one + exponential(x * slope)))


def _gelu(x: Tensor) -> Tensor:
    one = scalar(1.0, x)
    t = one / fused(smaller(x.abs(), scalar(2.0**60, x)), scalar(0.2316419, x), one)
    q = polynomial(
        t,
        (-0.07115190476179123, 0.25082361698150635, -0.20728987455368042, 0.23069390654563904,
         0.010500079952180386, 0.10364207625389099, 0.0902474969625473, 0.09253464639186859),
    )  # fmt: skip
    # Cut off so that no tail is subnormal.
    power = larger((x * x) * scalar(-0.5, x), scalar(-75.0, x))
    tail = (q * t) * exponential(power)
    return x * torch.where(x < 0, tail, one - tail)


ACTIVATIONS = {"none": lambda x: x, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu}


def activate(name: str, x: Tensor) -> Tensor:
    """Activation `name` of float32 x, as the kernels' epilogues compute it."""
    return ACTIVATIONS[name](x)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])  # [..., K] -> [M, K]


def _position_of_rows(count: int, position: Tensor | None, tokens: int, table: Tensor) -> Tensor:
    """Table index of each of `count` rows, int64 [M]."""
    first = 0 if position is None else int(position)
    return first + torch.arange(count, device=table.device) % (tokens or len(table))


def _image_rows(values: Tensor, count: int, tokens: int) -> Tensor:
    """Rows [images, N] (any leading dimensions) repeated for each token, float32 [M, N]."""
    images = torch.arange(count, device=values.device) // tokens
    return _rows(values).float()[images]


def rotation_fits(block: int, k: int, most: int = MAX_ROTATION) -> bool:
    """Whether k columns can be rotated in such blocks: 0, or powers of two that divide k."""
    power = 2 <= block <= most and block & (block - 1) == 0
    return block == 0 or (power and k % block == 0)


def _column_signs(count: int) -> Tensor:
    """The Golay-Rudin-Shapiro sequence of 128, repeated: float32 [count]."""
    k = torch.arange(count) % MAX_ROTATION
    pairs = k & (k >> 1)  # of neighbouring ones
    odd = sum(pairs >> i & 1 for i in range(6)) % 2
    return 1.0 - 2.0 * odd


def rotate(x: Tensor, block: int) -> Tensor:
    """x [..., K] with signs and a Hadamard matrix (entries +1, -1) over each ``block`` columns.

    Unlike a rotation it makes vectors sqrt(block) times longer. In the dtype of x; block 0 leaves
    it as it is, otherwise it is a power of two up to 128 that divides K.
    """
    if not block:
        return x
    return hadamard_(x * _column_signs(x.shape[-1]).to(x), block)


def hadamard_(x: Tensor, block: int) -> Tensor:
    """x [..., K] times Sylvester's matrix (entries +1, -1) over each ``block`` columns, a power of
    two that divides K. x is overwritten.
    """
    y = x.contiguous()
    spare = torch.empty_like(y)
    stride = 1
    while stride < block:
        runs, sums = (t.view(-1, 2, stride) for t in (y, spare))  # [..., K] -> [pairs, 2, stride]
        torch.add(runs[:, 0], runs[:, 1], out=sums[:, 0])
        torch.sub(runs[:, 0], runs[:, 1], out=sums[:, 1])
        y, spare, stride = spare, y, 2 * stride
    return y


def _stored_codes(x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """float32 x [M, K] with tables [M] -> int8 codes [M, K]."""
    inv_scale, zero = inv_scale[:, None], zero[:, None]
    low = (-zero).float()
    high = ((1 << bits) - 1 - zero).float()
    v = torch.round(smaller(larger(x * inv_scale, low), high)).to(torch.int32)
    return (v + zero - 128 if bits == 8 else v).to(torch.int8)


def _default_zero(bits: int) -> int:
    return 0 if bits == 8 else 1 << (bits - 1)


def pack_weight(codes: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Codes int8 [N, K] -> uint8 [N * K]: one level a byte; a backend's layout is its own."""
    if bits == 8:
        if codes.numel() and int(codes.min()) < -127:
            raise ValueError("pack_weight: codes must lie in [-127, 127] at 8 bits")
        return codes.contiguous().view(torch.uint8).flatten()
    shift = _default_zero(bits) if zero is None else zero[:, None].to(torch.int32)
    level = codes.to(torch.int32) + shift
    if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < 1 << bits:
        raise ValueError(f"pack_weight: codes + zero must be levels of {bits} bits")
    return level.to(torch.uint8).flatten()


def unpack_weight(packed: Tensor, zero: Tensor | None, bits: int, n: int, k: int) -> Tensor:
    """The inverse of `pack_weight`: int8 [n, k]."""
    if bits == 8:
        return packed.view(torch.int8).reshape(n, k).clone()
    shift = _default_zero(bits) if zero is None else zero[:, None].to(torch.int32)
    return (packed.reshape(n, k).to(torch.int32) - shift).to(torch.int8)


def quantize(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int,
    position: Tensor | None = None, tokens: int = 0, rotation: int = 0,
) -> Tensor:  # fmt: skip
    """Codes int8 of x [..., K]; see `ptq4arvg.ops.quantize`."""
    rows = rotate(_rows(x).float(), rotation)
    t = _position_of_rows(len(rows), position, tokens, inv_scale)
    return _stored_codes(rows, inv_scale[t], zero[t], bits).reshape(x.shape)


def gate_quantize(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int, *, activation: str = "silu",
    position: Tensor | None = None, tokens: int = 0, rotation: int = 0,
) -> Tensor:  # fmt: skip
    """Codes int8 of a gated product, x [..., 2 K]; see `ptq4arvg.ops.gate_quantize`."""
    gates, values = x.float().chunk(2, -1)
    y = activate(activation, gates) * values
    return quantize(y, inv_scale, zero, bits, position, tokens, rotation)


def _gemm_rows(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None,
    w_sum: Tensor | None, w_zero: Tensor | None, bias: Tensor | None, bits: int,
    position: Tensor | None, tokens: int, activation: str, residual: Tensor | None,
    gate: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The float32 result [M, N] before its cast, and each row's table index [M]."""
    rows, n = _rows(a), len(w_scale)
    weight = unpack_weight(w, w_zero, bits, n, rows.shape[1])
    t = _position_of_rows(len(rows), position, tokens, a_scale)
    # float64 holds these sums exactly (below 2^53).
    acc = (rows.double() @ weight.double().T).to(torch.int32)
    y = dequantize(acc, weight, a_scale[t, None], w_scale, a_zero, w_sum, bias, activation, t)
    if gate is not None:
        y = _image_rows(gate, len(rows), tokens or len(a_scale)) * y
    if residual is not None:
        y = _rows(residual).float() + y
    return y, t


def dequantize(
    acc: Tensor, weight: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None,
    w_sum: Tensor | None, bias: Tensor | None, activation: str, t: Tensor,
) -> Tensor:  # fmt: skip
    """activation(y) in float32 of sums int32 [M, N] by a weight [N, K]; a_scale [M, 1], and t [M]:
    the entry of a_zero that each row takes."""
    if a_zero is not None:
        sums = weight.sum(1, dtype=torch.int32) if w_sum is None else w_sum
        acc = acc - a_zero[t, None] * sums
    y = a_scale * (w_scale * acc.float())
    if bias is not None:
        y = y + bias.float()
    return activate(activation, y)


def gemm(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None = None,
    w_sum: Tensor | None = None, w_zero: Tensor | None = None, bias: Tensor | None = None, *,
    bits: int = 8, position: Tensor | None = None, tokens: int = 0, activation: str = "none",
    residual: Tensor | None = None, gate: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Integer product with the float epilogue, [..., N]; see `ptq4arvg.ops.gemm`."""
    y, _ = _gemm_rows(
        a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation,
        residual, gate,
    )  # fmt: skip
    return y.to(out_dtype).reshape(*a.shape[:-1], len(w_scale))


def gemm_quantize(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None = None,
    w_sum: Tensor | None = None, w_zero: Tensor | None = None, bias: Tensor | None = None, *,
    out_inv_scale: Tensor, out_zero: Tensor, out_bits: int, bits: int = 8,
    position: Tensor | None = None, tokens: int = 0, activation: str = "none",
    residual: Tensor | None = None, gate: Tensor | None = None, out_rotation: int = 0,
) -> Tensor:  # fmt: skip
    """`gemm` whose float32 result goes straight to the next layer's codes, int8 [..., N]."""
    y, t = _gemm_rows(
        a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation,
        residual, gate,
    )  # fmt: skip
    codes = _stored_codes(rotate(y, out_rotation), out_inv_scale[t], out_zero[t], out_bits)
    return codes.reshape(*a.shape[:-1], len(w_scale))


def norm_quantize(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int, *, weight: Tensor | None = None,
    bias: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None,
    constant: Tensor | None = None, post_scale: Tensor | None = None,
    post_shift: Tensor | None = None, eps: float = 1e-6, rms: bool = False,
    position: Tensor | None = None, tokens: int = 0, rotation: int = 0,
) -> Tensor:  # fmt: skip
    """Norm, modulation and quantization of x [..., K]; see `ptq4arvg.ops.norm_quantize`."""
    rows = _rows(x).float()
    t = _position_of_rows(len(rows), position, tokens, inv_scale)
    period = tokens or len(inv_scale)
    wide = rows.double()
    mean = torch.zeros_like(wide[:, :1]) if rms else wide.mean(1, keepdim=True)
    variance = (wide - mean).square().mean(1, keepdim=True)
    rstd = (1.0 / torch.sqrt(variance + eps)).float()
    y = (rows if rms else rows - mean.float()) * rstd
    if weight is not None:
        y = y * weight.float()
    if bias is not None:
        y = y + bias.float()
    if scale is not None:
        one = scalar(1.0, y) if constant is None else constant.float()
        y = y * (one + _image_rows(scale, len(rows), period))
    elif constant is not None:
        y = y * constant.float()
    if shift is not None:
        y = y + _image_rows(shift, len(rows), period)
    if post_scale is not None:
        y = y * post_scale.float()
    if post_shift is not None:
        y = y + post_shift.float()
    y = rotate(y, rotation)
    return _stored_codes(y, inv_scale[t], zero[t], bits).reshape(x.shape)


def gemm_float(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None = None,
    bias: Tensor | None = None, *, bits: int = 8, activation: str = "none",
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Float activations on packed weights, [..., N]; the sum is in float64, rounded once."""
    rows, n = _rows(x), len(w_scale)
    weight = unpack_weight(w, w_zero, bits, n, rows.shape[1])
    y = w_scale * (rows.double() @ weight.double().T).float()
    if bias is not None:
        y = y + bias.float()
    return activate(activation, y).to(out_dtype).reshape(*x.shape[:-1], n)
