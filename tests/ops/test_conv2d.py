"""conv2d against its specification, bit for bit, and that against PyTorch's convolution of
integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ptq4arvg import ops
from ptq4arvg.reference_map import conv2d as reference
from ptq4arvg.reference_map import conv_columns

BITS = (8, 6, 4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = (1, 2, 3, 4, 5)
_settings = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _same(same_bits, a: Tensor, weight, a_scale: Tensor, *args, **options) -> Tensor:
    """args: a_zero, w_sum and bias."""
    a_zero, w_sum, bias = (*args, None, None, None)[:3]
    rest = a_scale, weight.scale, a_zero, w_sum, weight.zero, bias
    actual = ops.conv2d(a, weight.packed, *rest, bits=weight.bits, **options)
    expected = reference(a, weight.dense, *rest, bits=weight.bits, **options)
    assert actual.is_contiguous()
    assert torch.equal(actual.isnan(), expected.isnan())
    same_bits(actual.nan_to_num(0), expected.nan_to_num(0))
    return actual


@given(
    images=st.integers(0, 3), height=st.integers(1, 9), width=st.integers(1, 9),
    channels=st.integers(1, 40), n=st.integers(1, 40), kernel=st.sampled_from(KERNELS),
    bits=st.sampled_from(BITS), activation=st.sampled_from(sorted(ops.ACTIVATIONS)),
    given_=st.sets(st.sampled_from(("a_zero", "w_sum", "bias", "residual", "w_zero"))),
    of_bias=st.sampled_from(DTYPES), of_residual=st.sampled_from(DTYPES),
    out_dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@_settings
def test_convolutions_of_any_shape(
    isa, make, same_bits, images, height, width, channels, n, kernel, bits, activation, given_,
    of_bias, of_residual, out_dtype, seed,
):  # fmt: skip
    """height and width are those of the output."""
    maker = make(seed)
    a = maker.codes(images, height + kernel - 1, width + kernel - 1, channels)
    weight = maker.weight(n, kernel * kernel * channels, bits, "w_zero" in given_)
    residual = maker.normal(images, height, width, n, dtype=of_residual)
    _same(
        same_bits, a, weight, maker.uniform(0.01, 0.1, 1),
        maker.integers(-128, 127, 1) if "a_zero" in given_ else None,
        weight.w_sum if "w_sum" in given_ else None,
        maker.normal(n, dtype=of_bias) if "bias" in given_ else None,
        residual=residual if "residual" in given_ else None,
        kernel_size=kernel, activation=activation, out_dtype=out_dtype,
    )  # fmt: skip


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("size", "channels", "n", "kernel"), [
    (33, 16, 40, 3), (17, 64, 70, 3), (40, 3, 16, 5), (9, 250, 33, 3), (31, 128, 64, 1),
])  # fmt: skip
def test_convolutions_of_many_blocks(isa, make, same_bits, bits, size, channels, n, kernel):
    maker = make(bits)
    weight = maker.weight(n, kernel * kernel * channels, bits)
    a = maker.codes(2, size + kernel - 1, size - 2 + kernel - 1, channels)
    a_zero = maker.integers(-128, 127, 1)
    _same(same_bits, a, weight, maker.uniform(0.01, 0.1, 1), a_zero, kernel_size=kernel)


def test_residuals_and_biases_at_their_ends(isa, make, same_bits):
    maker, ends = make(7), (math.inf, -math.inf, math.nan, 0.0, -0.0, 3e38)
    weight, a = maker.weight(6, 36, 8), maker.codes(1, 4, 5, 4)
    a_scale, residual = maker.uniform(0.01, 0.1, 1), maker.normal(1, 2, 3, 6)
    residual[0, 0] = torch.tensor(ends)
    for bias in (None, torch.tensor(ends).roll(2)):
        for out_dtype in DTYPES:
            _same(
                same_bits, a, weight, a_scale, None, None, bias, residual=residual,
                out_dtype=out_dtype,
            )  # fmt: skip


@pytest.mark.parametrize("kernel", [1, 3])
def test_strides_of_codes(isa, make, same_bits, kernel):
    maker = make(8)
    a = maker.codes(4, 12, 10, 18)
    first = maker.codes(2, 18, 7, 8).permute(0, 2, 3, 1)  # channels first
    for part in (first, a.transpose(1, 2), a[..., 2:11], a[..., ::2], a[::2], a[:, 1:8, 2:7],
                 a[:1].expand(3, -1, -1, -1)):  # fmt: skip
        b, h, w, c = part.shape
        weight = maker.weight(5, kernel**2 * c, 6)
        shape = b, 5, h - kernel + 1, w - kernel + 1
        _same(
            same_bits, part, weight, maker.uniform(0.01, 0.1, 1), maker.integers(0, 63, 1),
            kernel_size=kernel, residual=maker.normal(*shape).permute(0, 2, 3, 1),
        )  # fmt: skip


@given(
    height=st.integers(1, 8), width=st.integers(1, 8), channels=st.integers(1, 30),
    n=st.integers(1, 20), kernel=st.sampled_from((1, 3, 5)), bits=st.sampled_from(BITS),
    a_bits=st.sampled_from(BITS), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@_settings
def test_it_is_the_convolution_of_integers(
    isa, make, height, width, channels, n, kernel, bits, a_bits, seed
):
    """Scales of 1: the output is the sum itself, that of a map padded with zeros."""
    assume(channels * kernel**2 * 255 * 127 < 2**24)  # float32 holds it
    maker = make(seed)
    weight = maker.weight(n, kernel**2 * channels, bits)
    ones, zero = torch.ones(1), maker.integers(0, 2**a_bits - 1, 1)
    x = maker.integers(0, 2**a_bits - 1, 2, height, width, channels) - zero
    a = ops.quantize_map(x.float(), ones, zero, a_bits, border=kernel // 2)
    y = ops.conv2d(
        a, weight.packed, ones, torch.ones(n), zero - 128 if a_bits == 8 else None,
        w_zero=weight.zero, bits=bits, kernel_size=kernel,
    )  # fmt: skip
    taps = weight.codes.unflatten(1, (kernel, kernel, channels)).permute(0, 3, 1, 2)
    assert torch.equal(conv_columns(taps), weight.codes)
    exact = F.conv2d(x.permute(0, 3, 1, 2).double(), taps.double(), padding=kernel // 2)
    assert torch.equal(y.double(), exact.permute(0, 2, 3, 1))


def test_results_do_not_depend_on_the_number_of_threads(isa, make, same_bits):
    maker = make(9)
    a, weight = maker.codes(2, 42, 42, 64), maker.weight(48, 9 * 64, 6)
    rest, w_zero = (maker.uniform(0.01, 0.1, 1), weight.scale), weight.zero
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.conv2d(a, weight.packed, *rest, w_zero=w_zero, bits=6))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        same_bits(other, found[0])


def test_an_image_does_not_depend_on_the_others(isa, make, same_bits):
    maker = make(10)
    a, weight, one = maker.codes(3, 9, 8, 20), maker.weight(30, 180, 8), torch.ones(1)
    whole, *parts = (ops.conv2d(x, weight.packed, one, weight.scale) for x in (a, *a.split(1)))
    same_bits(torch.cat(parts), whole)


@pytest.mark.parametrize("bits", BITS)
def test_the_kernel_that_ran_can_be_asked_for(isa, make, bits):
    maker = make(11)
    weight, listed = maker.weight(2, 36, bits), [k["name"] for k in ops.list_kernels()]
    rest = {"w_zero": weight.zero, "bits": bits}
    for size in (3, 22):
        a = maker.codes(1, size, size, 4)
        ops.conv2d(a, weight.packed, torch.ones(1), weight.scale, **rest)
        ran = "avx512_vnni" if isa == "amx_int8" and size == 3 else isa  # AMX hands few rows on
        assert ops.last_kernel() == f"conv2d.w{bits}.{ran}" and ops.last_kernel() in listed
