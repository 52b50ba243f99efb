"""norm_quantize against the reference, bit for bit, on every instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptq4arvg import ops
from ptq4arvg.reference import norm_quantize as reference_norm_quantize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _both(same_bits, *args, **options):
    actual = ops.norm_quantize(*args, **options)
    same_bits(actual, reference_norm_quantize(*args, **options))
    return actual


def _table(maker, length, bits=8):
    return maker.uniform(5, 40, length), maker.integers(0, 2**bits - 1, length), bits


@pytest.mark.parametrize("rms", [False, True])
def test_every_combination_of_parts(isa, make, same_bits, rms):
    maker = make(1)
    x, table = maker.normal(6, 37) * 3 + 1, _table(maker, 3)
    parts = {
        "weight": maker.normal(37), "bias": maker.normal(37), "constant": maker.normal(37),
        "scale": maker.normal(2, 37), "shift": maker.normal(2, 37),
        "post_scale": maker.normal(37), "post_shift": maker.normal(37),
    }  # fmt: skip
    for chosen in itertools.product([False, True], repeat=len(parts)):
        options = {name: parts[name] for name, on in zip(parts, chosen, strict=True) if on}
        _both(same_bits, x, *table, rms=rms, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(isa, make, same_bits, dtype):
    maker = make(2)
    x = maker.normal(2, 5, 40, dtype=dtype)
    names = ("weight", "bias", "constant", "post_scale", "post_shift")
    vectors = {name: maker.normal(40, dtype=dtype) for name in names}
    modulation = maker.normal(2, 6, 40, dtype=dtype)
    _both(
        same_bits, x, *_table(maker, 9, 6), tokens=5, position=torch.tensor([4], dtype=torch.int32),
        scale=modulation[:, 3], shift=modulation[:, 4:5], **vectors,
    )  # fmt: skip


def test_shapes(isa, make, same_bits):
    maker = make(3)
    for m in (0, 1, 2, 5, 31):
        for k in (1, 2, 7, 8, 9, 40, 257):
            _both(same_bits, maker.normal(m, k), *_table(maker, 1))


@pytest.mark.parametrize("block", [2, 8, 16, 64, 128])
def test_rotations(isa, make, same_bits, block):
    maker = make(8)
    for blocks in (1, 3, 10):
        k = block * blocks
        scale, shift = maker.normal(3, k), maker.normal(3, k)
        x = maker.normal(3, 2, k, dtype=torch.bfloat16)
        options = {"weight": maker.normal(k), "post_shift": maker.normal(k)}
        _both(same_bits, x, *_table(maker, 2), scale=scale, shift=shift, rotation=block, **options)


def test_strided_rows(isa, make, same_bits):
    maker = make(4)
    wide = maker.normal(4, 3, 50)
    for x in (wide[..., 3:21], wide[:, 1:2, :18], wide[..., ::2]):
        _both(same_bits, x, *_table(maker, 3))


def test_hard_statistics(isa, make, same_bits):
    """A large mean, a constant row, a huge and a tiny row: float64 sums keep them all."""
    maker = make(5)
    x = torch.stack([
        maker.normal(300) * 1e-3 + 1e4, torch.full((300,), 7.0), maker.normal(300) * 1e18,
        maker.normal(300) * 1e-20, torch.zeros(300),
    ])  # fmt: skip
    for rms in (False, True):
        _both(same_bits, x, *_table(maker, 5), rms=rms)
        _both(same_bits, x, *_table(maker, 5), rms=rms, eps=1e-5)


def test_nan_becomes_the_lowest_level(isa, make):
    x = make(6).normal(2, 16)
    x[0, 3] = float("nan")
    zero = torch.tensor([9], dtype=torch.int32)
    codes = ops.norm_quantize(x, torch.ones(1), zero, 8)
    assert (codes[0] == -128).all()
    assert (codes[1] != -128).any()


def test_instruction_sets_agree_with_each_other(isa, make):
    maker = make(7)
    x, table = maker.normal(64, 1000), _table(maker, 64)
    codes = ops.norm_quantize(x, *table)
    ops.set_isa("scalar")
    assert torch.equal(codes, ops.norm_quantize(x, *table))


@given(
    images=st.integers(0, 4), tokens=st.integers(1, 7), k=st.integers(1, 90), rms=st.booleans(),
    bits=st.sampled_from([8, 6, 4]), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(isa, make, same_bits, images, tokens, k, rms, bits, seed, dtype):
    maker = make(seed)
    _both(
        same_bits, maker.normal(images * tokens, k, dtype=dtype), *_table(maker, tokens, bits),
        rms=rms, scale=maker.normal(images, k), shift=maker.normal(images, k),
    )  # fmt: skip


def test_names_the_kernel_that_ran(isa):
    ops.norm_quantize(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int32), 8)
    assert ops.last_kernel() == f"norm_quantize.{isa}"
