"""SmoothQuant: eq. 4, its balance, its searched exponent, what it refuses."""

import pytest
import torch

from ptq4arvg.methods import get_method
from ptq4arvg.methods.smoothquant import EXPONENTS, smooth_scale
from ptq4arvg.numerics import get_scheme
from tests.methods.layers import (
    error_of,
    folding_error,
    inputs,
    outlier_gain,
    random_weight,
    view_of,
)


def test_the_scale_is_that_of_the_paper():
    view = view_of(inputs(outlier_gain()), random_weight())
    x = view.stats.sample.double().abs().amax(0)
    w = view.weight.double().abs().amax(0)
    transform = get_method("smoothquant", alpha=0.7).fit(view, get_scheme("W8A8"))
    torch.testing.assert_close(transform.scale, x**0.7 / w**0.3, rtol=1e-12, atol=0)
    assert not transform.shift.any()


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_smoothing_undoes_any_balance_between_input_and_weight(alpha):
    g = torch.Generator().manual_seed(3)
    reach, weight = torch.rand(64, generator=g).double(), random_weight()
    reach[5], weight[:, 7] = 0, 0
    t = torch.exp(torch.randn(64, generator=g)).double()
    plain = smooth_scale(reach, weight, alpha)
    moved = smooth_scale(reach * t, weight.double() / t, alpha)
    live = torch.ones(64, dtype=torch.bool)
    live[[5, 7]] = False
    torch.testing.assert_close((moved / t)[live], plain[live])
    assert plain[5] == plain[7] == moved[5] == moved[7] == 1  # dead channel, dead column


def test_folding_leaves_the_float_function():
    view = view_of(inputs(outlier_gain()), random_weight())
    changed, off = folding_error(view, error_of(view, "smoothquant")[2])
    assert changed < 1e-10 and off < 1e-10


def test_outlier_channels_are_what_it_is_for():
    view = view_of(inputs(outlier_gain()), random_weight() / outlier_gain())
    error, plain, _ = error_of(view, "smoothquant")
    assert error < 0.2 * plain


def test_searched_exponent_is_no_worse_than_any_fixed_one():
    view = view_of(inputs(outlier_gain()), random_weight())
    searched, _, transform = error_of(view, "smoothquant", alpha=None)
    assert transform.record["alpha"] in EXPONENTS
    assert all(searched <= error_of(view, "smoothquant", alpha=a)[0] for a in EXPONENTS)


def test_a_layer_without_a_fold_target_is_left_alone():
    view = view_of(inputs(outlier_gain()), random_weight(), "fc2", foldable=False)
    assert get_method("smoothquant").fit(view, get_scheme("W6A6")) is None


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_exponent_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match=f"'smoothquant': alpha is {alpha}; wanted a number from"):
        get_method("smoothquant", alpha=alpha)


@pytest.mark.parametrize("alpha", [0, 1])
def test_both_ends_of_its_range_are_exponents(alpha):
    view = view_of(inputs(outlier_gain()), random_weight())
    scale = get_method("smoothquant", alpha=alpha).fit(view, get_scheme("W6A6")).scale
    x, w = view.stats.sample.double().abs().amax(0), view.weight.double().abs().amax(0)
    torch.testing.assert_close(scale, x if alpha else 1 / w)
