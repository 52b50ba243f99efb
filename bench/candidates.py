"""What bench/kernels.py times: our operators, and what torch offers for the same work.

Every builder returns {name: Case}. A case makes a call on its own copy of the weights, so that
calls on enough copies find none of them in a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from shapes import Linear
from steps import first_line
from torch import Tensor
from torch.nn import functional as F

from ptq4arvg import ops, reference
from ptq4arvg.numerics import rotation_block

__all__ = [
    "PEERS", "ROW_PEERS", "Case", "Refused", "activation_bits", "compile_once", "gemm_cases",
    "our_cases", "row_cases",
]  # fmt: skip

# Names of torch's candidates, in the order of the columns of ratios.
PEERS = ("float32", "bfloat16", "int_mm", "int_mm_compiled", "qlinear")
ROW_PEERS = ("torch", "torch_compiled", "copy")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class Refused(Exception):
    """This candidate cannot run here; the text says why."""


@dataclass(frozen=True)
class Case:
    """One candidate. make: a new call, on its own copy of the weights.

    weight_bytes: of one copy; bits: of our weights or codes, 0 for torch's candidates; moved: bytes
    read and written at least, of a GEMM its weight.
    """

    make: Callable[[], Callable[[], Any]]
    weight_bytes: int = 0
    bits: int = 0
    moved: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "moved", self.moved or self.weight_bytes)


def activation_bits(w_bits: int) -> int:
    """Bits of the input that goes with weights of ``w_bits`` bits: W8A8, W6A6, W4A8."""
    return 6 if w_bits == 6 else 8


def _random(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device=device) * scale


def _codes(*shape: int, bits: int, device: str) -> Tensor:
    half = 2 ** (bits - 1) - 1
    return torch.randint(-half, half + 1, shape, dtype=torch.int8, device=device)


def _epilogue(
    acc: Tensor, a_scale: Tensor, a_zero: Tensor, w_scale: Tensor, w_sum: Tensor, bias: Tensor,
    activation: str,
) -> Tensor:  # fmt: skip
    """The epilogue of a layer with static scales per position, in torch: [M, N] float32."""
    y = (acc - a_zero * w_sum).float() * (a_scale * w_scale) + bias
    return ACTIVATIONS[activation](y)


def _int_mm(a: Tensor, w: Tensor, *rest: Any) -> Tensor:
    return _epilogue(torch._int_mm(a, w.t()), *rest)


_kept: dict[Callable, Callable] = {}


def compile_once(function: Callable) -> Callable:
    """torch.compile, once for all shapes; kept between cells."""
    if function not in _kept:
        _kept[function] = torch.compile(function, dynamic=True)
    return _kept[function]


def _try(make: Callable[[], Callable[[], Any]]) -> None:
    """Refused if a call fails, with the first line of the reason."""
    try:
        make()()
    except Exception as error:  # the backends have no common type
        raise Refused(first_line(error)) from None


@functools.lru_cache(maxsize=4)  # packing takes longer than what is measured
def _weights(n: int, k: int, bits: int, device: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """Random weights: packed, their zero points, and the sums of their codes."""
    # Signed codes without a zero point at 8 bits; levels around one below.
    codes = _codes(n, k, bits=bits, device=device)
    zero = None
    if bits < 8:
        zero = torch.full((n,), 2 ** (bits - 1), dtype=torch.int32, device=device)
    return ops.pack_weight(codes, zero, bits), zero, codes.sum(1, dtype=torch.int32)


def our_cases(
    linear: Linear, m: int, bits: int, device: str, rotate: bool = False
) -> dict[str, Case]:
    """gemm (float32 out), gemm_quantize (codes out) and bare (without an epilogue) of M rows.

    "separate": gemm_quantize in three calls: a bfloat16 product, its activation in torch,
    `ops.quantize`. rotate: these two rotate their results.
    """
    n, k, a_bits = linear.n, linear.k, activation_bits(bits)
    a = _codes(m, k, bits=a_bits, device=device)
    half = 2 ** (bits - 1)
    packed, zero, w_sum = _weights(n, k, bits, device)
    a_scale, w_scale = torch.rand(m, device=device) + 0.5, torch.rand(n, device=device) + 0.5
    a_scale, w_scale = a_scale / 2**a_bits, w_scale / (half * k**0.5)
    a_zero = torch.randint(-9, 10, (m,), dtype=torch.int32, device=device) if a_bits == 8 else None
    bias = _random(n, device=device)
    plain = {"bits": bits, "tokens": m, "w_zero": zero}
    full = plain | {"a_zero": a_zero, "w_sum": w_sum, "bias": bias, "activation": linear.activation}
    block, suffix = 0, ""
    if rotate:
        block, suffix = rotation_block(n, reference.MAX_EPILOGUE_ROTATION), ".rotated"
    inv_scale = torch.full((m,), 20.0 * max(block, 1) ** -0.5, device=device)
    out_zero = torch.full((m,), 2 ** (a_bits - 1), dtype=torch.int32, device=device)
    out = {
        "out_inv_scale": inv_scale, "out_zero": out_zero, "out_bits": a_bits, "out_rotation": block,
    }  # fmt: skip

    def separate(*args: Any, activation: str, **options: Any) -> Tensor:
        y = ACTIVATIONS[activation](ops.gemm(*args, **options, out_dtype=torch.bfloat16))
        return ops.quantize(y, inv_scale, out_zero, a_bits, tokens=m, rotation=block)

    def make(op: Callable, options: dict[str, Any]) -> Callable[[], Callable[[], Any]]:
        def new() -> Callable[[], Any]:
            own = packed.clone()
            return lambda: op(a, own, a_scale, w_scale, **options)

        return new

    cases = {
        f"gemm.w{bits}": make(ops.gemm, full),
        f"gemm_quantize.w{bits}{suffix}": make(ops.gemm_quantize, full | out),
        f"separate.w{bits}{suffix}": make(separate, full),
        f"bare.w{bits}": make(ops.gemm, plain),
    }
    return {name: Case(new, packed.numel(), bits) for name, new in cases.items()}


def _float_peer(linear: Linear, m: int, dtype: torch.dtype, device: str) -> Case:
    x = _random(m, linear.k, device=device).to(dtype)
    weight = _random(linear.n, linear.k, device=device, scale=linear.k**-0.5).to(dtype)
    bias, act = _random(linear.n, device=device).to(dtype), ACTIVATIONS[linear.activation]

    def new() -> Callable[[], Any]:
        own = weight.clone()
        return lambda: act(F.linear(x, own, bias))

    return Case(new, weight.nbytes)


def _int_mm_peer(linear: Linear, m: int, device: str, compiled: bool) -> Case:
    n, k = linear.n, linear.k
    a, w = _codes(m, k, bits=8, device=device), _codes(n, k, bits=8, device=device)
    rest = (
        torch.rand(m, 1, device=device) / 256,
        torch.randint(-9, 10, (m, 1), dtype=torch.int32, device=device),
        torch.rand(n, device=device) / (128 * k**0.5), w.sum(1, dtype=torch.int32),
        _random(n, device=device), linear.activation,
    )  # fmt: skip
    function = compile_once(_int_mm) if compiled else _int_mm

    def new() -> Callable[[], Any]:
        own = w.clone()
        return lambda: function(a, own, *rest)

    return Case(new, w.nbytes)


def _qlinear_peer(linear: Linear, m: int, device: str) -> Case:
    """oneDNN's fused linear on a prepacked weight. One scale and zero point for the whole input:
    less than a layer with scales per position needs."""
    if device != "cpu":
        raise Refused("CPU only")
    n, k = linear.n, linear.k
    a = torch.randint(0, 256, (m, k), dtype=torch.uint8)
    w = _codes(n, k, bits=8, device=device)
    scale, zero = torch.rand(n) / (128 * k**0.5), torch.zeros(n, dtype=torch.int32)
    bias = _random(n, device=device)
    post, _, kind = linear.activation.partition("_")
    post = "swish" if post == "silu" else post
    kind = kind or ("none" if post == "gelu" else "")
    op = torch.ops.onednn

    def new() -> Callable[[], Any]:
        own = op.qlinear_prepack(w.clone(), [m, k])
        return lambda: op.qlinear_pointwise(
            a, 0.01, 120, own, scale, zero, bias, 1.0, 0, torch.float32, post, [], kind
        )

    return Case(new, w.nbytes)


def gemm_cases(
    linear: Linear, m: int, bits: list[int], peers: list[str], device: str, rotate: bool = False
) -> tuple[dict[str, Case], dict[str, str]]:
    """({candidate: case}, {candidate: why it cannot run here}) of one linear at M rows."""
    cases: dict[str, Case] = {}
    for width in bits:
        cases |= our_cases(linear, m, width, device, rotate)
    makers: dict[str, Callable[[], Case]] = {
        "float32": lambda: _float_peer(linear, m, torch.float32, device),
        "bfloat16": lambda: _float_peer(linear, m, torch.bfloat16, device),
        "int_mm": lambda: _int_mm_peer(linear, m, device, False),
        "int_mm_compiled": lambda: _int_mm_peer(linear, m, device, True),
        "qlinear": lambda: _qlinear_peer(linear, m, device),
    }
    return _with_peers(cases, {name: makers[name] for name in peers})


def _with_peers(
    cases: dict[str, Case], makers: dict[str, Callable[[], Case]]
) -> tuple[dict[str, Case], dict[str, str]]:
    refused = {}
    for name, maker in makers.items():
        try:
            case = maker()
            _try(case.make)
            cases[name] = case
        except Refused as error:
            refused[name] = str(error)
    return cases, refused


def _quantize(
    x: Tensor, turn: Tensor | None, inv_scale: Tensor, zero: Tensor, top: int, offset: int
) -> Tensor:
    if turn is not None:
        x = (x.unflatten(-1, (-1, len(turn))) @ turn).flatten(-2)  # [M, K / block, block]
    level = torch.clamp(torch.round(x * inv_scale) + zero, 0, top)
    return (level - offset).to(torch.int8)


def _norm_quantize(x: Tensor, scale: Tensor, shift: Tensor, *rest: Any) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return _quantize(y * (1 + scale) + shift, *rest)


def row_cases(
    op: str, k: int, m: int, bits: list[int], peers: list[str], device: str, rotate: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Case], dict[str, str]]:  # fmt: skip
    """`gemm_cases` for "quantize" or "norm_quantize" of M rows of K values of ``dtype`` to int8.

    rotate: first over blocks of up to 128 channels; torch's candidates by a product with a matrix.
    "copy" copies the same rows into memory that exists already.
    """
    x = _random(m, k, device=device).to(dtype)
    scale, shift = (_random(1, k, device=device, scale=0.1) for _ in range(2))
    inv_scale, cases = torch.full((m,), 20.0, device=device), {}
    modulation = {"scale": scale, "shift": shift} if op == "norm_quantize" else {}
    block, turn, suffix = 0, None, ""
    if rotate:
        block, suffix = rotation_block(k), ".rotated"
        turn = reference.rotate(torch.eye(block), block).to(device)
        inv_scale = inv_scale * block**-0.5
    for width in bits:
        zero = torch.full((m,), 2 ** (width - 1), dtype=torch.int32, device=device)

        def new(width: int = width, zero: Tensor = zero) -> Callable[[], Any]:
            own, function = x.clone(), getattr(ops, op)
            options = modulation | {"tokens": m, "rotation": block}
            return lambda: function(own, inv_scale, zero, width, **options)

        cases[f"{op}.a{width}{suffix}"] = Case(new, x.nbytes, width, x.nbytes + x.numel())
    rest = (turn, inv_scale[:, None], torch.full((m, 1), 128.0, device=device), 255, 128)
    function = {"quantize": _quantize, "norm_quantize": _norm_quantize}[op]

    def torch_peer(function: Callable) -> Case:
        def new() -> Callable[[], Any]:
            own = x.clone()
            return lambda: function(own, *modulation.values(), *rest)

        return Case(new, x.nbytes, moved=x.nbytes + x.numel())

    def copy() -> Callable[[], Any]:
        own, out = x.clone(), torch.empty_like(x)
        return lambda: out.copy_(own)

    makers: dict[str, Callable[[], Case]] = {
        "torch": lambda: torch_peer(function),
        "torch_compiled": lambda: torch_peer(compile_once(function)),
        "copy": lambda: Case(copy, 2 * x.nbytes),
    }
    return _with_peers(cases, {name: makers[name] for name in peers})
