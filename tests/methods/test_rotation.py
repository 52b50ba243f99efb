"""Rotation of inputs, scaled or not: the function stays, and it is taken if it pays."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import ptq4arvg
from ptq4arvg.evaluation import evaluation_rows, float_logits
from ptq4arvg.folding import fit, fold_stage_, stages, undone
from ptq4arvg.methods import LayerView, Transform, get_method
from ptq4arvg.numerics import get_scheme
from ptq4arvg.plan import make_plan
from ptq4arvg.reference import rotate
from ptq4arvg.statistics import InputStatistics
from ptq4arvg.token_scales import collect_steps

W6A6 = get_scheme("W6A6")
K = 64


def view(x: torch.Tensor, foldable: bool = False) -> LayerView:
    """A linear of random weights that reads x [M, K]."""
    weight = torch.randn(48, K, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(len(x), dtype=torch.int64)
    stats = InputStatistics(x.amin(0)[None], x.amax(0)[None], zeros[:1], x, zeros)
    return LayerView("a", "fc2", weight, stats, foldable)


def scaled(block: int) -> Transform:
    """One that does all three: scales, shifts, rotates."""
    scale, shift = torch.rand(2, K, generator=torch.Generator().manual_seed(3)).double()
    return Transform(scale + 0.5, shift, rotation=block)


def normal(rows: int = 256) -> torch.Tensor:
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("block", [2, 16, 64])
def test_the_weight_makes_up_for_the_rotation(block):
    x, weight = normal().double(), view(normal()).weight.double()
    turn = Transform.none(K, block)
    exact = F.linear(x, weight)
    error = (F.linear(turn.input(x), turn.weight(weight)) - exact).abs().max()
    assert error < 1e-12 * exact.abs().max()
    both = scaled(block)  # whose scale and shift are taken in float32
    bias = weight @ (both.scale * both.shift)
    error = F.linear(both.input(x), both.weight(weight), bias) - exact
    assert error.abs().max() < 1e-5 * exact.abs().max()


def test_statistics_of_a_rotation_are_those_of_the_rotated_input():
    layer = view(normal())
    for turn in (Transform.none(K, 64), scaled(16)):
        stats = turn.statistics(layer.stats)
        assert torch.equal(stats.sample, turn.input(layer.stats.sample))
        assert torch.equal(stats.lo[0], stats.sample.amin(0))
        assert torch.equal(stats.hi[0], stats.sample.amax(0))


def test_it_is_taken_where_it_pays():
    """Rare large values in single channels widen the grid of all, until they are spread."""
    tails = normal() * torch.where(normal(512)[256:] > 2.5, 40.0, 1.0)
    measured = get_method("rtn", rotation="measured")
    found = measured.transform_of(view(tails), W6A6)
    assert found.rotation == 64
    assert found.record["error_rotated"] < 0.9 * found.record["error_unrotated"]
    assert measured.transform_of(view(normal()), W6A6) is None


@pytest.mark.parametrize(("option", "rotation"), [("none", 0), ("all", 64)])
def test_it_is_taken_everywhere_or_nowhere(option, rotation):
    found = get_method("rtn", rotation=option).transform_of(view(normal()), W6A6)
    assert (0 if found is None else found.rotation) == rotation


def test_what_scaling_is_for_is_scaled_before_it_is_rotated():
    """A constant outlier channel is spread over its whole block, unless it is scaled first."""
    x = normal()
    x[:, 5] *= 50
    method = get_method("smoothquant", rotation="all")
    found = method.transform_of(view(x, foldable=True), W6A6)
    assert found.rotation == 64 and found.folds and found.record["rotated_after"]
    bare = method.transform_of(view(x), W6A6)
    assert bare.rotation == 64 and not bare.folds and not bare.record["rotated_after"]
    assert found.record["error_rotated"] < 0.5 * bare.record["error_rotated"]


def test_wider_blocks_than_cost_nothing_have_to_pay():
    """Over 64 channels rare large values are spread more than over 16; some patterns add up."""
    all_, measured, fused = (get_method("rtn", rotation=r) for r in ("all", "measured", "fused"))
    tails = normal() * torch.where(normal(512)[256:] > 2.5, 40.0, 1.0)
    narrow = replace(view(tails), fused_rotation=16)
    assert measured.transform_of(narrow, W6A6).rotation == 64
    found = fused.transform_of(narrow, W6A6)
    assert found.rotation == 16
    assert found.record["error_rotated"] < 0.97 * found.record["error_unrotated"]
    assert fused.transform_of(view(tails), W6A6).rotation == 64
    pattern = 4 * rotate(torch.eye(K), K)[:, 7] * normal()[:, :1].sign()  # to one channel of 64
    pattern[:, ::16] += tails[:, ::16]
    narrow = replace(view(pattern), fused_rotation=16)
    assert measured.transform_of(narrow, W6A6).rotation == 16
    assert all_.transform_of(narrow, W6A6).rotation == 64


@pytest.mark.parametrize("option", ["measured", "fused"])
def test_a_dead_input_is_not_rotated(option):
    dead = replace(view(torch.zeros(8, K)), fused_rotation=16)
    found = get_method("rtn", rotation=option).transform_of(dead, W6A6)
    assert found is None or not found.rotation


def test_an_odd_number_of_channels_is_not_rotated():
    layer = view(normal())
    odd = replace(layer, weight=layer.weight[:, :63])
    assert get_method("rtn", rotation="all").transform_of(odd, W6A6) is None


@torch.no_grad()
def test_rotated_linears_keep_the_float_function_until_it_is_undone():
    model = ptq4arvg.load_model("par-tiny").double()
    rows = ptq4arvg.calibrate(model, samples=4, keep=2, seed=0)
    compared = evaluation_rows(model, torch.arange(0, 32, 16), seed=1)
    plan = make_plan(model.linears(), "W6A6")
    before = float_logits(model, *compared)
    method = get_method("ptq4arvg", rotation="all")
    stats = collect_steps(model, plan, rows, 64)
    transforms, columns = fit(model, stages(plan), stats, method, None)
    assert all(t.rotation for t in transforms.values()) and transforms.keys() == columns.keys()
    with undone(model.transformer):
        for part in stages(plan):
            fold_stage_(model, part, transforms)
        for p in plan:
            weight = model.transformer.get_submodule(p.name).weight
            torch.testing.assert_close(weight.float().square().sum(0), columns[p.name])
        after = float_logits(model, *compared)
    for old, new in zip(before, after, strict=True):
        assert (new - old).abs().max() < 1e-10 * old.abs().max()
    for old, new in zip(before, float_logits(model, *compared), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(("name", "reason"), [
    ("quarot", "it rotates all inputs itself"), ("omniquant", "its transforms are learned"),
])  # fmt: skip
def test_methods_that_cannot_rotate_as_well_say_why(name, reason):
    message = f"method '{name}': rotation is 'all', but {reason}; wanted none"
    with pytest.raises(ValueError, match=message):
        get_method(name, rotation="all")
