"""One linear quantized, by its definition: grids, codes, bias, and the error that is reported."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ptq4arvg
from ptq4arvg import layer
from ptq4arvg.methods import Transform, get_method
from ptq4arvg.models import build_model
from ptq4arvg.numerics import affine_grid, get_scheme, round_to_grid, round_weight, weight_grid
from ptq4arvg.plan import make_plan
from ptq4arvg.rounding import channel_products, compensated_codes
from ptq4arvg.statistics import SAMPLE
from ptq4arvg.token_scales import collect_steps
from tests.methods.layers import inputs, outlier_gain, random_weight, view_of
from tests.models.tiny import TINY

TOKENS, SINK = 20, (0, 2)


class Case:
    """A linear, by default with a bias; inputs far from zero; a grid for every second position."""

    def __init__(self, scheme, method, has_bias=True, **options):
        view = view_of(inputs(outlier_gain(), 0.7), random_weight())
        self.method = get_method(method, **options)
        self.stats, self.weight = view.stats, view.weight
        linear, bias = nn.Linear(64, 48, bias=has_bias), 5 + torch.arange(48.0)
        linear.weight.data = view.weight
        if has_bias:
            linear.bias.data = bias
        self.bias = has_bias * bias.double()
        self.plan = SimpleNamespace(name="a", scheme=get_scheme(scheme),
                                    spec=SimpleNamespace(sink=SINK))  # fmt: skip
        self.group = torch.arange(TOKENS) // 2
        reach = torch.linspace(40, 50, TOKENS // 2)
        self.grid = affine_grid(-reach, reach, self.plan.scheme.a_bits)
        model = SimpleNamespace(transformer=nn.ModuleDict({"a": linear}))
        self.q, self.sqnr, self.branch = layer.quantize_linear(
            model, self.plan, view.stats, (*self.grid, self.group, None), self.method
        )

    def x_hat(self):
        at = self.group[self.stats.sample_position]
        return round_to_grid(
            self.stats.sample, *(t[at, None] for t in self.grid), self.plan.scheme.a_bits
        )

    def outputs(self):
        """(exact, of the quantized linear), float64 [M, N]."""
        x = self.stats.sample.double()
        y = F.linear(self.x_hat().double(), self.q.weight().double())
        if self.q.bias is not None:
            y += self.q.bias.double()
        if self.branch is not None:
            up, down = (factor.double() for factor in self.branch)
            y += F.linear(F.linear(x, down), up)
        return F.linear(x, self.weight.double(), self.bias), y


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_codes_are_those_for_the_inputs_as_quantized(scheme, rounding):
    case = Case(scheme, "rtn", rounding=rounding)
    bits = case.plan.scheme.w_bits
    scale, zero = weight_grid(case.weight.amin(1), case.weight.amax(1), bits)
    if rounding == "nearest":
        codes = round_weight(case.weight, scale, zero, bits)
    else:
        products = channel_products(case.x_hat())
        codes = compensated_codes(case.weight, scale, zero, bits, products)
    assert torch.equal(case.q.codes, codes) and torch.equal(case.q.w_scale, scale)
    for mine, given in zip((case.q.input_scale, case.q.input_zero), case.grid, strict=True):
        assert torch.equal(mine, given)
    assert torch.equal(case.q.position_group, case.group)


@pytest.mark.parametrize("method", ["rtn", "svdquant"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_ratio_and_the_bias_are_those_of_the_outputs(method, corrected, has_bias):
    """Both count what the branch that stays in float computes."""
    case = Case("W4A8", method, has_bias, bias_correction=corrected)
    exact, found = case.outputs()
    error = found - exact
    ratio = 10 * math.log10(exact.square().sum() / error.square().sum())
    assert case.sqnr == pytest.approx(ratio, abs=1e-3)
    mean = error.mean(0).abs().max() / error.abs().max()
    assert mean < 1e-5 if corrected else mean > 1e-3
    if not corrected:
        assert case.q.bias is None if not has_bias else torch.equal(case.q.bias, case.bias.float())


@pytest.mark.parametrize(("sink", "positions"), [("integer", ()), ("float", SINK)])
def test_sinks_are_kept_where_they_are_asked_for(sink, positions):
    assert Case("W6A6", "rtn", sink=sink).q.sink == positions


@pytest.fixture(scope="module")
def model():
    return build_model("small", TINY["var"], seed=0)


@pytest.fixture(scope="module")
def rows(model):
    return ptq4arvg.calibrate(model, samples=4, keep=4, seed=0)


def grids_of(model, rows, plan, stats, method, columns, transforms=None):
    return layer.input_grids(model, plan, stats, transforms or {}, columns, method, rows, 16, None)


def test_ranges_of_turned_inputs_are_those_of_all_rows(model, rows):
    """The sample that a rotation is judged by does not hold their ends."""
    plan = make_plan(model.linears(), "W8A8")
    stats = collect_steps(model, plan, rows, sample=8)
    name = next(p.name for p in plan if p.spec.role == "fc1")
    turned, seen = Transform.none(stats[name].sample.shape[1], 16), []
    handle = model.transformer.get_submodule(name).register_forward_pre_hook(
        lambda _module, args: seen.append(turned.input(args[0].float()))
    )
    model.replay(rows.ids, rows.labels)
    handle.remove()
    grids = grids_of(model, rows, plan, stats, get_method("rtn"), {}, {name: turned})
    x = torch.cat(seen)
    scale, zero = affine_grid(x.amin()[None], x.amax()[None], 8)
    assert grids[name][0].item() == pytest.approx(scale.item(), rel=1e-5)
    assert grids[name][1].item() == zero.item()


def test_errors_of_a_channel_count_by_its_column(model, rows):
    """A range is cut to what the one channel needs that reaches the output."""
    plan = make_plan(model.linears(), "W6A6")
    stats = collect_steps(model, plan, rows)
    name = next(p.name for p in plan if p.spec.role == "fc2")
    width = (stats[name].hi - stats[name].lo).amax(0)
    columns = {p.name: torch.ones(stats[p.name].lo.shape[1]) for p in plan}
    method = get_method("rtn", activation_range="mse")
    alike = grids_of(model, rows, plan, stats, method, columns)[name][0]
    one = torch.zeros_like(width)
    one[width.argmin()] = 1
    alone = grids_of(model, rows, plan, stats, method, columns | {name: one})[name][0]
    assert (alone < alike).all()


def test_more_vectors_where_weights_are_fitted_to_them(model, monkeypatch):
    plan = make_plan(model.linears(), "W6A6")
    nearest, fitted = get_method("rtn"), get_method("ptq4arvg")
    assert layer.sample_size(model, plan, nearest) == SAMPLE
    assert layer.sample_size(model, plan, fitted) == layer.MOST_VECTORS
    width = sum(model.transformer.get_submodule(p.name).weight.shape[1] for p in plan)
    monkeypatch.setattr(layer, "SAMPLE_BYTES", 4 * width * 2000 + 1)
    assert layer.sample_size(model, plan, fitted) == 2000
    monkeypatch.setattr(layer, "SAMPLE_BYTES", 4 * width)
    assert layer.sample_size(model, plan, fitted) == SAMPLE
