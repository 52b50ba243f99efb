"""What all methods share: transforms, the measure of their error, and the choices between them."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ptq4arvg.methods import Transform, get_method
from ptq4arvg.numerics import (
    affine_grid,
    get_scheme,
    quantize_weight,
    round_to_grid,
    weight_range,
)
from tests.methods.layers import inputs, outlier_gain, random_weight, view_of

K = 64


def layer(foldable=True):
    return view_of(inputs(outlier_gain(), 0.5), random_weight(), foldable=foldable)


def moved(rotation=0):
    """One that scales and shifts, and may rotate."""
    scale, shift = torch.rand(2, K, generator=torch.Generator().manual_seed(3)).double()
    return Transform(scale + 0.5, shift, rotation=rotation)


def test_a_transform_folds_if_it_scales_or_shifts():
    plain = Transform.none(K, 16)
    assert not plain.folds and moved().folds
    assert replace(plain, scale=moved().scale).folds
    assert replace(plain, shift=moved().shift).folds


def test_a_further_division_comes_after_the_shift():
    factors = torch.linspace(0.5, 2, K, dtype=torch.float64)
    x, weight, first = layer().stats.sample, random_weight(), moved()
    both = first.then(factors)
    torch.testing.assert_close(both.input(x), first.input(x) / factors.float())
    torch.testing.assert_close(both.weight(weight), first.weight(weight) * factors.float())


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
@pytest.mark.parametrize("granularity", ["tensor", "step"])
@pytest.mark.parametrize("rotation", [0, 16])
@pytest.mark.parametrize("branched", [False, True])
def test_the_error_is_that_of_the_quantized_linear(scheme, granularity, rotation, branched):
    view, scheme, transform = layer(), get_scheme(scheme), moved(rotation)
    view = replace(view, weight=view.weight * torch.linspace(0.1, 3, len(view.weight))[:, None])
    branch = None
    if branched:
        g = torch.Generator().manual_seed(5)
        branch = torch.randn(48, 2, generator=g), torch.randn(2, K, generator=g)
    method = get_method("rtn", granularity=granularity)
    x, weight = transform.input(view.stats.sample), transform.weight(view.weight)
    stats = transform.statistics(view.stats)
    lo, hi = stats.lo.amin(1), stats.hi.amax(1)
    if granularity == "tensor":
        lo, hi = lo.min().expand(4), hi.max().expand(4)
    grid = [t[view.stats.sample_position // 5, None] for t in affine_grid(lo, hi, scheme.a_bits)]
    low_rank = branch[0] @ branch[1] if branched else torch.zeros_like(weight)
    codes, row, _ = quantize_weight(weight - low_rank, scheme.w_bits, search=False)
    y = F.linear(round_to_grid(x, *grid, scheme.a_bits).double(), codes * row[:, None].double())
    y += F.linear(x.double(), low_rank.double())
    expected = (y - F.linear(x.double(), weight.double())).square().mean().item()
    measured = method.output_error(view, transform, scheme, branch)
    assert measured == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_range_of_a_row_is_its_own_or_the_searched_one(bits):
    weight, x = random_weight(), layer().stats.sample
    lo, hi = get_method("rtn").row_range("a", weight, x, bits)
    assert torch.equal(lo, weight.amin(1)) and torch.equal(hi, weight.amax(1))
    found = get_method("rtn", weight_range="mse").row_range("a", weight, x, bits)
    wanted = weight_range(weight, bits, x.square().mean(0))
    assert all(map(torch.equal, found, wanted))
    assert not all(map(torch.equal, found, weight_range(weight, bits)))


def test_rounding_goes_by_the_bits_only_where_it_is_automatic():
    auto, gptq = (get_method("rtn", rounding=r) for r in ("auto", "gptq"))
    assert [auto.rounding_of(bits) for bits in (4, 6, 8)] == ["descent", "gptq", "gptq"]
    assert [gptq.rounding_of(bits) for bits in (4, 8)] == ["gptq", "gptq"]


def test_a_rotation_is_judged_by_the_sample_alone():
    """Ranges of all rows are known unrotated only: they would count against it, and for it."""
    view = view_of(inputs(torch.ones(K)), random_weight(), foldable=False)
    wide = replace(view, stats=replace(view.stats, lo=10 * view.stats.lo, hi=10 * view.stats.hi))
    measured = get_method("rtn", rotation="measured")
    assert measured.transform_of(view, get_scheme("W6A6")) is None
    assert measured.transform_of(wide, get_scheme("W6A6")) is None


def test_a_rotation_that_is_not_taken_is_on_record():
    view = view_of(inputs(torch.ones(K)), random_weight())
    method = get_method("smoothquant", rotation="measured")
    found = method.transform_of(view, get_scheme("W6A6"))
    assert not found.rotation
    rotated, unrotated = (found.record[f"error_{name}"] for name in ("rotated", "unrotated"))
    assert rotated > 0.97 * unrotated and rotated != unrotated
