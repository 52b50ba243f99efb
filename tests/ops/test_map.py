"""quantize_map against its specification, bit for bit, and that against PyTorch's functions in
float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ptq4arvg import ops
from ptq4arvg.reference_map import quantize_map as reference

BITS = (8, 6, 4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _grid(maker, bits: int) -> tuple[Tensor, Tensor, int]:
    return maker.uniform(0.5, 40, 1), maker.integers(0, 2**bits - 1, 1), bits


def _same(same_bits, x: Tensor, grid: tuple, **options) -> Tensor:
    actual, expected = ops.quantize_map(x, *grid, **options), reference(x, *grid, **options)
    assert actual.is_contiguous()
    same_bits(actual, expected)
    return actual


@given(
    images=st.integers(0, 3), height=st.integers(1, 14), width=st.integers(1, 14),
    channels=st.integers(1, 50), dtype=st.sampled_from(DTYPES), of_weight=st.sampled_from(DTYPES),
    of_bias=st.sampled_from(DTYPES), bits=st.sampled_from(BITS), seed=st.integers(0, 2**32 - 1),
    activation=st.sampled_from(sorted(ops.ACTIVATIONS)), scale=st.integers(1, 3),
    border=st.integers(0, 2), eps=st.sampled_from((0.0, 1e-6, 0.1)), data=st.data(),
)  # fmt: skip
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_maps_of_any_shape(
    isa, make, same_bits, images, height, width, channels, dtype, of_weight, of_bias, bits, seed,
    activation, scale, border, eps, data,
):  # fmt: skip
    maker = make(seed)
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    groups = data.draw(st.sampled_from([0, *divisors]), "groups")
    vectors = {
        "weight": maker.normal(channels, dtype=of_weight),
        "bias": maker.normal(channels, dtype=of_bias),
    }
    drawn = data.draw(st.sets(st.sampled_from(sorted(vectors))), "given") if groups else ()
    x = maker.normal(images, height, width, channels) * 3 + maker.normal(channels)
    _same(
        same_bits, x.to(dtype), _grid(maker, bits), groups=groups, activation=activation, eps=eps,
        scale=scale, border=border, **{name: vectors[name] for name in drawn},
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(1, 63), (8, 8), (5, 13), (33, 33), (40, 30)])
def test_statistics_of_many_pixels(isa, make, same_bits, height, width, dtype):
    """More than a run of 64 pixels, and more runs than the 16 lanes."""
    maker = make(height)
    for channels, groups in ((48, 8), (33, 3)):
        x = (maker.normal(2, height, width, channels) + 5 * maker.normal(channels)).to(dtype)
        _same(
            same_bits, x, _grid(maker, 8), groups=groups, weight=maker.normal(channels),
            bias=maker.normal(channels), activation="silu", border=1,
        )  # fmt: skip


def test_the_order_of_sums(isa, make, same_bits):
    """Of runs that nearly cancel: float64 sums in another order are others, and the pixels that are
    zero show what mean they give."""
    maker, runs = make(11), 60
    great = 2.0 ** maker.uniform(40, 59, 20)
    values = torch.cat([great, -great, maker.uniform(20, 100, 20)])
    values = values[torch.randperm(runs, generator=maker.generator)]
    x = torch.zeros(1, runs, 64, 1)
    x[0, torch.arange(runs), maker.integers(1, 63, runs).long(), 0] = values
    # Codes of zeros about as large as 40.
    rms = (values.double().square().sum() / (runs * 64)).sqrt()
    inv_scale = (40 * rms / (values.double().sum() / (runs * 64))).float()[None]
    grid = inv_scale, torch.tensor([128], dtype=torch.int32), 8
    for turned in (x, x.flip(1), x.roll(16, 1), x.roll(7, 1)):
        code = _same(same_bits, turned, grid, groups=1)[0, 0, 0].item()
        assert 3 < -code < 127


@pytest.mark.parametrize("groups", [0, 1, 4, 24])
@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -3e38, 1e-40])
def test_numbers_at_their_ends(isa, make, same_bits, value, groups):
    maker = make(1)
    few, all_ = maker.normal(2, 5, 6, 24), torch.full((2, 5, 6, 24), value)
    few[0, 1, 2, 3::7] = value  # of the first image alone
    for x in (few, all_):
        for eps in (0.0, 1e-6):
            for activation in ops.ACTIVATIONS:
                codes = _same(
                    same_bits, x, _grid(maker, 6), groups=groups, eps=eps, activation=activation
                )
                assert x is all_ or codes[1].unique().numel() > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_of_maps(isa, make, same_bits, dtype):
    """Channels first, gaps between pixels, lines or channels, and repeated images."""
    maker = make(2)
    x = maker.normal(4, 10, 12, 24, dtype=dtype)
    given_ = {
        "channels first": maker.normal(2, 24, 6, 7, dtype=dtype).permute(0, 2, 3, 1),
        "lines and columns turned": x.transpose(1, 2),
        "part of the channels": x[..., 3:14], "every second channel": x[..., ::2],
        "every second image": x[::2], "a window": x[:, 2:7, 3:8], "every second line": x[:, ::2],
        "one image many times": x[:1].expand(3, -1, -1, -1), "one channel": x[..., 5:6],
    }  # fmt: skip
    for name, part in given_.items():
        groups = 1 if part.shape[-1] in (1, 11) else 6
        vectors = [maker.normal(2 * part.shape[-1], dtype=dtype)[::2] for _ in range(2)]
        for scale in (1, 2):
            codes = _same(
                same_bits, part, _grid(maker, 8), groups=groups, weight=vectors[0],
                bias=vectors[1], activation="gelu", scale=scale, border=1,
            )  # fmt: skip
            assert codes.shape[3] == part.shape[3], name


@pytest.mark.parametrize("bits", BITS)
def test_layout_of_a_map(isa, make, same_bits, bits):
    """Without a norm its pixels are `quantize`'s, repeated, in a frame of the code of zero."""
    maker = make(3)
    x, (inv_scale, zero, _) = maker.normal(2, 3, 4, 5), _grid(maker, bits)
    codes = ops.quantize_map(x, inv_scale, zero, bits, scale=3, border=2)
    plain = ops.quantize(x, inv_scale, zero, bits)
    of_zero = ops.quantize(torch.zeros(1, 1), inv_scale, zero, bits).item()
    inner = F.interpolate(plain.permute(0, 3, 1, 2).float(), scale_factor=3).to(torch.int8)
    same_bits(codes, F.pad(inner, (2, 2, 2, 2), value=of_zero).permute(0, 2, 3, 1).contiguous())


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_norm_is_group_norm(make, shift):
    """With a bias that leaves one pixel at nearly zero a code counts 2^-20. A float32 sum of 64
    pixels rounds by at most 64 * 6e-8 of it, and mostly by 1e-7: the output, up to 6 in magnitude,
    is to be within 5e-6 of the exact one (measured: 1.7e-6, with half a step)."""
    maker, step, bound = make(4), 2.0**-20, 5e-6
    channels, groups = 32, 4
    x, weight = maker.normal(1, 36, 37, channels) + shift, maker.normal(channels)
    grid = torch.tensor([1 / step]), torch.tensor([128], dtype=torch.int32), 8
    exact = F.group_norm(x.double().permute(0, 3, 1, 2), groups, weight.double(), eps=1e-6)
    exact = exact.permute(0, 2, 3, 1)
    for pixel in range(0, 36 * 37, 17):
        at = 0, pixel // 37, pixel % 37
        bias = -exact[at].float()
        wanted = exact[at] + bias.double()  # what is left by rounding the bias
        codes = ops.quantize_map(x, *grid, groups=groups, weight=weight, bias=bias)[at].double()
        assert codes.abs().max() < 127  # none is cut off
        assert (codes * step - wanted).abs().max() < bound + step / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_codes_of_a_normalized_map(make, dtype, activation):
    """All pixels: a code is that of a number within 1e-5 of the exact one."""
    maker = make(5)
    x, weight, bias = maker.normal(3, 20, 9, 30, dtype=dtype), maker.normal(30), maker.normal(30)
    scale, zero = torch.tensor([0.08]), torch.tensor([120], dtype=torch.int32)
    exact = F.group_norm(
        x.double().permute(0, 3, 1, 2), 5, weight.double(), bias.double(), eps=1e-5
    ).permute(0, 2, 3, 1)
    exact = F.silu(exact) if activation == "silu" else exact
    codes = ops.quantize_map(
        x, 1 / scale, zero, 8, groups=5, weight=weight, bias=bias, eps=1e-5, activation=activation
    )
    levels = exact / scale.double()
    assert levels.abs().max() < 120
    assert (codes + 128.0 - zero - levels).abs().max() < 0.5 + 1e-5 / 0.08


def test_an_image_does_not_depend_on_the_others(isa, make, same_bits):
    maker = make(6)
    x, grid = maker.normal(3, 11, 9, 20, dtype=torch.bfloat16), _grid(maker, 8)
    whole = ops.quantize_map(x, *grid, groups=4, border=1)
    same_bits(
        torch.cat([ops.quantize_map(i, *grid, groups=4, border=1) for i in x.split(1)]), whole
    )


def test_results_do_not_depend_on_the_number_of_threads(isa, make, same_bits):
    maker = make(9)
    x, grid = maker.normal(2, 50, 40, 64), _grid(maker, 8)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.quantize_map(x, *grid, groups=8, activation="silu", border=1))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        same_bits(other, found[0])


def test_the_kernel_that_ran_can_be_asked_for(isa, make):
    maker = make(10)
    ops.quantize_map(maker.normal(1, 3, 3, 4), *_grid(maker, 8))
    assert ops.last_kernel() == f"quantize_map.{isa}"
    assert ops.last_kernel() in [k["name"] for k in ops.list_kernels() if k["available"]]
