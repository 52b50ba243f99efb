"""The integer operators: typed face of ``torch.ops.ptq4arvg``, on CPU and under torch.compile.

Rows of an activation are laid out [images, tokens]; row m uses entry ``position + m % tokens`` of a
layer's tables over the positions of the sequence. ``tokens=0`` means the whole table; ``position``
is None for 0, or an int32 tensor of one element on the same device. Codes are int8: a level q is
stored as q - 128 at 8 bits and as q - zero at 6 and 4 bits. A weight's codes have their zero point
taken off. `reference` is the specification in plain torch. No operator has a gradient.

Bad arguments raise ValueError with the operator, the argument, what came and what was wanted
(``torch.ops.ptq4arvg`` itself raises RuntimeError with the same text).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import reference, reference_attention, reference_map
from .reference_attention import empty_kv_cache, kv_cache_shapes, unpack_kv

__all__ = [
    "ACTIVATIONS",
    "attention",
    "attention_quantize",
    "build_info",
    "conv2d",
    "cuda_kernel",
    "empty_kv_cache",
    "gate_quantize",
    "gemm",
    "gemm_float",
    "gemm_quantize",
    "isa",
    "kv_cache_shapes",
    "last_kernel",
    "list_kernels",
    "norm_quantize",
    "pack_weight",
    "packed_bytes",
    "quantize",
    "quantize_map",
    "reference",
    "reference_attention",
    "reference_map",
    "set_isa",
    "store_kv",
    "store_qkv",
    "unpack_kv",
    "unpack_weight",
]

ACTIVATIONS = tuple(reference.ACTIVATIONS)

_LIBRARY = Path(__file__).with_name("_C.so")


def _load() -> Any:
    """Load the op library and connect the introspection module to it."""
    if not _LIBRARY.is_file():
        raise ImportError(
            f"ptq4arvg's compiled operators are missing ({_LIBRARY} does not exist). Build them: "
            "`pip install .` in the source folder, or `python setup.py build_ext --inplace`."
        )
    torch.ops.load_library(str(_LIBRARY))
    try:
        from . import _info
    except ImportError as error:
        raise ImportError(
            f"ptq4arvg's introspection module cannot be imported ({error}). It is built for one "
            "version of Python: run `pip install .` again with this one."
        ) from error
    _info.load(str(_LIBRARY))
    _info.isa()  # a bad PTQ4ARVG_CPU_ISA is an error now, not in the middle of a run
    return _info


_info = _load()

_OPS = torch.ops.ptq4arvg

# Registers the fake kernels of the operators just loaded.
from . import _fake, _fake_attention, _fake_map  # noqa: E402, F401


def _call(name: str, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the operator; our own messages become ValueError, anything else passes.

    Absent options are left out, since torch takes about a microsecond to parse each.
    """
    given = {key: value for key, value in kwargs.items() if value is not None}
    if torch.compiler.is_compiling():
        return op(*args, **given)
    try:
        return op(*args, **given)
    except RuntimeError as error:
        if str(error).startswith(f"{name}: "):
            raise ValueError(str(error)) from None
        raise


def pack_weight(codes: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """Weight codes int8 [N, K] -> 1-D uint8 in the kernel layout of their device.

    At 8 bits codes lie in [-127, 127]. At 6 and 4 bits code + zero is a level in [0, 2^bits - 1];
    zero is int32 [N], None means 2^(bits - 1) throughout. ``bits`` bits a weight, plus padding to
    16 columns and 4 k, plus 64 bytes for each 16 columns.
    """
    return _call("pack_weight", _OPS.pack_weight.default, codes, zero, bits)


def unpack_weight(packed: Tensor, zero: Tensor | None, bits: int, n: int, k: int) -> Tensor:
    """The inverse of `pack_weight`: int8 [n, k]."""
    return _call("unpack_weight", _OPS.unpack_weight.default, packed, zero, bits, n, k)


def quantize(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int,
    position: Tensor | None = None, tokens: int = 0, rotation: int = 0,
) -> Tensor:  # fmt: skip
    """Codes int8 of x [..., K] (float32, bfloat16 or float16).

    q = clamp(rne(x * inv_scale[t]) + zero[t], 0, 2^bits - 1). Tables inv_scale float32 [T] and zero
    int32 [T], the level of zero. NaN becomes level 0. rotation: first apply `reference.rotate` to
    blocks of so many columns in float32, a power of two up to 128 that divides K; 0 does not.
    """
    return _call(
        "quantize", _OPS.quantize.default, x, inv_scale, zero, bits, position, tokens,
        rotation=rotation or None,
    )  # fmt: skip


def gate_quantize(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int, *, activation: str = "silu",
    position: Tensor | None = None, tokens: int = 0, rotation: int = 0,
) -> Tensor:  # fmt: skip
    """`quantize` of a gated product (SwiGLU): int8 [..., K] of x [..., 2 K].

    The product is activation(x[..., :K]) * x[..., K:], in float32.
    """
    return _call(
        "gate_quantize", _OPS.gate_quantize.default, x, inv_scale, zero, bits,
        activation=activation, position=position, tokens=tokens or None, rotation=rotation or None,
    )  # fmt: skip


def gemm(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None = None,
    w_sum: Tensor | None = None, w_zero: Tensor | None = None, bias: Tensor | None = None, *,
    bits: int = 8, position: Tensor | None = None, tokens: int = 0, activation: str = "none",
    residual: Tensor | None = None, gate: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Codes a int8 [..., K] times the packed weight w of ``bits`` bits -> [..., N] in out_dtype.

    residual + gate * activation(y), y = a_scale[t] (w_scale[n] (acc - a_zero[t] w_sum[n])) + bias,
    with acc the exact int32 sum; out_dtype is float32, bfloat16 or float16. Tables: a_scale float32
    [T]; a_zero int32 [T], the residual zero point of the stored codes (level of zero - 128 at 8
    bits, None at 6 and 4 bits). Columns: w_scale float32 [N]; w_zero int32 [N] as packed; w_sum
    int32 [N], None for the sums kept in w; bias [N]. gate [images, N], residual [..., N].
    """
    return _call(
        "gemm", _OPS.gemm.default, a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias,
        bits=bits, position=position, tokens=tokens, activation=activation, residual=residual,
        gate=gate, out_dtype=None if out_dtype == torch.float32 else out_dtype,
    )  # fmt: skip


def gemm_quantize(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None = None,
    w_sum: Tensor | None = None, w_zero: Tensor | None = None, bias: Tensor | None = None, *,
    out_inv_scale: Tensor, out_zero: Tensor, out_bits: int, bits: int = 8,
    position: Tensor | None = None, tokens: int = 0, activation: str = "none",
    residual: Tensor | None = None, gate: Tensor | None = None, out_rotation: int = 0,
) -> Tensor:  # fmt: skip
    """`gemm`, its float32 result quantized to the next layer's codes: int8 [..., N].

    out_inv_scale float32 [T'], out_zero int32 [T']: that layer's tables, at the same positions.
    out_rotation: of the result before that, as in `quantize`, in blocks of at most
    ``reference.MAX_EPILOGUE_ROTATION`` columns.
    """
    return _call(
        "gemm_quantize", _OPS.gemm_quantize.default, a, w, a_scale, w_scale, a_zero, w_sum,
        w_zero, bias, out_inv_scale=out_inv_scale, out_zero=out_zero, out_bits=out_bits, bits=bits,
        position=position, tokens=tokens, activation=activation, residual=residual, gate=gate,
        out_rotation=out_rotation or None,
    )  # fmt: skip


def norm_quantize(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int, *, weight: Tensor | None = None,
    bias: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None,
    constant: Tensor | None = None, post_scale: Tensor | None = None,
    post_shift: Tensor | None = None, eps: float = 1e-6, rms: bool = False,
    position: Tensor | None = None, tokens: int = 0, rotation: int = 0,
) -> Tensor:  # fmt: skip
    """LayerNorm (or RMSNorm), AdaLN modulation and `quantize` of x [..., K] in one pass: int8.

    n = (x - mean) rstd, statistics in float64; n = n weight + bias; u = n (constant + scale[image])
    + shift[image]; u = u post_scale + post_shift. All optional: weight, bias, constant (1 where
    absent), post_scale, post_shift [K]; scale, shift [images, K], for images * tokens rows.
    rotation: of u, as in `quantize`.
    """
    return _call(
        "norm_quantize", _OPS.norm_quantize.default, x, inv_scale, zero, bits, weight=weight,
        bias=bias, scale=scale, shift=shift, constant=constant, post_scale=post_scale,
        post_shift=post_shift, eps=eps, rms=rms, position=position, tokens=tokens,
        rotation=rotation or None,
    )  # fmt: skip


def gemm_float(
    x: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor | None = None,
    bias: Tensor | None = None, *, bits: int = 8, activation: str = "none",
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Float activations x [..., K] on the packed weight: activation(w_scale (x . w) + bias).

    The result of a row does not depend on the other rows of the call.
    """
    return _call(
        "gemm_float", _OPS.gemm_float.default, x, w, w_scale, w_zero, bias, bits=bits,
        activation=activation, out_dtype=None if out_dtype == torch.float32 else out_dtype,
    )  # fmt: skip


def quantize_map(
    x: Tensor, inv_scale: Tensor, zero: Tensor, bits: int, *, groups: int = 0,
    weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6,
    activation: str = "none", scale: int = 1, border: int = 0,
) -> Tensor:  # fmt: skip
    """Codes int8 of a map x [B, H, W, C] for `conv2d`, [B, s H + 2 b, s W + 2 b, C].

    GroupNorm over ``groups`` groups of channels with weight and bias [C] (0 groups: none), then
    ``activation``, then `quantize` by inv_scale float32 [1] and zero int32 [1]; every pixel is
    repeated ``scale`` (s) times both ways, up to 8, and ``border`` (b, up to 8) pixels around have
    the code of zero. x, weight and bias are float32, float16 or bfloat16, each its own.
    """
    return _call(
        "quantize_map", _OPS.quantize_map.default, x, inv_scale, zero, bits, groups=groups,
        weight=weight, bias=bias, eps=eps, activation=activation, scale=scale, border=border,
    )  # fmt: skip


def conv2d(
    a: Tensor, w: Tensor, a_scale: Tensor, w_scale: Tensor, a_zero: Tensor | None = None,
    w_sum: Tensor | None = None, w_zero: Tensor | None = None, bias: Tensor | None = None, *,
    bits: int = 8, kernel_size: int = 3, activation: str = "none", residual: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Convolution of codes a int8 [B, H + k - 1, W + k - 1, C], border and all -> [B, H, W, N].

    `gemm` of the patches of ``kernel_size`` (k) by k pixels with the packed weight [N, k k C],
    whose columns are in the order of `reference_map.conv_columns`; stride 1. a_scale [1], a_zero
    [1], residual [B, H, W, N]; the rest as for `gemm`, whose kernels run where k is 1.
    """
    return _call(
        "conv2d", _OPS.conv2d.default, a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias,
        bits=bits, kernel_size=kernel_size, activation=activation, residual=residual,
        out_dtype=None if out_dtype == torch.float32 else out_dtype,
    )  # fmt: skip


def store_kv(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, k_shift: Tensor,
    v_scale: Tensor, v_shift: Tensor, position: Tensor | None = None,
) -> None:  # fmt: skip
    """Quantize k and v [B, H, t, d] into a cache, from ``position`` on.

    code = clamp(rne((x - shift) / scale), -127, 127), the division as a product with 1 / scale.
    Caches int8 in the shapes of `kv_cache_shapes`, contiguous but for gaps between images; scales
    and shifts float32 [H, d]; position int32 of one element, None for 0.
    """
    _call(
        "store_kv", _OPS.store_kv.default, k, v, k_cache, v_cache, k_scale, k_shift, v_scale,
        v_shift, position=position,
    )  # fmt: skip


def store_qkv(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, k_shift: Tensor,
    v_scale: Tensor, v_shift: Tensor, *, norm: str = "none", eps: float = 1e-6,
    q_weight: Tensor | None = None, q_bias: Tensor | None = None,
    k_weight: Tensor | None = None, k_bias: Tensor | None = None,
    rotation: Tensor | None = None, q_factors: Tensor | None = None, q_factor: float = 1.0,
    position: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`store_kv` of what a linear gives, qkv [B, t, 3, H, d]; returns q [B, t, H, d], its dtype.

    On the way, in float32: heads of q and k are normalized (``norm``: "none"; "l2", division by the
    length or ``eps``, what is larger; "layer"; "rms"), get weight and bias [d], and neighbouring
    channels are turned by ``rotation`` float32 [t, d / 2, 2] (cosine and sine of every token and
    pair). q is multiplied by ``q_factors`` [H], or by ``q_factor`` where there are none. qkv,
    weights, biases and factors are float32, float16 or bfloat16, each its own. The rest as for
    `store_kv`.
    """
    return _call(
        "store_qkv", _OPS.store_qkv.default, qkv, k_cache, v_cache, k_scale, k_shift, v_scale,
        v_shift, norm=None if norm == "none" else norm, eps=eps, q_weight=q_weight, q_bias=q_bias,
        k_weight=k_weight, k_bias=k_bias, rotation=rotation, q_factors=q_factors,
        q_factor=None if q_factor == 1.0 else q_factor, position=position,
    )  # fmt: skip


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, v_scale: Tensor, v_shift: Tensor,
    *, limits: Tensor | None = None, position: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Softmax attention of q [B, H, t, d] to a cache that was stored to -> [B, t, H d].

    q is already scaled: the softmax is that of q . k. Every query is quantized by its own greatest
    magnitude; scores, probabilities (8 bits, relative to the greatest of a query) and the sums over
    the values are integers, see `reference_attention.attention`. limits int32 [t]: query i attends
    to the first limits[i] positions. Without it all attend to the first position + t. out_dtype as
    in `gemm`. A query with infinite or NaN channels has NaN for its output.
    """
    return _call(
        "attention", _OPS.attention.default, q, k_cache, v_cache, k_scale, v_scale, v_shift,
        limits=limits, position=position,
        out_dtype=None if out_dtype == torch.float32 else out_dtype,
    )  # fmt: skip


def attention_quantize(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, v_scale: Tensor, v_shift: Tensor,
    *, out_inv_scale: Tensor, out_zero: Tensor, out_bits: int, limits: Tensor | None = None,
    position: Tensor | None = None, out_position: Tensor | None = None, out_rotation: int = 0,
) -> Tensor:  # fmt: skip
    """`attention`, its float32 result quantized to the next layer's codes: int8 [B, t, H d].

    out_inv_scale float32 [T'], out_zero int32 [T']: that layer's tables over positions, the first
    query's being ``out_position`` (int32 of one element, None for 0); or of one entry, for all
    queries. out_rotation: of the result before that, as in `quantize`, in blocks of at most
    ``reference.MAX_EPILOGUE_ROTATION`` columns, which divide d.
    """
    return _call(
        "attention_quantize", _OPS.attention_quantize.default, q, k_cache, v_cache, k_scale,
        v_scale, v_shift, out_inv_scale=out_inv_scale, out_zero=out_zero, out_bits=out_bits,
        limits=limits, position=position, out_position=out_position,
        out_rotation=out_rotation or None,
    )  # fmt: skip


def packed_bytes(n: int, k: int, bits: int, device: str = "cpu") -> int:
    """Size of a packed [n, k] weight on a kind of device (cpu or cuda), in bytes."""
    return _fake.packed_bytes(n, k, bits, device)


def cuda_kernel(m: int, n: int, k: int, bits: int, sm: int) -> tuple[str, str]:
    """Which kernel `gemm` takes for [m, k] times [n, k] on compute capability sm, and why.

    Answers without a device: sm is 80, 86, 89 or 90. PTQ4ARVG_CUDA_KERNEL counts. ValueError where
    the build has no CUDA kernels, a size is out of range, or that variable names no fitting kernel.
    """
    if min(m, n, k) < 1 or bits not in (4, 6, 8) or sm < 80:
        raise ValueError(
            f"cuda_kernel: m {m}, n {n}, k {k}, bits {bits}, sm {sm}; wanted sizes of 1 or more, "
            "4, 6 or 8 bits and sm of 80 or more"
        )
    return _info.cuda_kernel(m, n, k, bits, sm)


def isa() -> str:
    """The CPU instruction set in use (PTQ4ARVG_CPU_ISA).

    On x86 amx_int8, avx512_vnni, avx_vnni, avx2 or scalar; on Arm neon_dotprod or scalar.
    """
    return _info.isa()


def set_isa(name: str) -> str:
    """Use this CPU instruction set from now on, '' for the default; ValueError if there is none."""
    return _info.set_isa(name)


def last_kernel() -> str:
    """Name of the kernel that ran last in this process, such as 'gemm.w6.avx2'; '' before any."""
    return _info.last_kernel()


def list_kernels() -> list[dict[str, Any]]:
    """All compiled kernels: name, op, device, isa, weight_bits (or None), available (here).

    device is cpu or cuda; isa is then the oldest architecture that has the kernel, such as sm_80.
    """
    return _info.list_kernels()


def build_info() -> dict[str, Any]:
    """How the library was built, and what of it this machine can use.

    version, compiler, cplusplus, optimized, torch_headers, torch_target (the oldest torch it
    runs in), compiled_isas, available_isas, cuda (are CUDA kernels in?), cuda_archs.
    """
    return _info.build_info()
