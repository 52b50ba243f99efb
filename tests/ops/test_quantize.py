"""quantize against the reference, bit for bit, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptq4arvg import ops
from ptq4arvg.reference import quantize as reference_quantize

BITS = (8, 6, 4)


def _both(same_bits, *args, **options):
    actual = ops.quantize(*args, **options)
    same_bits(actual, reference_quantize(*args, **options))
    return actual


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(isa, make, same_bits, bits, dtype):
    maker = make(bits)
    for m in (0, 1, 2, 5, 30):
        for k in (1, 3, 7, 8, 9, 16, 33, 100):
            table = maker.uniform(0.5, 30, 6), maker.integers(0, 2**bits - 1, 6)
            _both(same_bits, maker.normal(m, k, dtype=dtype) * 4, *table, bits)


@pytest.mark.parametrize("bits", BITS)
def test_every_zero_point(isa, make, same_bits, bits):
    levels = 2**bits
    zero = torch.arange(levels, dtype=torch.int32)
    x = make(1).normal(levels, 64) * 100
    codes = _both(same_bits, x, torch.ones(levels), zero, bits)
    offset = 128 if bits == 8 else zero[:, None]
    level = codes.int() + offset
    assert int(level.min()) == 0
    assert int(level.max()) == levels - 1


def test_ties_and_special_values(isa, same_bits):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, nan, inf, -inf, 3e38, -3e38,
                       1e-45, -0.0, 126.5, 127.5, -128.5]])  # fmt: skip
    for bits in BITS:
        zero = torch.tensor([2 ** (bits - 1)], dtype=torch.int32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            _both(same_bits, x.to(dtype), torch.ones(1), zero, bits)
            _both(same_bits, x.to(dtype), torch.full((1,), 3e38), zero, bits)


def test_every_16_bit_float(isa, same_bits):
    bits16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)[None]
    zero = torch.tensor([100], dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float16):
        for scale in (1.0, 0.001, 1e6):
            _both(same_bits, bits16.view(dtype), torch.full((1,), scale), zero, 8)


def test_strides_tables_and_positions(isa, make, same_bits):
    maker = make(2)
    inv_scale, zero = maker.uniform(0.5, 30, 24)[::2], maker.integers(0, 63, 36)[::3]
    wide = maker.normal(4, 3, 50)
    for x in (wide[..., 3:21], wide[:, 1:2, :18], wide[..., ::2], wide.transpose(0, 2)):
        for first, tokens in ((0, 0), (0, 3), (5, 7), (11, 1)):
            position = torch.tensor([first], dtype=torch.int32)
            y = _both(same_bits, x, inv_scale, zero, 6, position=position, tokens=tokens)
            assert y.shape == x.shape
            assert y.is_contiguous()


@pytest.mark.parametrize("block", [2, 4, 8, 16, 32, 64, 128])
def test_rotations(isa, make, same_bits, block):
    maker = make(3)
    table = maker.uniform(0.5, 8, 6), maker.integers(0, 63, 6)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for blocks in (1, 2, 3, 5, 9, 17):
            x = maker.normal(5, block * blocks, dtype=dtype)
            _both(same_bits, x, *table, 6, rotation=block)
    wide = maker.normal(4, 3, 2 * block + 6)
    _both(same_bits, wide[..., 3:-3], *table, 6, tokens=3, rotation=block)
    x = torch.full((2, 4 * block), 1e38)
    x[0, 1], x[1, -1] = float("nan"), float("inf")
    _both(same_bits, x, *table, 6, rotation=block)


@given(
    m=st.integers(0, 30), k=st.integers(1, 80), bits=st.sampled_from(BITS),
    tokens=st.integers(1, 9), position=st.integers(0, 6), seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(isa, make, same_bits, m, k, bits, tokens, position, seed, dtype):
    maker = make(seed)
    table = maker.uniform(0.1, 50, 15), maker.integers(0, 2**bits - 1, 15)
    x = maker.normal(m, k, dtype=dtype) * 3
    first = torch.tensor([position], dtype=torch.int32)
    _both(same_bits, x, *table, bits, position=first, tokens=tokens)


def test_names_the_kernel_that_ran(isa):
    ops.quantize(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int32), 8)
    assert ops.last_kernel() == f"quantize.{isa}"
