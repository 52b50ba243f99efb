"""Packed weights: round trip, size, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq4arvg import ops


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("with_zero", [True, False])
def test_round_trip(make, bits, with_zero):
    maker = make(bits)
    for n in (1, 15, 16, 17, 33):
        for k in (1, 3, 4, 5, 31, 64):
            weight = maker.weight(n, k, bits, with_zero)
            codes = ops.unpack_weight(weight.packed, weight.zero, bits, n, k)
            assert torch.equal(codes, weight.codes)
            assert weight.packed.numel() == ops.packed_bytes(n, k, bits)


@given(
    st.integers(1, 70), st.integers(1, 150), st.sampled_from([8, 6, 4]), st.integers(0, 2**32 - 1)
)
@settings(max_examples=40, deadline=None)
def test_round_trip_of_any_shape(n, k, bits, seed):
    g = torch.Generator().manual_seed(seed)
    zero = None if bits == 8 else torch.randint(0, 2**bits, (n,), generator=g).to(torch.int32)
    low, high = (-127, 128) if bits == 8 else (0, 2**bits)
    codes = torch.randint(low, high, (n, k), generator=g).to(torch.int32)
    codes = (codes if zero is None else codes - zero[:, None]).to(torch.int8)
    packed = ops.pack_weight(codes, zero, bits)
    assert torch.equal(ops.unpack_weight(packed, zero, bits, n, k), codes)


@pytest.mark.parametrize("bits", [6, 4])
def test_every_level_at_every_place(bits):
    top = 2**bits - 1
    for zero_point in (0, 1, top):
        level = (torch.arange(16)[:, None] * 5 + torch.arange(64)) % (top + 1)
        zero = torch.full((16,), zero_point, dtype=torch.int32)
        codes = (level - zero_point).to(torch.int8)
        packed = ops.pack_weight(codes, zero, bits)
        assert torch.equal(ops.unpack_weight(packed, zero, bits, 16, 64), codes)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_takes_its_bits_of_memory(make, bits):
    n, k = 1024, 1024
    size = make(0).weight(n, k, bits).packed.numel()
    assert size == ops.packed_bytes(n, k, bits)
    assert size <= n * k * bits / 8 * 1.01


@pytest.mark.parametrize(
    ("n", "k", "bits", "size"),
    [
        (5, 16, 8, 5 * (16 + 4)), (5, 17, 8, 5 * (32 + 4)),
        (16, 64, 6, 16 * 64 * 6 // 8 + 16 * 4), (17, 65, 6, 4 * 16 * 64 * 6 // 8 + 2 * 16 * 4),
        (16, 64, 4, 16 * 64 // 2 + 16 * 4), (1, 65, 4, 2 * 16 * 64 // 2 + 16 * 4),
    ],
)  # fmt: skip
def test_bytes_on_a_gpu(n, k, bits, size):
    """Rows of 16 bytes at 8 bits, tiles of 16 by 64 below, and a sum of 4 bytes for each column."""
    assert ops.packed_bytes(n, k, bits, "cuda") == size


def test_zero_of_none_is_the_middle_level(make):
    weight = make(0).weight(20, 12, 6, with_zero=False)
    zero = torch.full((20,), 32, dtype=torch.int32)
    assert torch.equal(weight.packed, ops.pack_weight(weight.codes, zero, 6))


def test_takes_strided_codes(make):
    weight = make(0).weight(20, 12, 4)
    wide = torch.zeros(20, 24, dtype=torch.int8)
    wide[:, ::2] = weight.codes
    assert torch.equal(ops.pack_weight(wide[:, ::2], weight.zero, 4), weight.packed)


def test_same_bytes_with_one_thread(make):
    weight = make(0).weight(100, 300, 6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(ops.pack_weight(weight.codes, weight.zero, 6), weight.packed)
    finally:
        torch.set_num_threads(threads)
