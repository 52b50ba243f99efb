"""The closed form of GPS, its edge cases, and the transform as a whole on a synthetic layer."""

from dataclasses import replace

import pytest
import torch

from ptq4arvg.methods import LayerView, Transform, get_method
from ptq4arvg.methods.gps import center, expected_error, gain_projected_scaling
from ptq4arvg.methods.smoothquant import EXPONENTS, smooth_scale
from ptq4arvg.numerics import affine_grid, get_scheme, quantize_weight, round_to_grid
from tests.methods.layers import view_of


def layer(seed=0, n=96, k=64, tokens=20, rows=40, outliers=30.0):
    """A linear layer whose input has heavy-tailed channel gains, offsets and dead channels."""
    g = torch.Generator().manual_seed(seed)
    gain = torch.exp(torch.randn(k, generator=g))
    gain[:3] *= outliers
    x = torch.randn(rows, tokens, k, generator=g) * gain + 2 * gain * torch.randn(k, generator=g)
    x[..., 5] = 0
    weight = torch.randn(n, k, generator=g) / gain.clamp_min(0.1)
    weight[:, 7] = 0
    return view_of(x, weight)


def hat(weight, bits):
    codes, scale, _ = quantize_weight(weight, bits)
    return codes.float() * scale[:, None]


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_scales_are_finite_positive_and_clamped(bits, norm):
    view = layer()
    x = view.stats.sample
    result = gain_projected_scaling(x, view.weight, bits, hat(view.weight, bits), norm, limit=4.0)
    assert torch.isfinite(result.scale).all()
    ratio = result.scale / result.scale[result.anchor]
    assert ratio.min() >= 0.25 - 1e-9 and ratio.max() <= 4 + 1e-9
    assert ratio[5] == 1 and ratio[7] == 1  # dead channel, dead column: the anchor's scale


def test_closed_form_is_the_maximum_of_the_gain():
    view, bits = layer(), 6
    x, w_hat = view.stats.sample.double(), hat(view.weight, bits).double()
    result = gain_projected_scaling(x, view.weight, bits, w_hat, limit=1e6)
    step = (x.amax(0) - x.amin(0))[result.anchor] / 63
    zero = torch.round(-x[:, result.anchor].min() / step)
    dx = torch.round(x / step).clamp(-zero, 63 - zero) * step - x
    a = dx.square().sum(0) * w_hat.square().sum(0)
    b = x.square().sum(0) * (w_hat - view.weight).square().sum(0)
    ratio = result.scale / result.scale[result.anchor]

    def gain(r):
        return 0.5 * (a + b - a * r.square() - b / r.square())

    live = torch.ones(64, dtype=torch.bool)
    live[[5, 7, result.anchor]] = False
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (gain(ratio * factor) <= gain(ratio) * (1 + 1e-6) + 1e-6)[live].all()
    assert result.gain == pytest.approx(gain(ratio).sum().item(), rel=1e-3)
    assert result.gain > 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_scales_are_those_of_the_paper(norm):
    """The root of the ratio of the sums, relative to the anchor, whose two ranges become equal."""
    view, bits = layer(outliers=1.0), 6
    x, w_hat = view.stats.sample.double(), hat(view.weight, 8).double()
    result = gain_projected_scaling(x, view.weight, bits, w_hat, norm, limit=1e6)
    reach, column = x.amax(0) - x.amin(0), w_hat.amax(0) - w_hat.amin(0)
    assert result.anchor == reach.argmax()
    base = result.scale[result.anchor]
    torch.testing.assert_close(base**2, (reach / column)[result.anchor])
    grid = affine_grid(*(f(x[:, result.anchor]) for f in (torch.amin, torch.amax)), bits)
    dx = round_to_grid(x, *grid, bits) - x
    power, root = (2, 0.25) if norm == "l2" else (1, 0.5)

    def size(t):
        return t.abs().pow(power).sum(0)

    ratio = (size(x) * size(w_hat - view.weight) / (size(dx) * size(w_hat))).pow(root)
    live = torch.ones(64, dtype=torch.bool)
    live[[5, 7, result.anchor]] = False
    torch.testing.assert_close((result.scale / base)[live], ratio[live], rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("limit", [1.0, 8.0])
def test_scales_are_fitted_to_the_smoothed_and_centred_layer(norm, limit):
    view, scheme = layer(), get_scheme("W6A6")
    fixed = {"smooth": 0.5, "norm": norm, "limit": limit}
    record = get_method("ptq4arvg", **fixed).fit(view, scheme).record
    base = get_method("ptq4arvg", gps=False, **fixed).fit(view, scheme)
    middle, _ = center(view.stats)
    assert (center(base.statistics(view.stats))[0].abs() <= 1e-5 * middle.abs().max()).all()
    weight = base.weight(view.weight)
    x = view.stats.sample.double() / base.scale - base.shift
    result = gain_projected_scaling(x, weight, 6, hat(weight, 6), norm, limit)
    assert record["anchor"] == result.anchor
    assert record["gain_predicted"] == pytest.approx(result.gain, rel=1e-6, abs=1e-6)
    whole = get_method("ptq4arvg").output_error(view, base.then(result.scale), scheme)
    assert record["error_whole_step"] == pytest.approx(whole, rel=1e-5)


def test_what_cannot_be_centred_is_smoothed_by_its_magnitude():
    view, w = layer(), layer().weight
    lo, hi = view.stats.lo.double(), view.stats.hi.double()
    magnitude = torch.maximum(hi, -lo).square().mean(0).sqrt()
    half = ((hi - lo) / 2).square().mean(0).sqrt()
    for given, reach in ((view, half), (replace(view, shiftable=False), magnitude)):
        _, transform = fit_error(given, gps=False, smooth=0.5)
        torch.testing.assert_close(transform.scale, smooth_scale(reach, w, 0.5))
        assert transform.shift.any() == given.shiftable
    _, transform = fit_error(view, gps=False, smooth=0.5, center=False)
    torch.testing.assert_close(transform.scale, smooth_scale(magnitude, w, 0.5))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_columns_taken_in_parts_give_the_same(monkeypatch, norm):
    view = layer()
    given = view.stats.sample, view.weight, 6, hat(view.weight, 6), norm
    whole = gain_projected_scaling(*given)
    monkeypatch.setattr("ptq4arvg.methods.gps.COLUMNS", 10)
    parts = gain_projected_scaling(*given)
    torch.testing.assert_close(parts.scale, whole.scale, rtol=1e-12, atol=0)
    assert parts.gain == pytest.approx(whole.gain, rel=1e-12)


def test_all_zero_layer_does_not_break():
    result = gain_projected_scaling(torch.zeros(8, 4), torch.zeros(6, 4), 6, torch.zeros(6, 4))
    assert result.scale.tolist() == [1.0] * 4 and result.gain == pytest.approx(0, abs=1e-9)


def fit_error(view, **options):
    method = get_method("ptq4arvg", **options)
    transform = method.fit(view, get_scheme("W6A6"))
    return method.output_error(view, transform, get_scheme("W6A6")), transform


def test_transform_reduces_the_output_error_and_reports_both_gains():
    view = layer()
    nothing, _ = fit_error(view, smooth=0.0, center=False, gps=False)
    full, transform = fit_error(view)
    assert full < 0.1 * nothing
    record = transform.record
    assert record["gain_predicted"] > 0
    assert full == pytest.approx(min(record["error_before"], record["error_after"]), rel=1e-5)


@pytest.mark.parametrize("scheme", ["W8A8", "W6A6", "W4A8"])
@pytest.mark.parametrize("one_grid", [False, True])
def test_the_expansion_on_moved_grids_is_what_is_measured(scheme, one_grid):
    """Whatever the scales: also such as make the error several times larger."""
    method = get_method("ptq4arvg", granularity="tensor" if one_grid else "step")
    view, g = layer(), torch.Generator().manual_seed(3)
    k = view.weight.shape[1]
    for spread in (0.0, 0.5, 1.5):  # dead channels and outliers, too
        scale = (spread * torch.randn(k, generator=g, dtype=torch.float64)).exp()
        transform = Transform(scale, torch.zeros_like(scale))
        expected = expected_error(view, transform, get_scheme(scheme), one_grid)
        measured = method.output_error(view, transform, get_scheme(scheme))
        assert expected == pytest.approx(measured, rel=0.3)


def test_a_step_that_measures_worse_is_not_taken():
    for seed in range(6):
        view = layer(seed)
        with_gps, transform = fit_error(view)
        without, _ = fit_error(view, gps=False)
        assert with_gps <= without * (1 + 1e-6)
        record = transform.record
        taken = record["error_after"] < record["error_before"]
        assert (record["gps_share"] > 0) is taken


def test_searched_exponent_is_no_worse_than_any_fixed_one():
    view = layer()
    searched, transform = fit_error(view, gps=False)
    for alpha in (0.2, 0.5, 0.8):
        assert searched <= fit_error(view, gps=False, smooth=alpha)[0] * (1 + 1e-6)
    assert transform.record["smooth"] in EXPONENTS


def test_layer_without_a_fold_target_is_left_alone():
    view = layer()
    bare = LayerView(view.name, "fc2", view.weight, view.stats, False)
    assert get_method("ptq4arvg").fit(bare, get_scheme("W6A6")) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ptq4arv", {}, "unknown method 'ptq4arv'.*ptq4arvg"),
        ("ptq4arvg", {"smoth": 0.5}, "has no option 'smoth'.*smooth"),
        ("ptq4arvg", {"norm": "l3"}, "norm is 'l3'; wanted one of l2, l1"),
        ("rtn", {"granularity": "positions"}, "granularity is 'positions'.*position"),
        ("ptq4arvg", {"smooth": "0.5"}, "smooth is '0.5'; wanted a number from 0 to 1, or None"),
        ("ptq4arvg", {"smooth": 1.5}, "smooth is 1.5; wanted a number from 0 to 1, or None"),
        ("ptq4arvg", {"limit": 0.5}, "limit is 0.5; wanted 1 or more"),
        ("ptq4arvg", {"limit": float("inf")}, "limit is inf; wanted 1 or more"),
    ],
)
def test_bad_options_say_what_was_wanted(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_method(name, **options)
