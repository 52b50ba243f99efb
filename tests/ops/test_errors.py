"""Every refusal, with its text: operator, argument, what came, what was wanted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ptq4arvg import ops
from tests.ops.refusals import call_fake, check_fake_refusal, check_refusal, each

N, K, T = 5, 8, 6


def _arguments(op: str) -> dict:
    """Valid arguments of each operator; the cases below spoil one."""
    codes = torch.ones(N, K, dtype=torch.int8)
    ints = {"dtype": torch.int32}
    product = {"w": ops.pack_weight(codes, None, 6), "w_scale": torch.ones(N), "bits": 6}
    table = {"inv_scale": torch.ones(T), "zero": torch.zeros(T, **ints), "bits": 8}
    gemm = {"a": torch.ones(T, K, dtype=torch.int8), "a_scale": torch.ones(T), **product}
    out = {
        "out_inv_scale": torch.ones(T), "out_zero": torch.zeros(T, dtype=torch.int32), "out_bits": 8
    }  # fmt: skip
    return {
        "pack_weight": {"codes": codes, "zero": None, "bits": 6},
        "unpack_weight": {"packed": product["w"], "zero": None, "bits": 6, "n": N, "k": K},
        "quantize": {"x": torch.ones(T, K), **table},
        "gate_quantize": {"x": torch.ones(T, 2 * K), **table},
        "norm_quantize": {"x": torch.ones(T, K), **table},
        "gemm": gemm,
        "gemm_quantize": {**gemm, **out},
        "gemm_float": {"x": torch.ones(2, K), **product},
    }[op]


def _ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


NAN, INF = float("nan"), float("inf")
GEMMS = ("gemm", "gemm_quantize")
PRODUCTS = (*GEMMS, "gemm_float")
COLUMNS = ("weight", "bias", "constant", "post_scale", "post_shift")
QUANTIZERS = ("quantize", "gate_quantize", "norm_quantize")
ROW_SIZE = "wanted [..., K] with K of 1 or more"
FLOATS = "wanted float32, float16 or bfloat16"
POSITIVE = "wanted finite numbers above 0"

# operators, spoiled arguments, message after "<op>: "; what fake kernels do not know is in the
# second list
SHAPE_CASES = [
    # bits
    *[((op,), {"bits": 5}, "bits is 5, wanted 4, 6 or 8") for op in (
        "pack_weight", "unpack_weight", *PRODUCTS, *QUANTIZERS)],
    (("gemm_quantize",), {"out_bits": 7}, "out_bits is 7, wanted 4, 6 or 8"),
    *[(QUANTIZERS, {"rotation": block}, f"rotation is {block} and K 8; wanted 0, or a power of two "
       "from 2 to 128 that divides K") for block in (-2, 1, 3, 6, 16, 256)],
    *[(("gemm_quantize",), {"out_rotation": block}, f"out_rotation is {block} and N 5; wanted 0, "
       "or a power of two from 2 to 16 that divides N") for block in (-2, 1, 2, 5, 32)],
    (("gemm_quantize",),
     {"w": ops.pack_weight(torch.ones(32, K, dtype=torch.int8), None, 6),
      "w_scale": torch.ones(32), "out_rotation": 32},
     "out_rotation is 32 and N 32; wanted 0, or a power of two from 2 to 16 that divides N"),
    # pack_weight and unpack_weight
    (("pack_weight",), {"codes": torch.ones(N, K)}, "codes has dtype float32, wanted int8"),
    (("pack_weight",), {"codes": torch.ones(N, K, 1, dtype=torch.int8)},
     "codes has shape [5, 8, 1], wanted [N, K]"),
    (("pack_weight",), {"codes": torch.ones(K, dtype=torch.int8)},
     "codes has shape [8], wanted [N, K]"),
    (("pack_weight",), {"codes": torch.ones(0, K, dtype=torch.int8)},
     "codes has shape [0, 8], wanted N of 1 or more"),
    (("pack_weight",), {"codes": torch.ones(N, 0, dtype=torch.int8)},
     f"codes has shape [5, 0], {ROW_SIZE}"),
    (("pack_weight", "unpack_weight"), {"zero": _ints(0, 0, 1)},
     "zero has 3 entries, wanted 5 (N)"),
    (("pack_weight", "unpack_weight"), {"zero": torch.zeros(N)},
     "zero has dtype float32, wanted int32"),
    (("unpack_weight",), {"n": 0}, "n is 0 and k is 8, wanted 1 or more"),
    (("unpack_weight",), {"n": 20},
     "packed has shape [160], wanted [320]: N 20, K 8, 6 bits as pack_weight lays them out"),
    (("unpack_weight",), {"packed": torch.ones(160)},
     "packed has dtype float32, wanted uint8"),
    # activations
    (GEMMS, {"a": torch.ones(T, K)}, "a has dtype float32, wanted int8"),
    (GEMMS, {"a": torch.ones(T, 0, dtype=torch.int8)}, f"a has shape [6, 0], {ROW_SIZE}"),
    (GEMMS, {"a": torch.ones((), dtype=torch.int8)}, f"a has shape [], {ROW_SIZE}"),
    ((*QUANTIZERS, "gemm_float"), {"x": torch.ones(T, K, dtype=torch.float64)},
     f"x has dtype float64, {FLOATS}"),
    ((*QUANTIZERS, "gemm_float"), {"x": torch.ones(T, 0)}, f"x has shape [6, 0], {ROW_SIZE}"),
    ((*QUANTIZERS, "gemm_float"), {"x": torch.ones(())}, f"x has shape [], {ROW_SIZE}"),
    (("gate_quantize",), {"x": torch.ones(T, 7)},
     "x has shape [6, 7], wanted [..., 2 K]: gates, then what they gate"),
    # the packed weight
    (PRODUCTS, {"w": torch.ones(10, dtype=torch.uint8)},
     "w has shape [10], wanted [160]: N 5, K 8, 6 bits as pack_weight lays them out"),
    (PRODUCTS, {"bits": 8},
     "w has shape [160], wanted [192]: N 5, K 8, 8 bits as pack_weight lays them out"),
    (PRODUCTS, {"w": torch.ones(160, dtype=torch.int8)},
     "w has dtype int8, wanted uint8"),
    # columns
    (PRODUCTS, {"w_scale": torch.ones(N, dtype=torch.float64)},
     "w_scale has dtype float64, wanted float32"),
    (PRODUCTS, {"w_scale": torch.ones(N, 1)}, "w_scale has shape [5, 1], wanted one dimension"),
    (PRODUCTS, {"w_scale": torch.ones(())}, "w_scale has shape [], wanted one dimension"),
    (PRODUCTS, {"w_scale": torch.ones(0)}, "w_scale is empty, wanted one entry or more"),
    (PRODUCTS, {"w_zero": _ints(0, 0, 0, 0)}, "w_zero has 4 entries, wanted 5 (N)"),
    (PRODUCTS, {"w_zero": torch.zeros(N)}, "w_zero has dtype float32, wanted int32"),
    (PRODUCTS, {"bias": torch.ones(4)}, "bias has 4 entries, wanted 5 (one for each column)"),
    (PRODUCTS, {"bias": torch.ones(N, dtype=torch.int32)}, f"bias has dtype int32, {FLOATS}"),
    # tables
    (GEMMS, {"a_scale": torch.ones(2, 3)}, "a_scale has shape [2, 3], wanted one dimension"),
    (QUANTIZERS, {"inv_scale": torch.ones(T).half()},
     "inv_scale has dtype float16, wanted float32"),
    (QUANTIZERS, {"inv_scale": torch.ones(T, 1)},
     "inv_scale has shape [6, 1], wanted one dimension"),
    (QUANTIZERS, {"zero": torch.zeros(T)}, "zero has dtype float32, wanted int32"),
    (("gemm_quantize",), {"out_inv_scale": torch.ones(T).half()},
     "out_inv_scale has dtype float16, wanted float32"),
    (("gemm_quantize",), {"out_zero": torch.zeros(T)}, "out_zero has dtype float32, wanted int32"),
    # positions
    (GEMMS, {"tokens": 7}, "a_scale has 6 positions, but position 0 + tokens 7 = 7 are needed"),
    (QUANTIZERS, {"tokens": 7},
     "inv_scale has 6 positions, but position 0 + tokens 7 = 7 are needed"),
    (("gemm_quantize",), {"out_inv_scale": torch.ones(2), "out_zero": _ints(0, 0), "tokens": 3},
     "out_inv_scale has 2 positions, but position 0 + tokens 3 = 3 are needed"),
    ((*GEMMS, *QUANTIZERS), {"position": torch.zeros(1, dtype=torch.int64)},
     "position has dtype int64, wanted int32"),
    # epilogue
    ((*PRODUCTS, "gate_quantize"), {"activation": "relu"},
     "activation is 'relu', wanted one of none, gelu, gelu_tanh, silu"),
    (("gemm", "gemm_float"), {"out_dtype": torch.int32}, f"out_dtype is int32, {FLOATS}"),
    # norm
    *[(("norm_quantize",), {name: torch.ones(3)},
       f"{name} has 3 entries, wanted 8 (one for each column)") for name in COLUMNS],
    *[(("norm_quantize",), {name: torch.ones(K, dtype=torch.float64)},
       f"{name} has dtype float64, {FLOATS}") for name in COLUMNS],
]  # fmt: skip

DATA_CASES = [
    (("pack_weight",), {"codes": torch.full((N, K), 32, dtype=torch.int8)},
     "codes[0, 0] is 32, wanted -32 to 31 (6 bits, zero 32)"),
    (("pack_weight",), {"zero": _ints(0, 0, 1, 63, 5)},
     "codes[3, 0] is 1, wanted -63 to 0 (6 bits, zero 63)"),
    (("pack_weight",), {"codes": torch.full((N, K), -128, dtype=torch.int8), "bits": 8},
     "codes[0, 0] is -128, wanted -127 to 127 (8 bits, zero 0)"),
    (("pack_weight", "unpack_weight"), {"zero": _ints(0, 0, 1, 64, 5)},
     "zero[3] is 64, wanted 0 to 63"),
    (("pack_weight",), {"zero": torch.zeros(N, dtype=torch.int32), "bits": 8},
     "zero is given, wanted None: 8-bit weights are symmetric"),
    (GEMMS, {"a": torch.ones(1, 65537, dtype=torch.int8),
             "w": ops.pack_weight(torch.ones(N, 65537, dtype=torch.int8), None, 6)},
     "a has K 65537, wanted at most 65536 so that sums fit in int32"),
    (PRODUCTS, {"w_scale": _floats(1, 1, NAN, 1, 1)}, f"w_scale[2] is nan, {POSITIVE}"),
    (PRODUCTS, {"w_scale": _floats(1, 1, 1, INF, 1)}, f"w_scale[3] is inf, {POSITIVE}"),
    (PRODUCTS, {"w_scale": _floats(0, 1, 1, 1, 1)}, f"w_scale[0] is 0, {POSITIVE}"),
    (PRODUCTS, {"w_scale": _floats(1, -2, 1, 1, 1)}, f"w_scale[1] is -2, {POSITIVE}"),
    (PRODUCTS, {"w_zero": _ints(0, 0, -1, 0, 0)}, "w_zero[2] is -1, wanted 0 to 63"),
    (GEMMS, {"w_sum": _ints(1)}, "w_sum has 1 entries, wanted 5 (N)"),
    (GEMMS, {"w_sum": torch.zeros(N, dtype=torch.int64)}, "w_sum has dtype int64, wanted int32"),
    (GEMMS, {"a_scale": _floats(1, NAN, 1, 1, 1, 1)}, f"a_scale[1] is nan, {POSITIVE}"),
    (GEMMS, {"a_zero": _ints(0, 0)},
     "a_zero has 2 entries, wanted 6 (one for each position of a_scale)"),
    (GEMMS, {"a_zero": _ints(0, 0, 128, 0, 0, 0)}, "a_zero[2] is 128, wanted -128 to 127"),
    (QUANTIZERS, {"inv_scale": _floats(1, 1, 1, INF, 1, 1)}, f"inv_scale[3] is inf, {POSITIVE}"),
    (QUANTIZERS, {"zero": _ints(0, 0, 256, 0, 0, 0)}, "zero[2] is 256, wanted 0 to 255"),
    (QUANTIZERS, {"zero": _ints(0, 16, 0, 0, 0, 0), "bits": 4}, "zero[1] is 16, wanted 0 to 15"),
    (QUANTIZERS, {"zero": _ints(0, 0)}, "zero has 2 entries, wanted 6 (one for each scale)"),
    (("gemm_quantize",), {"out_inv_scale": _floats(1, 1, 1, INF, 1, 1)},
     f"out_inv_scale[3] is inf, {POSITIVE}"),
    (("gemm_quantize",), {"out_zero": _ints(-1, 0, 0, 0, 0, 0)},
     "out_zero[0] is -1, wanted 0 to 255"),
    (GEMMS, {"position": _ints(4), "tokens": 3},
     "a_scale has 6 positions, but position 4 + tokens 3 = 7 are needed"),
    (GEMMS, {"position": _ints(1)},
     "a_scale has 6 positions, but position 1 + tokens 6 = 7 are needed"),
    (("gemm_quantize",), {"out_inv_scale": torch.ones(3), "out_zero": _ints(0, 0, 0)},
     "out_inv_scale has 3 positions, but position 0 + tokens 6 = 6 are needed"),
    ((*GEMMS, *QUANTIZERS), {"tokens": -1}, "tokens is -1, wanted 0 (the whole table) or more"),
    ((*GEMMS, *QUANTIZERS), {"position": _ints(-1)}, "position is -1, wanted 0 or more"),
    ((*GEMMS, *QUANTIZERS), {"position": _ints(1, 2)},
     "position has shape [2], wanted one element"),
    (GEMMS, {"residual": torch.ones(T, 4)},
     "residual has shape [6, 4], wanted 6 rows of 5 (as the output)"),
    (GEMMS, {"residual": torch.ones(T, N, dtype=torch.float64)},
     f"residual has dtype float64, {FLOATS}"),
    (GEMMS, {"gate": torch.ones(2, N)}, "gate has shape [2, 5], wanted 1 rows of 5 (images, N)"),
    (GEMMS, {"gate": torch.ones(2, N), "tokens": 4},
     "gate needs whole images, but 6 rows are not a multiple of tokens 4"),
    (("norm_quantize",), {"scale": torch.ones(2, K)},
     "scale has shape [2, 8], wanted 1 rows of 8 (images, K)"),
    (("norm_quantize",), {"shift": torch.ones(1, K), "tokens": 4},
     "scale and shift need whole images, but 6 rows are not a multiple of tokens 4"),
    (("norm_quantize",), {"eps": -1.0}, "eps is -1, wanted a finite number, 0 or more"),
    (GEMMS, {"tokens": T}, None),
]  # fmt: skip


@pytest.mark.parametrize(("op", "spoiled", "message"), each(SHAPE_CASES + DATA_CASES))
def test_message(op, spoiled, message):
    # Fakes do not say the end.
    check_refusal(op, {**_arguments(op), **spoiled}, message, " as pack_weight returns it")


@pytest.mark.parametrize(("op", "spoiled", "message"), each(SHAPE_CASES))
def test_fake_message(op, spoiled, message):
    """What the fake kernels can see without data: the same words."""
    check_fake_refusal(op, {**_arguments(op), **spoiled}, message)


@pytest.mark.parametrize(("op", "spoiled", "message"), each(DATA_CASES))
def test_fake_kernels_refuse_nothing_else(op, spoiled, message):
    call_fake(op, {**_arguments(op), **spoiled})


@pytest.mark.parametrize("op", ["gemm", "gemm_quantize", "gemm_float", *QUANTIZERS])
def test_valid_arguments_pass(op):
    getattr(ops, op)(**_arguments(op))


def test_nothing_runs_before_the_checks():
    ops.quantize(**_arguments("quantize"))
    before = ops.last_kernel()
    with pytest.raises(ValueError):
        ops.gemm(**{**_arguments("gemm"), "out_dtype": torch.int8})
    assert ops.last_kernel() == before


def _tensors(op: str) -> list[str]:
    """Names of all tensors that an operator takes, as its schema says."""
    schema = getattr(torch.ops.ptq4arvg, op).default._schema
    return [argument.name for argument in schema.arguments if "Tensor" in str(argument.type)]


@pytest.mark.parametrize(("op", "name"), [
    (op, name) for op in ("pack_weight", "unpack_weight", *PRODUCTS, *QUANTIZERS)
    for name in _tensors(op)[1:]
])  # fmt: skip
def test_device(op, name):
    arguments = _arguments(op)
    value = arguments.get(name)
    elsewhere = torch.ones(1, device="meta") if value is None else value.to("meta")
    lead = next(iter(arguments))
    with pytest.raises(
        ValueError, match=f"{op}: {name} is on meta, but {lead} is on cpu; wanted all on one device"
    ):
        getattr(ops, op)(**{**arguments, name: elsewhere})


def test_unknown_isa():
    with pytest.raises(ValueError, match=r"'avx9' is not known; wanted one of .*scalar"):
        ops.set_isa("avx9")
    assert ops.isa() in ops.build_info()["available_isas"]


def test_isa_that_the_machine_lacks():
    info = ops.build_info()
    missing = set(info["compiled_isas"]) - set(info["available_isas"])
    if not missing:
        pytest.skip("this machine has every compiled instruction set")
    with pytest.raises(ValueError, match=f"has no {min(missing)}"):
        ops.set_isa(min(missing))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("scalar", "scalar"), ("avx9", "PTQ4ARVG_CPU_ISA: 'avx9' is not known; wanted one of")],
)
def test_isa_from_the_environment(value, expected):
    result = subprocess.run(
        [sys.executable, "-c", "from ptq4arvg import ops; print(ops.isa())"],
        env={**os.environ, "PTQ4ARVG_CPU_ISA": value}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert expected in result.stdout + result.stderr


def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setattr(ops, "_LIBRARY", tmp_path / "_C.so")
    with pytest.raises(ImportError, match="pip install"):
        ops._load()
