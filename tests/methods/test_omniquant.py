"""OmniQuant: learned clipping and transforms bring blocks closer, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import ptq4arvg
from ptq4arvg.methods import Transform, get_method
from ptq4arvg.methods.reconstruction import CLIP_START, LearnedLinear
from ptq4arvg.models import build_model
from ptq4arvg.models.registry import FAMILIES
from ptq4arvg.numerics import (
    affine_grid,
    get_scheme,
    round_to_grid,
    round_weight,
    weight_grid,
    weight_range,
)
from ptq4arvg.pipeline import quantize_
from ptq4arvg.plan import make_plan
from ptq4arvg.token_scales import collect_steps
from tests.methods.layers import inputs, random_weight, view_of
from tests.models.tiny import TINY


def tiny(family="var", tails=0.0):
    """A small model; tails: share of every weight's entries that are three times as large."""
    model = build_model(f"{family}-test", TINY[family], seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for spec in model.linears():
            weight = model.transformer.get_submodule(spec.name).weight
            weight[torch.rand(weight.shape, generator=generator) < tails] *= 3
    return model


@pytest.fixture(scope="module")
def rows():
    return ptq4arvg.calibrate(tiny(), samples=16, keep=8, seed=0)


def learned(model, calibration, scheme="W4A8", **options):
    method = get_method("omniquant", **options)
    return method.prepare(model, make_plan(model.linears(), scheme), calibration)


def shares_of(method):
    """All learned clipping in one tensor."""
    return torch.cat([torch.cat(clip) for _, clip in method.learned.values()])


def test_the_simulation_with_gradients_is_the_simulation():
    g = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(24, 10), torch.randn(3, 5, 24, generator=g)
    for scheme in map(get_scheme, ("W8A8", "W6A6", "W4A8")):
        low, high = torch.rand(2, 10, generator=g) * 0.3 + 0.6
        scale = torch.exp(torch.randn(24, generator=g)).double()
        initial = Transform(scale, torch.randn(24, generator=g).double())
        module = LearnedLinear(linear, scheme, initial, True, (low, high), True)
        u, weight = x / scale.float() - initial.shift.float(), initial.weight(linear.weight)
        u_hat = round_to_grid(u, *affine_grid(u.min(), u.max(), scheme.a_bits), scheme.a_bits)
        w_scale, w_zero = weight_grid(weight.amin(1) * low, weight.amax(1) * high, scheme.w_bits)
        codes = round_weight(weight, w_scale, w_zero, scheme.w_bits)
        bias = linear.bias + weight @ initial.shift.float()
        wanted = u_hat @ (codes * w_scale[:, None]).T + bias
        torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)
        module.quantized = False
        torch.testing.assert_close(module(x), linear(x))
        module.quantized = True
        module(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_clipping_at_four_bits_is_learned():
    """The extremes of a row waste levels, and 4 bits have none to waste: rows not seen gain."""
    rows, fresh = (ptq4arvg.calibrate(tiny(), samples=128, keep=64, seed=s) for s in (0, 1))
    minmax = {"weight_range": "minmax", "activation_range": "minmax"}
    learn = minmax | {"transform": False, "rows": 64}
    few, many = (shares_of(learned(tiny(), rows, steps=steps, **learn)) for steps in (1, 60))
    assert (many > 0.1).all() and (many < 1).all()
    assert few.mean() > CLIP_START - 0.002 and many.mean() < CLIP_START - 0.005
    exact, error = tiny().replay(fresh.ids, fresh.labels), {}
    for name, options in (("rtn", minmax), ("omniquant", learn)):
        model = tiny()
        quantize_(model, "W4A8", name, rows, pack=False, **options)
        error[name] = (model.replay(fresh.ids, fresh.labels) - exact).square().sum()
    assert error["omniquant"] < 0.95 * error["rtn"]


@pytest.mark.parametrize("scheme", ["W4A8", "W6A6"])
def test_every_block_comes_closer_to_the_float_one(rows, scheme):
    method = learned(tiny(tails=0.02), rows, scheme, steps=30)
    records = [t.record for t, _ in method.learned.values() if t is not None]
    assert len(records) == 2 * 3  # qkv, proj and fc1 of both blocks
    for record in records:
        assert record["block_error_after"] < 0.98 * record["block_error_before"]


def test_what_does_not_help_is_undone(rows):
    """A learning rate that can only do harm leaves the start as it was."""
    method = learned(tiny(), rows, "W6A6", steps=3, transform_rate=50.0, clip_rate=50.0)
    start = learned(tiny(), rows, "W6A6", steps=1, transform_rate=0.0, clip_rate=0.0)
    for name, (transform, clip) in method.learned.items():
        assert torch.equal(torch.stack(clip), torch.stack(start.learned[name][1]))
        if transform is not None:
            record = transform.record  # what was learned may even be no number
            assert not record["block_error_after"] < record["block_error_before"]
            assert torch.equal(transform.scale, start.learned[name][0].scale)


def test_only_a_seed_decides_and_the_model_is_left_as_it_was(rows):
    model, calls = tiny(), []
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [type(m) for m in model.modules()]
    state = torch.random.get_rng_state()
    plan = make_plan(model.linears(), "W4A8")
    method = get_method("omniquant", steps=3, seed=5)
    first = method.prepare(model, plan, rows, progress=lambda *call: calls.append(call))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [type(m) for m in model.modules()] == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert calls == [("reconstruct", i + 1, 6) for i in range(6)]
    again, other = (learned(model, rows, steps=3, seed=s) for s in (5, 6))
    clips = [shares_of(m) for m in (first, again, other)]
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])
    assert first.options() == method.options() and not method.learned


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"var"}))
def test_blocks_of_every_family_are_learned(family):
    model = tiny(family)
    own = ptq4arvg.calibrate(model, samples=4, keep=2, seed=0)
    method = learned(model, own, steps=2, rows=2)
    inside = [s.name for s in model.linears() if s.name.startswith(tuple(model.block_names()))]
    assert list(method.learned) == inside
    exact = model.replay(own.ids, own.labels)
    quantize_(model, "W8A8", "omniquant", own, steps=2, rows=2, pack=False)
    error = (model.replay(own.ids, own.labels) - exact).square().sum() / exact.square().sum()
    assert error < 0.01


def test_linears_outside_the_plan_stay_in_float(rows):
    model = tiny()
    plan = make_plan(model.linears(), "W4A8", ignore=["re:blocks\\.1"])
    active = [p for p in plan if p.scheme]
    method = get_method("omniquant", steps=1).prepare(model, active, rows)
    assert {name.split(".")[1] for name in method.learned} == {"0"}


def test_searched_ranges_are_where_clipping_starts(rows):
    shares = shares_of(learned(tiny(tails=0.02), rows, steps=1, clip_rate=0.0, weight_range="mse"))
    assert shares.max() <= CLIP_START + 1e-6 and shares.min() < 0.8
    shares = shares_of(learned(tiny(), rows, steps=1, clip_rate=0.0, weight_range="minmax"))
    torch.testing.assert_close(shares, torch.full_like(shares, CLIP_START))


def test_ranges_are_searched_behind_the_transform_that_learning_starts_from(rows):
    model = tiny(tails=0.02)
    with torch.no_grad():
        model.transformer.blocks[0].ffn.fc1.weight[3] = 0  # a row that has no range
    plan = make_plan(model.linears(), "W4A8")
    stats = collect_steps(model, plan, rows, sample=256)
    fixed = {"steps": 1, "clip_rate": 0.0, "transform_rate": 0.0, "weight_range": "mse"}
    method = learned(model, rows, **fixed)
    for name, (transform, clip) in method.learned.items():
        weight, seen = model.transformer.get_submodule(name).weight.detach(), stats[name]
        if transform is not None:
            weight, seen = transform.weight(weight), transform.statistics(seen)
        found = weight_range(weight, 4, seen.sample.square().mean(0))
        for own, end, full in zip(clip, found, (weight.amin(1), weight.amax(1)), strict=True):
            wanted = torch.where(full == 0, 1.0, end / full).clamp(0.1, CLIP_START)
            assert (own - wanted).abs().max() < 1e-5


def test_what_was_learned_is_what_is_used(rows):
    model = tiny()
    method = learned(model, rows, steps=1)
    name = next(n for n, (transform, _) in method.learned.items() if transform is not None)
    transform, _ = method.learned[name]
    view = replace(view_of(inputs(torch.ones(64)), random_weight(6)), name=name)
    assert method.fit(view, get_scheme("W4A8")) is transform
    assert method.fit(replace(view, name="head"), get_scheme("W4A8")) is not None
    assert method.with_options(transform=False).fit(view, get_scheme("W4A8")) is None
    low, high = torch.linspace(0.3, 0.8, 6), torch.linspace(0.9, 0.2, 6)
    object.__setattr__(method, "learned", {name: (None, (low, high))})
    lo, hi = method.row_range(name, view.weight, view.stats.sample, 4)
    assert torch.equal(lo, view.weight.amin(1) * low)
    assert torch.equal(hi, view.weight.amax(1) * high)


@pytest.mark.parametrize("option", ["steps", "rows"])
def test_an_empty_budget_is_an_error(option):
    with pytest.raises(ValueError, match=f"'omniquant': {option} is 0; wanted 1 or more"):
        get_method("omniquant", **{option: 0})
