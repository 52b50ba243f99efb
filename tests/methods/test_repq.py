"""RepQ: one grid for all channels that equals a grid for each, where a norm feeds the input."""

import pytest
import torch

from ptq4arvg.methods import get_method
from ptq4arvg.numerics import affine_grid, get_scheme, round_to_grid
from tests.methods.layers import error_of, folding_error, inputs, random_weight, view_of

GAIN = torch.logspace(-1, 1, 64)
MIDDLE = GAIN * torch.linspace(-0.5, 0.9, 64)


def unequal(middle=MIDDLE, **options):
    return view_of(inputs(GAIN, middle), random_weight() / GAIN, **options)


def test_one_grid_of_mean_step_and_zero_equals_a_grid_per_channel():
    view = unequal()
    transform = get_method("repq").fit(view, get_scheme("W6A6"))
    lo, hi = view.stats.lo.double().amin(0), view.stats.hi.double().amax(0)
    x = view.stats.sample.double()
    moved = x / transform.scale - transform.shift
    step, zero = affine_grid(moved.amin(), moved.amax(), 6)
    own = (hi - lo) / 63
    assert step.item() == pytest.approx(own.mean().item(), rel=1e-6)
    assert zero.item() == round((-lo / own).mean().item()) == transform.record["zero"]
    back = (round_to_grid(moved, step, zero, 6) + transform.shift) * transform.scale
    # Level by level from the lowest value of each channel on.
    wanted = torch.round((x - lo) / own) * own + lo
    off = ((back - wanted).abs() / own).flatten()
    assert (off < 1e-3).double().mean() > 0.9999  # ties of the float32 step aside


def test_folding_leaves_the_float_function():
    view = unequal()
    changed, off = folding_error(view, error_of(view, "repq")[2])
    assert changed < 1e-10 and off < 1e-10


@pytest.mark.parametrize("role", ["qkv", "fc1", "head"])
def test_unequal_channels_behind_a_norm_are_what_it_is_for(role):
    error, plain, _ = error_of(unequal(role=role), "repq")
    assert error < 0.1 * plain


@pytest.mark.parametrize("role", ["proj", "fc2", "ada_lin"])
def test_what_no_norm_feeds_stays(role):
    assert get_method("repq").fit(unequal(role=role), get_scheme("W6A6")) is None


def test_what_cannot_be_folded_or_is_zero_stays():
    scheme = get_scheme("W6A6")
    assert get_method("repq").fit(unequal(foldable=False), scheme) is None
    dead = view_of(torch.zeros(4, 10, 64), random_weight())
    assert get_method("repq").fit(dead, scheme) is None


def test_an_input_that_takes_no_shift_is_scaled_only():
    error, plain, transform = error_of(unequal(middle=0.0, shiftable=False), "repq")
    assert not transform.shift.any()
    assert error < 0.1 * plain
    view = unequal(shiftable=False)  # the farther end of a channel decides
    scale = get_method("repq").fit(view, get_scheme("W6A6")).scale
    reach = view.stats.sample.double().abs().amax(0)
    torch.testing.assert_close(scale, reach / reach.mean())


def test_a_constant_channel_becomes_zero():
    x = inputs(GAIN, MIDDLE)
    x[..., 5] = 3.0
    view = view_of(x, random_weight())
    transform = get_method("repq").fit(view, get_scheme("W6A6"))
    assert transform.scale[5] == 1 and transform.shift[5] == 3
    steps = (view.stats.hi.double().amax(0) - view.stats.lo.double().amin(0)) / 63
    assert transform.record["step"] == pytest.approx(steps.sum().item() / 63)  # one is constant


@pytest.mark.parametrize(("side", "zero"), [(1, 0), (-1, 63)])
def test_the_zero_of_channels_far_from_it_stays_on_the_grid(side, zero):
    view = view_of(inputs(GAIN, side * 20 * GAIN), random_weight())
    transform = get_method("repq").fit(view, get_scheme("W6A6"))
    assert transform.record["zero"] == zero
    moved = transform.input(view.stats.sample)
    ends = sorted((0.0, 63 * side * transform.record["step"]))
    assert moved.min() >= ends[0] - 1e-3 and moved.max() <= ends[1] + 1e-3
