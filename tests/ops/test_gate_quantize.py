"""gate_quantize against the reference, bit for bit, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ptq4arvg import ops
from ptq4arvg.reference import gate_quantize as reference

BITS = (8, 6, 4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _both(same_bits, *args, **options):
    actual = ops.gate_quantize(*args, **options)
    same_bits(actual, reference(*args, **options))
    return actual


@given(
    m=st.integers(0, 30), k=st.integers(1, 80), bits=st.sampled_from(BITS),
    tokens=st.integers(1, 9), position=st.integers(0, 6), seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES), activation=st.sampled_from(ops.ACTIVATIONS),
)  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(isa, make, same_bits, m, k, bits, tokens, position, seed, dtype, activation):
    maker = make(seed)
    table = maker.uniform(0.1, 50, 15), maker.integers(0, 2**bits - 1, 15)
    x = maker.normal(m, 2 * k, dtype=dtype) * 3
    first = torch.tensor([position], dtype=torch.int32)
    y = _both(same_bits, x, *table, bits, activation=activation, position=first, tokens=tokens)
    assert y.shape == (m, k) and y.is_contiguous()


@pytest.mark.parametrize("block", [2, 8, 32, 128])
def test_rotations(isa, make, same_bits, block):
    maker = make(3)
    table = maker.uniform(0.5, 8, 6), maker.integers(0, 63, 6)
    for dtype in DTYPES:
        for blocks in (1, 3, 5):
            x = maker.normal(5, 2 * block * blocks, dtype=dtype)
            _both(same_bits, x, *table, 6, rotation=block)


def test_strides(isa, make, same_bits):
    maker = make(2)
    table = maker.uniform(0.5, 30, 24)[::2], maker.integers(0, 63, 36)[::3]
    wide = maker.normal(4, 3, 50)
    for x in (wide[..., 3:21], wide[:, 1:2, :18], wide[..., ::5], wide.transpose(0, 2)):
        y = _both(same_bits, x, *table, 6, tokens=3)
        assert y.shape == (*x.shape[:-1], x.shape[-1] // 2)


def test_special_values(isa, same_bits):
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([0.5, -1.5, 1e-45, -0.0, nan, inf, -inf, 3e38, -3e38, -100.0, 88.8])
    x = torch.cartesian_prod(values, values).T.reshape(1, -1)  # gates, then what they gate
    zero = torch.tensor([100], dtype=torch.int32)
    for dtype in DTYPES:
        for scale in (1.0, 1e-30, 3e38):
            _both(same_bits, x.to(dtype), torch.full((1,), scale), zero, 8)


def test_it_is_a_gated_product(make):
    """Within half a step, and what float32 rounds, of the product in float64."""
    x = make(5).normal(7, 64) * 3
    scale, zero = 0.01, torch.tensor([128], dtype=torch.int32)
    codes = ops.gate_quantize(x, torch.full((1,), 1 / scale), zero, 8).double()
    gates, values = x.double().chunk(2, -1)
    exact = F.silu(gates) * values
    inside = exact.abs() < 1.25
    assert inside.sum() > 100
    assert ((codes * scale - exact).abs()[inside] <= scale / 2 + 1e-5).all()


def test_an_odd_row_is_refused():
    table = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    for device in ("cpu", "meta"):
        args = [v.to(device) for v in (torch.ones(2, 5), *table)]
        with pytest.raises((ValueError, RuntimeError), match=r"shape \[2, 5\], wanted \[..., 2 K"):
            ops.gate_quantize(*args, 8)


def test_names_the_kernel_that_ran(isa):
    ops.gate_quantize(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int32), 8)
    assert ops.last_kernel() == f"gate_quantize.{isa}"
    assert f"gate_quantize.{isa}" in [kernel["name"] for kernel in ops.list_kernels()]
