"""store_qkv against the reference, bit for bit, and that against norms in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ptq4arvg import ops
from ptq4arvg.reference_attention import HEAD_NORMS
from ptq4arvg.reference_attention import store_qkv as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = st.integers(1, 32).map(lambda groups: 4 * groups)


def _tables(maker, heads: int, size: int) -> tuple[Tensor, ...]:
    return (
        maker.uniform(0.01, 0.04, heads, size), maker.normal(heads, size),
        maker.uniform(0.01, 0.04, heads, size), maker.normal(heads, size),
    )  # fmt: skip


def _cache(maker, images: int, heads: int, positions: int, size: int) -> tuple[Tensor, ...]:
    return tuple(maker.codes(*s) for s in ops.kv_cache_shapes(images, heads, positions, size))


def _steps(maker, heads: int, tokens: int, size: int, norm: str, dtype=torch.float32) -> dict:
    """Everything that can be done to q and k."""
    vectors = ("q_weight", "q_bias", "k_weight", "k_bias")
    return {
        "norm": norm, "eps": 1e-6,
        **{name: maker.normal(size, dtype=dtype) for name in vectors},
        "rotation": torch.view_as_real(torch.polar(
            torch.ones(tokens, size // 2), 3 * maker.normal(tokens, size // 2))),
        "q_factors": maker.normal(heads, dtype=dtype),
    }  # fmt: skip


def _same(same_bits, qkv: Tensor, cache: tuple[Tensor, ...], tables: tuple, **options) -> Tensor:
    expected_cache = [codes.clone() for codes in cache]
    actual = ops.store_qkv(qkv, *cache, *tables, **options)
    expected = reference(qkv, *expected_cache, *tables, **options)
    assert actual.shape == qkv[:, :, 0].shape and actual.is_contiguous()
    assert torch.equal(actual.isnan(), expected.isnan())
    same_bits(actual.nan_to_num(0), expected.nan_to_num(0).contiguous())
    for mine, wanted in zip(cache, expected_cache, strict=True):
        same_bits(mine, wanted)
    return actual


@given(
    images=st.integers(0, 3), heads=st.integers(1, 4), size=SIZES, positions=st.integers(1, 70),
    data=st.data(), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES),
    other=st.sampled_from(DTYPES), norm=st.sampled_from(HEAD_NORMS),
)  # fmt: skip
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(
    isa, make, same_bits, images, heads, size, positions, data, seed, dtype, other, norm
):
    maker = make(seed)
    tokens = data.draw(st.integers(0, positions), "tokens")
    begin = data.draw(st.none() | st.integers(0, positions - tokens), "position")
    steps = _steps(maker, heads, tokens, size, norm, other)
    for name in data.draw(st.sets(st.sampled_from(sorted(steps.keys() - {"norm"}))), "left out"):
        del steps[name]
    if data.draw(st.booleans(), "one factor"):
        steps.pop("q_factors", None)
        steps["q_factor"] = size**-0.5
    position = None if begin is None else torch.tensor([begin], dtype=torch.int32)
    _same(
        same_bits, maker.normal(images, tokens, 3, heads, size, dtype=dtype),
        _cache(maker, images, heads, positions, size), _tables(maker, heads, size),
        position=position, **steps,
    )  # fmt: skip


@pytest.mark.parametrize("norm", HEAD_NORMS)
@pytest.mark.parametrize("size", range(4, 129, 4))
def test_every_head_size(isa, make, same_bits, size, norm):
    maker = make(size)
    _same(
        same_bits, maker.normal(2, 19, 3, 2, size), _cache(maker, 2, 2, 32, size),
        _tables(maker, 2, size), position=torch.tensor([6], dtype=torch.int32),
        **_steps(maker, 2, 19, size, norm),
    )  # fmt: skip


def test_no_steps_are_store_kv(isa, make, same_bits):
    maker = make(1)
    qkv, tables = maker.normal(2, 9, 3, 3, 64, dtype=torch.bfloat16), _tables(maker, 3, 64)
    cache = _cache(maker, 2, 3, 20, 64)
    other = [codes.clone() for codes in cache]
    q = ops.store_qkv(qkv, *cache, *tables)
    same_bits(q, qkv[:, :, 0].contiguous())
    k, v = (qkv[:, :, i].transpose(1, 2) for i in (1, 2))
    ops.store_kv(k, v, *other, *tables)
    for mine, wanted in zip(cache, other, strict=True):
        same_bits(mine, wanted)
    assert ops.last_kernel() == f"store_kv.{isa}"


def _exact(x: Tensor, norm: str, weight: Tensor, bias: Tensor, turns: Tensor) -> Tensor:
    """x [B, t, H, d] in float64, by PyTorch's functions."""
    x, size = x.double(), x.shape[-1:]
    if norm == "l2":
        x = F.normalize(x, dim=-1, eps=1e-6)
    if norm == "layer":
        x = F.layer_norm(x, size, eps=1e-6)
    if norm == "rms":
        x = F.rms_norm(x, size, eps=1e-6)
    pairs = torch.view_as_complex((x * weight + bias).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(turns.double())[:, None]).flatten(-2)


@pytest.mark.parametrize("norm", HEAD_NORMS)
def test_what_it_computes(make, norm):
    """A step rounds by 6e-8 of its result, and an output is of some ten of them: 1e-6. A code is
    that of a number within 120 * 1e-6 of the exact one, so that it is off by so much at most."""
    maker = make(3)
    heads, size, tokens = 3, 64, 11
    qkv, steps = maker.normal(2, tokens, 3, heads, size), _steps(maker, heads, tokens, size, norm)
    turns = steps["rotation"]
    exact_q = _exact(qkv[:, :, 0], norm, steps["q_weight"], steps["q_bias"], turns)
    exact_q *= steps["q_factors"][:, None].double()
    exact_k = _exact(qkv[:, :, 1], norm, steps["k_weight"], steps["k_bias"], turns)
    exact_v = qkv[:, :, 2].double()
    scales = [(exact.abs().max() / 120).float() for exact in (exact_k, exact_v)]
    k_scale, v_scale = (scale.expand(heads, size) for scale in scales)
    zero = torch.zeros(heads, size)
    cache = ops.empty_kv_cache(2, heads, tokens, size)
    q = ops.store_qkv(qkv, *cache, k_scale, zero, v_scale, zero, **steps)
    assert (q - exact_q).abs().max() < 1e-6 * exact_q.abs().max()
    codes = (codes[:, :, :tokens].transpose(1, 2) for codes in ops.unpack_kv(*cache))
    for found, exact, scale in zip(codes, (exact_k, exact_v), scales, strict=True):
        assert (found - exact / scale.double()).abs().max() < 0.5 + 1e-4


@pytest.mark.parametrize("norm", HEAD_NORMS)
def test_numbers_at_their_ends(isa, make, same_bits, norm):
    """Zeros of both signs, infinity, NaN, numbers whose squares are none."""
    maker = make(4)
    qkv = maker.normal(1, 8, 3, 2, 16)
    ends = (0.0, -0.0, math.inf, math.nan, 1e30, 1e-30)
    for token, value in enumerate(ends):
        qkv[:, token, :, :, 3:5] = value
    qkv[:, 6], qkv[:, 7] = 0.0, -0.0
    cache = _cache(maker, 1, 2, 16, 16)
    _same(same_bits, qkv, cache, _tables(maker, 2, 16), norm=norm, q_factor=-1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(isa, make, same_bits, dtype):
    """Images, tokens, parts and heads in any order; channels apart are copied."""
    maker = make(5)
    tables = _tables(maker, 3, 20)
    shapes = {
        (0, 1, 2, 3, 4): (2, 7, 3, 3, 20), (1, 0, 3, 2, 4): (7, 2, 3, 3, 20),
        (0, 1, 4, 2, 3): (2, 7, 3, 20, 3),
    }  # fmt: skip
    for order, shape in shapes.items():
        qkv = maker.normal(*shape, dtype=dtype).permute(order)
        steps = _steps(maker, 3, 7, 20, "layer", dtype)
        steps["rotation"] = steps["rotation"].expand(2, 7, 10, 2)[1]
        steps["q_weight"] = maker.normal(40, dtype=dtype)[::2]
        _same(same_bits, qkv, _cache(maker, 2, 3, 32, 20), tables, **steps)


@pytest.mark.parametrize("norm", HEAD_NORMS)
def test_tokens_do_not_depend_on_each_other(isa, make, same_bits, norm):
    maker = make(6)
    qkv, tables = maker.normal(2, 40, 3, 2, 64, dtype=torch.bfloat16), _tables(maker, 2, 64)
    steps = _steps(maker, 2, 40, 64, norm)
    turns = steps.pop("rotation")
    whole, parts = (ops.empty_kv_cache(2, 2, 48, 64) for _ in range(2))
    q = ops.store_qkv(qkv, *whole, *tables, rotation=turns, **steps)
    found = []
    for begin, end in ((0, 1), (1, 6), (6, 23), (23, 40)):
        position = torch.tensor([begin], dtype=torch.int32)
        found.append(ops.store_qkv(qkv[:, begin:end], *parts, *tables, position=position,
                                   rotation=turns[begin:end], **steps))  # fmt: skip
    same_bits(torch.cat(found, 1), q)
    for mine, wanted in zip(parts, whole, strict=True):
        same_bits(mine, wanted)
