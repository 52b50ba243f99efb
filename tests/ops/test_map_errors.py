"""Every refusal of quantize_map and conv2d, with its text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptq4arvg import ops
from tests.ops.refusals import call_fake, check_fake_refusal, check_refusal, each

B, H, W, C, N = 2, 4, 5, 8, 6
NAN, INF = float("nan"), float("inf")
MAP, CONV = ("quantize_map",), ("conv2d",)
ALL = (*MAP, *CONV)
FLOATS = "wanted float32, float16 or bfloat16"
POSITIVE = "wanted finite numbers above 0"
SIDES = "wanted [B, H, W, C] with H, W and C of 1 or more"
ONE = "wanted 1: pixels have no positions"
NO_NORM = "wanted both None, or groups of 1 or more"


def _ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _codes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int8)


def _with(value: float, count: int = 1) -> Tensor:
    """The last entry is bad."""
    table = torch.ones(count)
    table[-1] = value
    return table


def _arguments(op: str) -> dict:
    """Valid arguments of each operator; the cases below spoil one."""
    if op == "quantize_map":
        return {
            "x": torch.ones(B, H, W, C), "inv_scale": torch.ones(1), "zero": _ints(3), "bits": 8,
            "groups": 2,
        }  # fmt: skip
    packed = ops.pack_weight(torch.ones(N, 9 * C, dtype=torch.int8), None, 6)
    return {
        "a": _codes(B, H, W, C), "w": packed, "a_scale": torch.ones(1), "w_scale": torch.ones(N),
        "bits": 6,
    }  # fmt: skip


LEADS = {"quantize_map": "x", "conv2d": "a"}


def _of_lead(shape: tuple[int, ...]) -> list[tuple[tuple[str], dict, str]]:
    """The same about the map of both operators."""
    dtypes = {"x": torch.float32, "a": torch.int8}
    return [((op,), {name: torch.ones(shape, dtype=dtypes[name])},
             f"{name} has shape {list(shape)}, {SIDES}") for op, name in LEADS.items()]  # fmt: skip


def _of_wide(channels: int, kernel: int) -> dict:
    """Maps of so many channels, and a weight that fits."""
    depth = kernel**2 * channels
    return {
        "a": _codes(1, kernel, kernel, channels), "kernel_size": kernel, "bits": 8,
        "w": ops.pack_weight(_codes(N, depth), None, 8),
    }  # fmt: skip


# operators, spoiled arguments, message after "<op>: ", in the order of the checks; what fake
# kernels do not know is in the second list
SHAPE_CASES = [
    # maps
    *[case for shape in ((), (C,), (H, W, C), (1, B, H, W, C), (B, 0, W, C), (B, H, 0, C),
                         (B, H, W, 0)) for case in _of_lead(shape)],
    (MAP, {"x": torch.ones(B, H, W, C, dtype=torch.float64)}, f"x has dtype float64, {FLOATS}"),
    (MAP, {"x": _codes(B, H, W, C)}, f"x has dtype int8, {FLOATS}"),
    (CONV, {"a": torch.ones(B, H, W, C)}, "a has dtype float32, wanted int8"),
    (CONV, {"a": torch.ones(B, H, W, C, dtype=torch.uint8)}, "a has dtype uint8, wanted int8"),
    *[(CONV, {"kernel_size": k}, f"kernel_size is {k} and a has shape [2, 4, 5, 8]; wanted one "
       "from 1 to H and W") for k in (-(2**63), -3, 0, 5, 6, 2**63 - 1)],
    (CONV, {"a": _codes(B, 7, 2, C)}, "kernel_size is 3 and a has shape [2, 7, 2, 8]; wanted one "
     "from 1 to H and W"),
    # the one grid
    *[(MAP, {"bits": bits}, f"bits is {bits}, wanted 4, 6 or 8") for bits in (0, 5, 16)],
    (CONV, {"bits": 7}, "bits is 7, wanted 4, 6 or 8"),
    (MAP, {"inv_scale": torch.ones(2), "zero": _ints(1, 1)}, f"inv_scale has 2 entries, {ONE}"),
    (MAP, {"inv_scale": torch.ones(0), "zero": _ints()}, f"inv_scale has 0 entries, {ONE}"),
    (CONV, {"a_scale": torch.ones(3)}, f"a_scale has 3 entries, {ONE}"),
    (CONV, {"a_scale": torch.ones(0)}, f"a_scale has 0 entries, {ONE}"),
    (MAP, {"inv_scale": torch.ones(1, dtype=torch.float64)},
     "inv_scale has dtype float64, wanted float32"),
    (CONV, {"a_scale": torch.ones(1).half()}, "a_scale has dtype float16, wanted float32"),
    (MAP, {"zero": torch.zeros(1)}, "zero has dtype float32, wanted int32"),
    # the norm
    *[(MAP, {"groups": groups}, f"groups is {groups} and C 8; wanted 0 (no norm), or a number that "
       "divides C") for groups in (-1, -8, 3, 16)],
    *[(MAP, {"groups": 0, name: torch.ones(C)},
       f"weight or bias is given, but groups is 0 (no norm); {NO_NORM}")
      for name in ("weight", "bias")],
    *[(MAP, {name: torch.ones(C, dtype=torch.float64)}, f"{name} has dtype float64, {FLOATS}")
      for name in ("weight", "bias")],
    *[(MAP, {name: torch.ones(2)}, f"{name} has 2 entries, wanted 8 (one for each column)")
      for name in ("weight", "bias")],
    *[(MAP, {name: torch.ones(1, C)}, f"{name} has shape [1, 8], wanted one dimension")
      for name in ("weight", "bias")],
    # what is around
    (ALL, {"activation": "relu"},
     "activation is 'relu', wanted one of none, gelu, gelu_tanh, silu"),
    *[(MAP, {"scale": scale}, f"scale is {scale}, wanted 1 to 8") for scale in (-1, 0, 9)],
    *[(MAP, {"border": border}, f"border is {border}, wanted 0 to 8") for border in (-1, 9)],
    # the weight
    (CONV, {"w": torch.ones(10, dtype=torch.uint8)},
     "w has shape [10], wanted [928]: N 6, K 72, 6 bits as pack_weight lays them out"),
    (CONV, {"kernel_size": 1},
     "w has shape [928], wanted [160]: N 6, K 8, 6 bits as pack_weight lays them out"),
    (CONV, {"w": _codes(928)}, "w has dtype int8, wanted uint8"),
    (CONV, {"w_scale": torch.ones(N, dtype=torch.float64)},
     "w_scale has dtype float64, wanted float32"),
    (CONV, {"w_zero": torch.zeros(N)}, "w_zero has dtype float32, wanted int32"),
    (CONV, {"w_zero": _ints(1)}, "w_zero has 1 entries, wanted 6 (N)"),
    (CONV, {"bias": torch.ones(4)}, "bias has 4 entries, wanted 6 (one for each column)"),
    (CONV, {"bias": _ints(*range(N))}, f"bias has dtype int32, {FLOATS}"),
    (CONV, {"out_dtype": torch.int8}, f"out_dtype is int8, {FLOATS}"),
    (CONV, {"out_dtype": torch.float64}, f"out_dtype is float64, {FLOATS}"),
]  # fmt: skip

DATA_CASES = [
    (MAP, {"inv_scale": torch.ones(1, 1)}, "inv_scale has shape [1, 1], wanted one dimension"),
    (CONV, {"a_scale": torch.ones(())}, "a_scale has shape [], wanted one dimension"),
    *[((op,), {name: _with(value)}, f"{name}[0] is {text}, {POSITIVE}")
      for op, name in (("quantize_map", "inv_scale"), ("conv2d", "a_scale"))
      for value, text in ((NAN, "nan"), (INF, "inf"), (0.0, "0"), (-2.0, "-2"))],
    (MAP, {"zero": _ints(1, 1)}, "zero has 2 entries, wanted 1 (one for each scale)"),
    *[(MAP, {"zero": _ints(zero), "bits": bits}, f"zero[0] is {zero}, wanted 0 to {2**bits - 1}")
      for bits in (8, 6, 4) for zero in (-1, 2**bits)],
    (MAP, {"zero": _ints(63), "bits": 6}, None),
    *[(MAP, {"eps": eps}, f"eps is {eps:g}, wanted a finite number, 0 or more")
      for eps in (-1.0, -1e-30, NAN, INF)],
    (MAP, {"eps": 0.0}, None),
    (MAP, {"scale": 8, "border": 8, "groups": 8}, None),
    (MAP, {"groups": 0}, None),
    (CONV, _of_wide(65537, 1), "a has K 65537, wanted at most 65536 so that sums fit in int32"),
    (CONV, _of_wide(7282, 3), "a has K 65538, wanted at most 65536 so that sums fit in int32"),
    (CONV, _of_wide(7281, 3), None),
    (CONV, {"a_zero": _ints(128)}, "a_zero[0] is 128, wanted -128 to 127"),
    (CONV, {"a_zero": _ints(-129)}, "a_zero[0] is -129, wanted -128 to 127"),
    (CONV, {"a_zero": _ints(0, 0)},
     "a_zero has 2 entries, wanted 1 (one for each position of a_scale)"),
    (CONV, {"a_zero": torch.zeros(1)}, "a_zero has dtype float32, wanted int32"),
    (CONV, {"w_scale": _with(NAN, N)}, f"w_scale[5] is nan, {POSITIVE}"),
    (CONV, {"w_sum": _ints(1)}, "w_sum has 1 entries, wanted 6 (N)"),
    (CONV, {"w_sum": torch.zeros(N)}, "w_sum has dtype float32, wanted int32"),
    (CONV, {"w_zero": _ints(0, 0, 0, 0, 0, 64)}, "w_zero[5] is 64, wanted 0 to 63"),
    (CONV, {**_of_wide(2, 1), "w_zero": torch.zeros(N, dtype=torch.int32)},
     "w_zero is given, wanted None: 8-bit weights are symmetric"),
    (CONV, {"residual": torch.ones(B, 2, 3, 5)},
     "residual has shape [2, 2, 3, 5], wanted 12 rows of 6 (as the output)"),
    (CONV, {"residual": torch.ones(B, H, W, N)},
     "residual has shape [2, 4, 5, 6], wanted 12 rows of 6 (as the output)"),
    (CONV, {"residual": torch.ones(B, 3, 2, N)},
     "residual has shape [2, 3, 2, 6], wanted [2, 2, 3, 6] (as the output)"),
    (CONV, {"residual": torch.ones(2 * B, 3, N)},
     "residual has shape [4, 3, 6], wanted [2, 2, 3, 6] (as the output)"),
    (CONV, {"residual": _codes(B, 2, 3, N)}, f"residual has dtype int8, {FLOATS}"),
    (CONV, {"residual": torch.ones(B, 2, 3, N)}, None),
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


@pytest.mark.parametrize(("op", "name"), [
    *[("quantize_map", name) for name in ("inv_scale", "zero", "weight", "bias")],
    *[("conv2d", name)
      for name in ("w", "a_scale", "w_scale", "a_zero", "w_sum", "w_zero", "bias", "residual")],
])  # fmt: skip
def test_device(op, name):
    arguments, lead = _arguments(op), LEADS[op]
    optional = {
        "weight": torch.ones(C), "bias": torch.ones(N if op == "conv2d" else C),
        "a_zero": _ints(0), "w_sum": _ints(*range(N)), "w_zero": _ints(*range(N)),
        "residual": torch.ones(B, 2, 3, N),
    }  # fmt: skip
    value = {**optional, **arguments}[name]
    message = f"{op}: {name} is on meta, but {lead} is on cpu; wanted all on one device"
    with pytest.raises(ValueError, match=message):
        getattr(ops, op)(**{**arguments, name: value.to("meta")})
    with pytest.raises((RuntimeError, ValueError), match=message):
        call_fake(op, {**_arguments(op), name: value.to("meta")})


@pytest.mark.parametrize("op", ALL)
def test_fake_results_have_the_shape_of_real_ones(op):
    for images in (B, 0):
        lead = _arguments(op)[LEADS[op]][:1].expand(images, -1, -1, -1)
        more = {"scale": 2, "border": 3} if op == "quantize_map" else {"out_dtype": torch.float16}
        arguments = {**_arguments(op), LEADS[op]: lead, **more}
        real, fake = getattr(ops, op)(**arguments), call_fake(op, arguments)
        assert real.shape == fake.shape and real.stride() == fake.stride()
        assert real.dtype == fake.dtype
