"""Schemes, affine grids and range searches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq4arvg.numerics import (
    SCHEMES,
    affine_grid,
    get_scheme,
    grid_error,
    quantize_weight,
    search_range,
    sqnr_db,
    weight_range,
)


def test_schemes_have_the_published_widths():
    widths = {name: (s.w_bits, s.a_bits) for name, s in SCHEMES.items()}
    assert widths == {"W8A8": (8, 8), "W6A8": (6, 8), "W6A6": (6, 6), "W4A8": (4, 8)}
    assert get_scheme("w6a6") is SCHEMES["W6A6"]


def test_unknown_scheme_offers_the_nearest():
    with pytest.raises(ValueError, match=r"unknown scheme 'W8A9'.*W8A8"):
        get_scheme("W8A9")


def test_signal_to_noise_is_that_of_a_float32_at_most():
    def db(signal, noise):
        return sqnr_db(*torch.tensor([signal, noise], dtype=torch.float64))

    assert db(2e6, 2e3) == 30 and db(3.0, 6.0) == pytest.approx(-10 * math.log10(2), abs=1e-12)
    exact = 20 * math.log10(2**24)
    assert db(5.0, 0.0) == db(0.0, 0.0) == db(1e20, 1e-5) == exact
    assert db(0.0, 1e-9) == -exact


@given(
    st.floats(-1e6, 1e6), st.floats(0, 1e6), st.sampled_from([4, 6, 8])
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_grid_holds_zero_and_both_ends(lo, width, bits):
    lo, hi = torch.tensor([lo]), torch.tensor([lo + width])
    scale, zero = affine_grid(lo, hi, bits)
    assert 0 <= zero.item() <= 2**bits - 1
    assert torch.isfinite(scale).all() and scale.item() > 0
    for end in (lo.clamp(max=0), hi.clamp(min=0)):
        level = torch.round(end.double() / scale.double()) + zero
        # The zero point is rounded, so one end may lie half a level outside.
        assert -1 <= level.item() <= 2**bits


@pytest.mark.parametrize("reach", [0.0, 1e-37])
def test_empty_range_is_exact_and_finite(reach):
    """So is one whose step would be too small for a float32 of full precision."""
    scale, zero = affine_grid(-torch.full((3,), reach), torch.full((3,), reach), 6)
    assert scale.tolist() == [1.0] * 3 and zero.tolist() == [0] * 3


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("search", [False, True], ids=["minmax", "search"])
def test_weight_codes_fit_their_format(bits, search):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(40, 24, generator=g) * torch.rand(40, 1, generator=g)
    w[3] = 0
    w[5] = w[5].abs()
    codes, scale, zero = quantize_weight(w, bits, search=search)
    if bits == 8:
        assert zero is None and codes.abs().max() <= 127
    else:
        levels = codes.int() + zero[:, None]
        assert levels.min() >= 0 and levels.max() <= 2**bits - 1
    error = (codes * scale[:, None] - w).abs().amax(1)
    assert (codes[3] == 0).all()
    if not search:
        assert (error <= scale * 0.5001 + 1e-7).all()


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_search_never_loses_to_minimum_maximum(bits):
    g = torch.Generator().manual_seed(1)
    w = torch.randn(64, 96, generator=g).pow(3)
    importance = torch.rand(96, generator=g)

    def row_error(search):
        codes, scale, _ = quantize_weight(w, bits, importance, search)
        return ((codes * scale[:, None] - w).square() @ importance).double()

    plain, searched = row_error(False), row_error(True)
    assert (searched <= plain * (1 + 1e-6)).all()
    assert searched.sum() < plain.sum() * {8: 0.999, 6: 0.97, 4: 0.95}[bits]


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_both_ends_are_searched_alike(bits):
    """What is all positive gets the range of its mirror image, with the ends exchanged."""
    g = torch.Generator().manual_seed(3)
    w = torch.rand(64, 96, generator=g).pow(3)
    lo, hi = weight_range(w, bits)
    low, high = weight_range(-w, bits)
    assert torch.equal(high, -lo) and torch.equal(low, -hi)
    histogram = torch.randint(9, (64, 256), generator=g).float() * torch.linspace(1, 0, 256).pow(2)
    lo, hi = search_range(histogram, torch.zeros(64), torch.ones(64), bits)
    low, high = search_range(histogram.flip(1), -torch.ones(64), torch.zeros(64), bits)
    assert (hi < 1).any() and not lo.any() and not high.any()
    torch.testing.assert_close(low, -hi, rtol=0, atol=0)


def test_values_of_a_histogram_lie_in_the_middle_of_their_bins():
    histogram = torch.tensor([[1.0, 2, 3, 4], [5.0, 0, 0, 0]])
    zero, top = torch.zeros(2), torch.tensor([4.0, 2.0])
    # A step of 1: values at 0.5, 1.5, 2.5 and 3.5 are off by a half, those at 0.25 by a quarter.
    error = grid_error(histogram, zero, top, zero, torch.full((2,), 15.0), 4)
    assert error.tolist() == [10 * 0.25, 5 * 0.0625]
    # Bins about as wide as the grid's steps: the range found is for their middles.
    histogram = torch.rand(64, 24, generator=torch.Generator().manual_seed(4))
    full = -torch.ones(64), torch.ones(64)
    least = grid_error(histogram, *full, *search_range(histogram, *full, 4), 4)
    for ratio in torch.linspace(1.0, 0.25, 16)[:, None]:
        ends = full[0] * ratio, full[1] * ratio
        assert (least <= grid_error(histogram, *full, *ends, 4)).all()


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("bits", [8, 6])
def test_range_search_clips_an_outlier_only_when_it_pays(bits, side):
    g = torch.Generator().manual_seed(2)
    flat = torch.rand(4, 2_000_000, generator=g) * 2 - 1
    outlier = flat.clone()
    outlier[:, 0] = 3.0

    def histogram(x, lo, hi, bins=2048):
        return torch.stack([torch.histc(row, bins, lo, hi) for row in x])

    lo, hi = search_range(histogram(flat, -1, 1), -torch.ones(4), torch.ones(4), bits)
    assert (hi - 1).abs().max() < 0.03 and (lo + 1).abs().max() < 0.03
    ends = (-1, 3) if side > 0 else (-3, 1)
    full = (torch.full((4,), float(end)) for end in ends)
    lo, hi = search_range(histogram(side * outlier, *ends), *full, bits)
    assert (hi < 1.3).all() and (lo > -1.3).all()
