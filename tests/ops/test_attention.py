"""store_kv and attention against the reference, bit for bit, on every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptq4arvg import ops
from ptq4arvg.reference_attention import attention as reference_attention
from ptq4arvg.reference_attention import store_kv as reference_store_kv

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = st.integers(1, 32).map(lambda groups: 4 * groups)


def _same(same_bits, actual: Tensor, expected: Tensor) -> None:
    """The same bits, and NaN in the same places: which of the NaNs is the processor's business."""
    assert torch.equal(actual.isnan(), expected.isnan())
    same_bits(actual.nan_to_num(0, torch.inf, -torch.inf),
              expected.nan_to_num(0, torch.inf, -torch.inf))  # fmt: skip


def _position(value: int | None) -> Tensor | None:
    return None if value is None else torch.tensor([value], dtype=torch.int32)


@dataclass
class Layer:
    """Scales and shifts of a layer's heads, and a cache."""

    k_scale: Tensor
    k_shift: Tensor
    v_scale: Tensor
    v_shift: Tensor
    cache: tuple[Tensor, Tensor]

    def store(self, k: Tensor, v: Tensor, position: int | None = None, op=ops.store_kv) -> None:
        tables = (self.k_scale, self.k_shift, self.v_scale, self.v_shift)
        op(k, v, *self.cache, *tables, _position(position))

    def attend(self, q: Tensor, op=ops.attention, **options) -> Tensor:
        return op(q, *self.cache, self.k_scale, self.v_scale, self.v_shift, **options)

    def both(self, same_bits, q: Tensor, **options) -> Tensor:
        actual = self.attend(q, **options)
        _same(same_bits, actual, self.attend(q, reference_attention, **options))
        assert actual.is_contiguous()
        return actual


def _layer(maker, images: int, heads: int, positions: int, size: int) -> Layer:
    """A layer whose cache holds any codes at all, -128 included."""
    shapes = ops.kv_cache_shapes(images, heads, positions, size)
    return Layer(
        maker.uniform(0.01, 0.04, heads, size), maker.normal(heads, size),
        maker.uniform(0.01, 0.04, heads, size), maker.normal(heads, size),
        tuple(maker.codes(*shape) for shape in shapes),
    )  # fmt: skip


def _qkv(maker, images: int, heads: int, tokens: int, size: int, dtype=torch.float32):
    """Views of one projection: channels contiguous, heads and tokens strided."""
    x = maker.normal(images, tokens, 3, heads, size, dtype=dtype)
    q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
    return q / math.sqrt(size), k, v


@given(
    images=st.integers(0, 3), heads=st.integers(1, 4), size=SIZES, positions=st.integers(1, 70),
    data=st.data(), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from(DTYPES),
)  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(
    isa, make, same_bits, images, heads, size, positions, data, seed, dtype, out_dtype
):
    """A cache full of anything, some of it stored over, read with every kind of limit."""
    maker = make(seed)
    layer = _layer(maker, images, heads, positions, size)
    tokens = data.draw(st.integers(0, positions), "tokens")
    position = data.draw(st.none() | st.integers(0, positions - tokens), "position")
    q, k, v = _qkv(maker, images, heads, tokens, size, dtype)
    expected = tuple(codes.clone() for codes in layer.cache)
    layer.store(k, v, position)
    reference = Layer(layer.k_scale, layer.k_shift, layer.v_scale, layer.v_shift, expected)
    reference.store(k, v, position, reference_store_kv)
    for actual, wanted in zip(layer.cache, expected, strict=True):
        same_bits(actual, wanted)
    options = {"out_dtype": out_dtype}
    if data.draw(st.booleans(), "with limits"):
        limits = st.lists(st.integers(1, positions), min_size=tokens, max_size=tokens)
        options["limits"] = torch.tensor(data.draw(limits, "limits"), dtype=torch.int32)
    else:
        options["position"] = _position(position)
    y = layer.both(same_bits, q, **options)
    assert y.shape == (images, tokens, heads * size)


@pytest.mark.parametrize("size", range(4, 129, 4))
def test_every_head_size(isa, make, same_bits, size):
    maker = make(size)
    layer = _layer(maker, 1, 2, 48, size)
    for tokens in range(1, 14):  # every remainder of the kernels' blocks of queries
        q, _, _ = _qkv(maker, 1, 2, tokens, size)
        layer.both(same_bits, q, position=_position(tokens % 3))
    layer.both(same_bits, q, limits=torch.arange(1, 14, dtype=torch.int32))


def test_every_number_of_keys(isa, make, same_bits):
    """Past eight panels, which the kernels take together."""
    maker = make(1)
    layer = _layer(maker, 1, 1, 300, 20)
    q, _, _ = _qkv(maker, 1, 1, 300, 20)
    layer.both(same_bits, q, limits=torch.arange(1, 301, dtype=torch.int32))
    for keys in (1, 15, 16, 17, 127, 128, 129, 144, 300, 304):
        layer.both(same_bits, q[:, :, :1], position=_position(keys - 1))


def test_the_greatest_sums(isa, make, same_bits):
    """Nothing overflows: codes of +-127 and -128 in the largest head, all probabilities equal."""
    maker = make(2)
    layer = _layer(maker, 1, 1, 64, 128)
    q = torch.ones(1, 1, 7, 128)
    layer.k_scale.fill_(1e-5)
    for k_code, v_code in ((127, 127), (-127, -127), (-128, -128), (127, -128)):
        layer.cache[0].fill_(k_code)
        layer.cache[1].fill_(v_code)
        y = layer.both(same_bits, q, position=_position(57))
        exact = v_code * layer.v_scale.flatten() + layer.v_shift.flatten()
        torch.testing.assert_close(y, exact.expand_as(y), rtol=1e-5, atol=1e-5)
    # The greatest differences of scores.
    layer.cache[0].fill_(-128)
    layer.cache[0][:, :, 2, :, 5] = 127
    layer.k_scale.fill_(1.0)
    v_code = ops.unpack_kv(*layer.cache)[1][0, 0, 37]
    y = layer.both(same_bits, q, position=_position(57))
    exact = v_code * layer.v_scale.flatten() + layer.v_shift.flatten()
    torch.testing.assert_close(y, exact.expand_as(y), rtol=1e-5, atol=1e-5)


def test_the_largest_cache(isa, make, same_bits):
    """65536 keys of -128: the sum over the values is within 0.4% of the least int32."""
    layer = _layer(make(3), 1, 1, 65536, 4)
    layer.cache[0].fill_(1)
    layer.cache[1].fill_(-128)
    y = layer.both(same_bits, torch.ones(1, 1, 1, 4), position=_position(65535))
    exact = -128 * layer.v_scale.flatten() + layer.v_shift.flatten()
    torch.testing.assert_close(y[0, 0], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_dtypes(isa, make, same_bits, dtype):
    """Whatever the layout of q, k and v, the results are those of contiguous ones."""
    maker = make(4)
    layer = _layer(maker, 2, 3, 20, 12)
    wide = maker.normal(2, 3, 10, 40, dtype=dtype)
    by_channel = maker.normal(2, 12, 3, 10, dtype=dtype).permute(0, 2, 3, 1)
    fewer = maker.normal(1, 3, 1, 12, dtype=dtype).expand(2, 3, 10, 12)
    for x in (
        *_qkv(maker, 2, 3, 10, 12, dtype),
        wide[..., 5:17],
        wide[..., ::3][..., :12],
        by_channel,
        fewer,
        maker.normal(3, 2, 10, 12, dtype=dtype).transpose(0, 1),
    ):
        layer.store(x.contiguous(), x.contiguous(), 3)
        expected = [codes.clone() for codes in layer.cache]
        for codes in layer.cache:
            codes[:] = maker.codes(*codes.shape)
        layer.store(x, x, 3)
        for codes, wanted in zip(ops.unpack_kv(*layer.cache), ops.unpack_kv(*expected),
                                 strict=True):  # fmt: skip
            same_bits(codes[:, :, 3:13].contiguous(), wanted[:, :, 3:13].contiguous())
        for out_dtype in DTYPES:
            y = layer.both(same_bits, x, position=_position(3), out_dtype=out_dtype)
            same_bits(y, layer.attend(x.contiguous(), position=_position(3), out_dtype=out_dtype))


def test_tables_with_strides(isa, make, same_bits):
    maker = make(5)
    layer = _layer(maker, 1, 2, 20, 8)
    wide = maker.uniform(0.01, 0.04, 8, 4)
    layer.k_scale, layer.k_shift = wide.t()[:2], wide.t()[2:]
    layer.v_scale, layer.v_shift = wide.t()[::2], wide.t()[1::2]
    q, k, v = _qkv(maker, 1, 2, 20, 8)
    layer.store(k, v)
    limits = torch.arange(1, 41, dtype=torch.int32)[::2].clamp(max=32)
    layer.both(same_bits, q, limits=limits)


def test_unpack_inverts_store(isa, make):
    """Codes at their positions, as the formula has them, and nothing anywhere else."""
    maker = make(6)
    for size, positions, first, tokens in ((4, 16, 0, 16), (12, 50, 7, 30), (128, 33, 32, 1)):
        layer = _layer(maker, 2, 3, positions, size)
        before = ops.unpack_kv(*layer.cache)
        _, k, v = _qkv(maker, 2, 3, tokens, size)
        k, v = k * 3, v * 3  # some of them past the greatest code
        layer.store(k, v, first)
        tables = ((k, layer.k_scale, layer.k_shift), (v, layer.v_scale, layer.v_shift))
        for after, old, (x, scale, shift) in zip(
            ops.unpack_kv(*layer.cache), before, tables, strict=True
        ):
            codes = ((x - shift[:, None]) * (1 / scale)[:, None]).round().clamp(-127, 127)
            assert torch.equal(after[:, :, first : first + tokens], codes.to(torch.int8))
            assert torch.equal(after[:, :, :first], old[:, :, :first])
            assert torch.equal(after[:, :, first + tokens :], old[:, :, first + tokens :])
            assert int(codes.abs().max()) == 127
            error = (codes * scale[:, None] + shift[:, None] - x).abs() / scale[:, None]
            assert float(error[codes.abs() < 127].max()) < 0.501


def test_special_values_in_the_cache(isa, same_bits):
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[[[nan, inf, -inf, 3e38], [-3e38, 1e-45, -0.0, 0.5], [1.5, 2.5, -0.5, -1.5],
                        [126.5, 127.5, -126.5, -127.5]]]])  # fmt: skip
    for scale in (1.0, 1e-45, 1e38):
        for shift in (0.0, 3e38, -0.5):
            tables = [torch.full((1, 4), value) for value in (scale, shift, scale, shift)]
            for dtype in DTYPES:
                caches = [ops.empty_kv_cache(1, 1, 16, 4) for _ in range(2)]
                ops.store_kv(x.to(dtype), x.to(dtype), *caches[0], *tables)
                reference_store_kv(x.to(dtype), x.to(dtype), *caches[1], *tables)
                for actual, expected in zip(*caches, strict=True):
                    same_bits(actual, expected)


def test_what_was_not_written_makes_no_difference(isa, make, same_bits):
    maker = make(7)
    for size, tokens, first in ((64, 5, 0), (20, 1, 32), (128, 17, 3)):
        layer = _layer(maker, 2, 2, 60, size)
        q, k, v = _qkv(maker, 2, 2, first + tokens, size)
        outputs = []
        for _ in range(3):
            layer.cache = tuple(maker.codes(*codes.shape) for codes in layer.cache)
            layer.store(k, v)
            outputs.append(layer.attend(q[:, :, first:], position=_position(first)))
        same_bits(outputs[1], outputs[0])
        same_bits(outputs[2], outputs[0])


def test_filling_in_pieces(isa, make, same_bits):
    """Position by position, in scales of several tokens, or at once."""
    maker = make(8)
    whole, pieces = (_layer(make(9), 2, 3, 40, 16) for _ in range(2))
    q, k, v = _qkv(maker, 2, 3, 40, 16)
    whole.store(k, v)
    limits = torch.empty(40, dtype=torch.int32)
    outputs = []
    for begin, end in ((0, 1), (1, 4), (4, 5), (5, 20), (20, 39), (39, 40)):
        pieces.store(k[:, :, begin:end], v[:, :, begin:end], begin)
        outputs.append(pieces.attend(q[:, :, begin:end], position=_position(begin)))
        limits[begin:end] = end
    for actual, expected in zip(ops.unpack_kv(*pieces.cache), ops.unpack_kv(*whole.cache),
                                strict=True):  # fmt: skip
        assert torch.equal(actual[:, :, :40], expected[:, :, :40])
    same_bits(torch.cat(outputs, 1), whole.attend(q, limits=limits))
    # A query's output is its own: no other query of the call, nor any other image, has a part.
    whole.cache = tuple(codes[1:] for codes in whole.cache)
    same_bits(
        whole.attend(q[1:, :, 7:8], limits=limits[7:8]), torch.cat(outputs, 1)[1:, 7:8].contiguous()
    )


def test_gaps_between_images(isa, make, same_bits):
    """Fewer images than the cache was made for, and caches within larger tensors."""
    maker = make(10)
    layer = _layer(maker, 5, 2, 30, 8)
    large, (q, k, v) = layer.cache, _qkv(maker, 2, 2, 9, 8)
    (k_shape, v_shape), room = ops.kv_cache_shapes(2, 2, 30, 8), 3000
    assert math.prod(k_shape[1:]) == math.prod(v_shape[1:]) < room
    outputs = []
    flat = [maker.codes(2, room) for _ in range(2)]
    within = [
        buffer[:, 7 : 7 + math.prod(shape[1:])].unflatten(1, shape[1:])
        for buffer, shape in zip(flat, (k_shape, v_shape), strict=True)
    ]
    for cache in ([codes[:2] for codes in large], [codes[1::2] for codes in large], within):
        before = [codes.clone() for codes in (*large, *flat)]
        layer.cache = tuple(cache)
        layer.store(k, v, 4)
        layer.store(k, v, 0)
        outputs.append(layer.both(same_bits, q, position=_position(4)))
        stored = [codes.clone() for codes in cache]
        for codes in cache:
            codes.zero_()
        for codes, old in zip((*large, *flat), before, strict=True):
            changed = codes != old
            assert not (changed & (codes != 0)).any()  # outside the images nothing has changed
        for codes, kept in zip(cache, stored, strict=True):
            codes.copy_(kept)
    same_bits(outputs[1], outputs[0])
    same_bits(outputs[2], outputs[0])
    # All images may read one cache.
    layer.cache = tuple(codes[:1].expand(2, *codes.shape[1:]) for codes in within)
    layer.both(same_bits, q, position=_position(4))


def test_a_query_that_is_not_finite(isa, make, same_bits):
    """It has NaN for its output in its head; every other query has what it had."""
    maker = make(11)
    layer = _layer(maker, 2, 3, 40, 24)
    q, _, _ = _qkv(maker, 2, 3, 13, 24)
    position = _position(9)
    before = layer.attend(q, position=position).unflatten(2, (3, 24))
    for value in (torch.nan, torch.inf, -torch.inf, 3e38):
        spoiled = q.clone()
        spoiled[1, 2, 7, 23] = value
        after = layer.both(same_bits, spoiled, position=position).unflatten(2, (3, 24))
        assert after[1, 7, 2].isnan().all()
        after[1, 7, 2] = before[1, 7, 2]
        same_bits(after, before)


def test_tiny_queries_attend_uniformly(isa, make, same_bits):
    maker = make(12)
    layer = _layer(maker, 1, 2, 30, 16)
    _, k, v = _qkv(maker, 1, 2, 30, 16)
    layer.store(k, v)
    _, codes = ops.unpack_kv(*layer.cache)
    mean = codes[:, :, :30].double().mean(2) * layer.v_scale + layer.v_shift
    for q in (torch.full((1, 2, 3, 16), 1e-38), torch.zeros(1, 2, 3, 16), k[:, :, :3] * 1e-36):
        y = layer.both(same_bits, q, position=_position(27))
        expected = mean.flatten()[None, None].expand_as(y).float()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top", [0.9e-30, 1.1e-30, 0.9e30, 1.1e30, 1e-10, 1e10])
def test_magnitudes(isa, make, same_bits, top):
    maker = make(13)
    layer = _layer(maker, 1, 1, 30, 16)
    layer.k_scale.fill_(1.0)
    q = maker.normal(1, 1, 5, 16)
    y = layer.both(same_bits, q / q.abs().amax(-1, keepdim=True) * top, position=_position(25))
    assert y.isnan().all() == (top > 1e30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens_and_no_images(isa, make, same_bits, dtype):
    maker = make(14)
    for images, tokens in ((0, 3), (2, 0), (0, 0)):
        layer = _layer(maker, images, 2, 20, 8)
        before = [codes.clone() for codes in layer.cache]
        q, k, v = _qkv(maker, images, 2, tokens, 8)
        layer.store(k, v)
        for codes, old in zip(layer.cache, before, strict=True):
            assert torch.equal(codes, old)
        limits = torch.ones(tokens, dtype=torch.int32)
        for options in ({}, {"position": _position(1)}, {"limits": limits}):
            y = layer.both(same_bits, q, out_dtype=dtype, **options)
            assert y.shape == (images, tokens, 16)


def _exact(layer: Layer, q: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Softmax attention in float64 on what the cache holds, [B, H, t, d], and a bound of the error.

    Let u = q k_scale, top = max |u|, and n keys.
    - A code of the query is off by at most 1/2, which is top / 254 of u. A score is then off by at
      most e = top / 254 max_j sum_c |k_code[j, c]|, and the share of any set of keys by at most
      tanh(e / 2): the ratio of its weight to that of the others changes by at most exp(2 e).
    - A level is off by at most .52 of 255 of the greatest probability, 1 / 510 and what the
      polynomial adds. The mean of n values with these weights is off by at most
      n .52 / 255 / W of their range, W >= 1 the sum of the levels / 255.
    """
    k, v = (codes[:, :, :keys].double() for codes in ops.unpack_kv(*layer.cache))
    u = q.double() * layer.k_scale[:, None]
    v = v * layer.v_scale[:, None] + layer.v_shift[:, None]
    scores = u @ k.transpose(2, 3)
    expected = scores.softmax(-1) @ v
    e = u.abs().amax(-1, keepdim=True) / 254 * k.abs().sum(-1).amax(-1)[..., None, None]
    rounding = keys * 0.52 / 255
    weights = (scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    weights = ((-2 * e).exp() * weights - rounding).clamp(min=1)
    spread = (v.amax(2) - v.amin(2))[:, :, None]
    return expected, spread * ((e / 2).tanh() + rounding / weights) + 1e-5 * v.abs().max()


@given(
    size=SIZES, keys=st.integers(1, 150), sharpness=st.floats(0.1, 8.0),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_error_bound(isa, make, size, keys, sharpness, seed):
    maker = make(seed)
    layer = _layer(maker, 2, 2, keys, size)
    _, k, v = _qkv(maker, 2, 2, keys, size)
    layer.store(k, v)
    q = maker.normal(2, 2, 5, size) * sharpness / math.sqrt(size)
    limits = torch.full((5,), keys, dtype=torch.int32)
    y = layer.attend(q, limits=limits).unflatten(2, (2, size)).transpose(1, 2)
    expected, bound = _exact(layer, q, keys)
    assert ((y - expected).abs() <= bound).all()


def test_typical_error(isa, make):
    """Far less than the bound: below 1% of the values' spread for heads as models have them."""
    maker = make(15)
    for keys in (16, 256, 680):
        layer = _layer(maker, 1, 4, keys, 64)
        q, k, v = _qkv(maker, 1, 4, keys, 64)
        for x, scale, shift in ((k, "k_scale", "k_shift"), (v, "v_scale", "v_shift")):
            least, most = x.amin((0, 2)), x.amax((0, 2))
            setattr(layer, scale, (most - least) / 254)
            setattr(layer, shift, (most + least) / 2)
        layer.store(k, v)
        y = layer.attend(q).unflatten(2, (4, 64)).transpose(1, 2)
        expected, _ = _exact(layer, q, keys)
        assert float((y - expected).square().mean().sqrt()) < 0.01
        # And not much more with what int8 keys and values cost.
        floats = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        assert float((y - floats).square().mean().sqrt()) < 0.02


def test_a_constant_added_to_all_keys(isa, make, same_bits):
    """With it in k_shift too it changes nothing, since it adds the same to all of a query's scores.

    The numbers are multiples of 1/64, so that no addition rounds.
    """
    maker = make(16)
    layer = _layer(maker, 2, 2, 50, 32)
    layer.k_shift = maker.integers(-64, 64, 2, 32) / 64
    q, _, v = _qkv(maker, 2, 2, 50, 32)
    k = maker.integers(-128, 128, 2, 2, 50, 32) / 64
    constant = maker.integers(-500, 500, 2, 32) / 4
    layer.store(k, v)
    before = layer.attend(q)
    codes = layer.cache[0].clone()
    layer.k_shift = layer.k_shift + constant
    layer.store(k + constant[:, None], v)
    same_bits(layer.cache[0], codes)
    same_bits(layer.attend(q), before)
    # The softmax of what the codes stand for, with the shift, is the one without it.
    stored, _ = ops.unpack_kv(*layer.cache)
    scores = (stored * layer.k_scale[:, None]).double() @ q.double().transpose(2, 3)
    shifted = (stored * layer.k_scale[:, None] + layer.k_shift[:, None]).double()
    torch.testing.assert_close(
        (shifted @ q.double().transpose(2, 3)).softmax(2), scores.softmax(2), rtol=1e-3, atol=1e-6
    )


def test_thread_counts(isa, make, same_bits):
    maker = make(17)
    before = torch.get_num_threads()
    outputs, caches = [], []
    q, k, v = _qkv(maker, 2, 3, 250, 64)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            layer = _layer(make(18), 2, 3, 250, 64)
            layer.store(k, v)
            outputs.append(layer.attend(q))
            caches.append(layer.cache)
    finally:
        torch.set_num_threads(before)
    for output, cache in zip(outputs, caches, strict=True):
        same_bits(output, outputs[0])
        for actual, expected in zip(cache, caches[0], strict=True):
            same_bits(actual, expected)


def test_instruction_sets_agree_with_each_other(isa, make, same_bits):
    maker = make(19)
    layer = _layer(maker, 2, 4, 300, 64)
    q, k, v = _qkv(maker, 2, 4, 300, 64, torch.bfloat16)
    layer.store(k, v)
    y, cache = layer.attend(q), [codes.clone() for codes in layer.cache]
    ops.set_isa("scalar")
    layer.store(k, v)
    same_bits(layer.attend(q), y)
    for actual, expected in zip(layer.cache, cache, strict=True):
        same_bits(actual, expected)


def test_shapes_of_caches():
    assert ops.kv_cache_shapes(2, 3, 17, 8) == ((2, 3, 2, 2, 16, 4), (2, 3, 8, 8, 4))
    for size in (4, 64, 128):
        for positions in (1, 16, 33):
            keys, values = ops.empty_kv_cache(2, 3, positions, size)
            assert keys.dtype == values.dtype == torch.int8
            assert keys.numel() == values.numel() == 2 * 3 * size * (-(-positions // 16) * 16)
            assert not keys.any()
            assert not values.any()
            for codes in ops.unpack_kv(keys, values):
                assert codes.shape == (2, 3, -(-positions // 16) * 16, size)


def test_names_the_kernels_that_ran(isa, make):
    layer = _layer(make(20), 1, 1, 16, 4)
    x = torch.ones(1, 1, 1, 4)
    layer.store(x, x)
    assert ops.last_kernel() == f"store_kv.{isa}"
    layer.attend(x)
    assert ops.last_kernel() == f"attention.{isa}"
