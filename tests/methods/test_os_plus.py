"""Outlier Suppression+: its shift and scales, its threshold, inputs that take no shift."""

import pytest
import torch

from ptq4arvg.methods import get_method
from ptq4arvg.methods.os_plus import threshold_grid
from ptq4arvg.numerics import get_scheme
from tests.methods.layers import (
    error_of,
    folding_error,
    inputs,
    outlier_gain,
    random_weight,
    view_of,
)


def asymmetric(**options):
    """Channels of one width, each about a middle of its own."""
    middle = 20 * torch.randn(64, generator=torch.Generator().manual_seed(4))
    return view_of(inputs(torch.ones(64), middle), random_weight(), **options)


def test_channels_are_centred_and_within_the_threshold():
    view = view_of(inputs(outlier_gain(), outlier_gain()), random_weight() / outlier_gain())
    _, _, transform = error_of(view, "os_plus")
    after = view.stats.transformed(transform.scale.float(), transform.shift.float())
    lo, hi = after.lo.amin(0), after.hi.amax(0)
    torch.testing.assert_close(lo, -hi, rtol=0, atol=1e-4)
    threshold = transform.record["threshold"]
    assert hi.max() <= threshold * (1 + 1e-4) < 40
    within = (view.stats.hi.amax(0) - view.stats.lo.amin(0)) / 2 < threshold
    assert (transform.scale[within] == 1).all() and (transform.scale[:3] > 10).all()


def test_folding_leaves_the_float_function():
    view = asymmetric()
    changed, off = folding_error(view, error_of(view, "os_plus")[2])
    assert changed < 1e-10 and off < 1e-10


def test_asymmetric_channels_are_what_it_is_for():
    error, plain, transform = error_of(asymmetric(), "os_plus")
    assert error < 0.02 * plain
    assert error < 0.1 * error_of(asymmetric(), "smoothquant")[0]
    assert transform.shift.abs().max() > 10


def test_an_input_that_takes_no_shift_is_scaled_only():
    error, plain, transform = error_of(asymmetric(shiftable=False), "os_plus")
    assert not transform.shift.any()
    assert error <= plain


@pytest.mark.parametrize("more", [1, 4])
def test_more_thresholds_are_no_worse_than_none(more):
    view = view_of(inputs(outlier_gain()), random_weight())
    error, _, _ = error_of(view, "os_plus", thresholds=16)
    assert error <= error_of(view, "os_plus", thresholds=more)[0]


def test_the_grid_falls_from_the_widest_to_the_median():
    reach = torch.tensor([0.0, 1.0, 2.0, 8.0])
    torch.testing.assert_close(
        threshold_grid(reach, 3), torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64)
    )
    assert threshold_grid(torch.zeros(4), 16).tolist() == [1.0]


def test_dead_and_unfoldable_inputs():
    scheme = get_scheme("W6A6")
    dead = get_method("os_plus").fit(view_of(torch.zeros(4, 10, 64), random_weight()), scheme)
    assert (dead.scale == 1).all() and not dead.shift.any()
    assert get_method("os_plus").fit(asymmetric(role="fc2", foldable=False), scheme) is None


def test_no_threshold_is_refused():
    with pytest.raises(ValueError, match="'os_plus': thresholds is 0; wanted 1 or more"):
        get_method("os_plus", thresholds=0)
