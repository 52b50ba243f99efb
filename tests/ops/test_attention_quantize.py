"""attention_quantize against the reference and the two operators that it joins, code for code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptq4arvg import ops
from ptq4arvg.reference_attention import attention_quantize as reference

BLOCKS = (0, 2, 4, 8, 16)


def _operands(maker, images: int, heads: int, tokens: int, size: int, positions: int) -> tuple:
    """q, keys, values, k_scale, v_scale, v_shift, over a cache of any codes at all."""
    cache = (maker.codes(*s) for s in ops.kv_cache_shapes(images, heads, positions, size))
    q = maker.normal(images, heads, tokens, size) / math.sqrt(size)
    tables = maker.uniform(0.01, 0.04, heads, size), maker.uniform(0.01, 0.04, heads, size)
    return q, *cache, *tables, maker.normal(heads, size)


def _table(maker, entries: int, bits: int) -> dict[str, Tensor | int]:
    zero = torch.randint(0, 2**bits, (entries,), dtype=torch.int32)
    return {"out_inv_scale": maker.uniform(2, 20, entries), "out_zero": zero, "out_bits": bits}


def _index(value: int | None) -> Tensor | None:
    return None if value is None else torch.tensor([value], dtype=torch.int32)


@given(
    images=st.integers(0, 3), heads=st.integers(1, 4), size=st.integers(1, 32),
    tokens=st.integers(0, 20), before=st.none() | st.integers(0, 30),
    bits=st.sampled_from((8, 6, 4)), data=st.data(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(isa, make, images, heads, size, tokens, before, bits, data, seed):
    maker, size = make(seed), 4 * size
    operands = _operands(maker, images, heads, tokens, size, tokens + (before or 0) + 1)
    block = data.draw(st.sampled_from([b for b in BLOCKS if not b or size % b == 0]), "block")
    first = data.draw(st.none() | st.integers(0, 9), "place in the table")
    one = data.draw(st.booleans(), "one entry")
    to = _table(maker, 1 if one else tokens + (first or 0) + 2, bits)
    where = {"position": _index(before), "out_position": None if one else _index(first)}
    actual = ops.attention_quantize(*operands, **to, **where, out_rotation=block)
    assert actual.dtype == torch.int8 and actual.shape == (images, tokens, heads * size)
    assert torch.equal(actual, reference(*operands, **to, **where, out_rotation=block))
    y = ops.attention(*operands, position=where["position"])
    apart = ops.quantize(
        y, to["out_inv_scale"], to["out_zero"], bits, where["out_position"],
        1 if one else tokens, block,
    ) if tokens else y  # fmt: skip
    assert torch.equal(actual, apart)


@pytest.mark.parametrize("size", range(4, 129, 4))
def test_every_head_and_block(isa, make, size):
    """Heads that begin at every column of the signs' pattern, queries of every remainder."""
    maker = make(size)
    for tokens in (1, 4, 13):
        operands = _operands(maker, 1, 5, tokens, size, 40)
        to = _table(maker, tokens, 8)
        for block in BLOCKS:
            if block and size % block:
                continue
            limits = torch.arange(1, tokens + 1, dtype=torch.int32)
            actual = ops.attention_quantize(*operands, **to, limits=limits, out_rotation=block)
            wanted = reference(*operands, **to, limits=limits, out_rotation=block)
            assert torch.equal(actual, wanted), (tokens, block)


def test_queries_that_are_not_numbers(isa, make):
    """Their codes are those that `quantize` gives NaN: the least."""
    operands = _operands(make(0), 1, 2, 3, 32, 16)
    operands[0][0, 1, 1, 5] = torch.nan
    to = _table(make(1), 3, 6)
    codes = ops.attention_quantize(*operands, **to)
    assert torch.equal(codes, reference(*operands, **to))
    assert (codes[0, 1, 32:] == -to["out_zero"][1]).all()
