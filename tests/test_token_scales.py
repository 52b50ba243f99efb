"""Static token-wise scales from histograms."""

from types import SimpleNamespace

import pytest
import torch

from ptq4arvg import token_scales
from ptq4arvg.numerics import affine_grid, round_to_grid, search_range
from ptq4arvg.statistics import InputStatistics
from ptq4arvg.token_scales import GRANULARITIES, input_grid, position_groups, step_ranges

STEPS = (0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2)
T = len(STEPS)
SPEC = SimpleNamespace(groups=(0,) + (1,) * (T - 1), scale_groups=STEPS, finest=None)
BINS = 1024


def case(rows, reach, seed=0, channels=48):
    """Statistics and histograms [2, T, BINS] of normal values whose spread is reach [T]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, T, channels, generator=g) * reach[:, None]
    step = torch.tensor(STEPS)
    lo = torch.stack([x[:, step == s].amin((0, 1)) for s in range(3)])
    hi = torch.stack([x[:, step == s].amax((0, 1)) for s in range(3)])
    stats = InputStatistics(lo, hi, step, x.flatten(0, 1), torch.arange(T).repeat(rows))
    low, high = step_ranges(stats)
    histogram = torch.stack(
        [
            torch.stack(
                [torch.histc(x[half::2, t], BINS, low[t].item(), high[t].item()) for t in range(T)]
            )
            for half in (0, 1)
        ]
    )
    return x, stats, histogram


def error(x, grid, bits=6):
    scale, zero, group, _ = grid
    rounded = round_to_grid(x, scale[group, None], zero[group, None], bits)
    return ((rounded - x).square().mean((0, 2)) / x.square().mean((0, 2))).mean().item()


def test_groups_are_what_the_names_say():
    counts = {g: len(set(position_groups(SPEC, g).tolist())) for g in GRANULARITIES}
    assert counts == {"tensor": 1, "group": 2, "step": 3, "position": T, "auto": T}


def test_the_range_of_a_position_is_its_steps_with_zero():
    stats = case(4, torch.ones(T))[1]
    stats.lo[1], stats.hi[2] = stats.lo[1].abs() + 1, -stats.hi[2].abs() - 1
    lo, hi = step_ranges(stats)
    zero = torch.zeros(())
    least = torch.stack([stats.lo[0].min(), zero, stats.lo[2].min()])
    most = torch.stack([stats.hi[0].max(), stats.hi[1].max(), zero])
    assert torch.equal(lo, least[stats.step]) and torch.equal(hi, most[stats.step])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_without_histograms_a_grid_spans_its_group_and_none_is_finer_than_a_step(granularity):
    stats = case(8, torch.linspace(1, 3, T))[1]
    scale, zero, group, blend = input_grid(SPEC, stats, None, 6, granularity)
    wide = granularity if granularity in ("tensor", "group") else "step"
    assert torch.equal(group, position_groups(SPEC, wide)) and blend is None
    lo, hi = step_ranges(stats)
    for g in range(int(group.max()) + 1):
        wanted = affine_grid(lo[group == g].min(), hi[group == g].max(), 6)
        assert (scale[g], zero[g]) == wanted


@pytest.mark.parametrize("granularity", ["tensor", "group"])
@pytest.mark.parametrize("positive", [False, True])
def test_steps_of_different_range_are_pooled_over_a_common_one(granularity, positive):
    reach = torch.tensor([20.0, *[4.0] * 4, *[1.0] * (T - 5)])
    x, stats, _ = case(64, reach)
    if positive:
        x = x.abs()
        stats.lo, stats.hi = torch.zeros_like(stats.lo), torch.maximum(stats.hi, -stats.lo)
    low, high = step_ranges(stats)
    histogram = torch.stack([
        torch.stack([torch.histc(x[half::2, t], BINS, low[t].item(), high[t].item())
                     for t in range(T)]) for half in (0, 1)
    ])  # fmt: skip
    scale, _, group, _ = input_grid(SPEC, stats, histogram, 6, granularity)
    for g in range(int(group.max()) + 1):
        values = x[:, group == g]
        ends = values.min().clamp(max=0), values.max()
        pooled = torch.histc(values, BINS, *(end.item() for end in ends))
        wanted = affine_grid(*search_range(pooled[None], *(end[None] for end in ends), 6), 6)[0]
        # Bringing the bins to a common range moves a value by less than a bin.
        assert abs(scale[g] / wanted - 1) < 0.02


def test_occupied_and_joined_bins():
    mass = torch.tensor([[0, 3.0, 0, 1, 0, 0, 0, 0], [0] * 8, [0, 0, 0, 0, 0, 2, 2, 0]])
    lo, hi = token_scales._occupied(mass, torch.tensor([-4.0, -4, -4]), torch.tensor([4.0, 4, 4]))
    assert lo.tolist() == [-3, 0, 0] and hi.tolist() == [0, 0, 3]
    # Middles at 0.5, 1.5, 2.5 and 3.5; the bins of [-1, 5] begin at -1, 0.5, 2 and 3.5.
    mass = torch.tensor([[1.0, 2, 3, 4]])
    ends = torch.zeros(1), torch.full((1,), 4.0), -torch.ones(1), torch.full((1,), 5.0)
    assert token_scales._rebin(mass, *ends).tolist() == [[0, 3, 3, 4]]


@pytest.mark.parametrize("blend", [0.0, 0.25, 1.0])
def test_a_blend_lies_between_the_positions_and_their_step(blend, monkeypatch):
    _, stats, histogram = case(8, torch.linspace(1, 3, T))
    monkeypatch.setattr(token_scales, "BLENDS", (blend,))
    auto, fine, coarse = (
        input_grid(SPEC, stats, histogram, 6, g) for g in ("auto", "position", "step")
    )
    assert auto[3] == blend and torch.equal(auto[2], (fine if blend else coarse)[2])
    between = blend * fine[0] + (1 - blend) * coarse[0][[*STEPS]]
    torch.testing.assert_close(auto[0][auto[2]], between)


def test_both_halves_of_the_rows_choose_the_blend():
    blends = set()
    for spread in (0, 0.5, 1, 2, 4, 8, 16):  # of the positions' ranges
        _, stats, histogram = case(16, torch.linspace(1, 1 + spread, T))
        one, other = (input_grid(SPEC, stats, h, 6, "auto") for h in (histogram, histogram.flip(0)))
        assert one[3] == other[3] and torch.equal(one[0], other[0])
        blends.add(one[3])
    assert len(blends) > 1


@pytest.mark.parametrize("granularity", ["position", "auto"])
def test_positions_that_are_not_told_apart_share_a_grid(granularity):
    finest = (0, 1, 1, 2, 2, *range(3, 3 + T - 5))
    spec = SimpleNamespace(**vars(SPEC) | {"finest": finest})
    reach = torch.tensor([1.0, 1, 3, 2, 2, *torch.linspace(0.5, 1.5, T - 5)])
    _, stats, histogram = case(16, reach)
    scale, _, group, _ = input_grid(spec, stats, histogram, 6, granularity)
    assert tuple(group.tolist()) == finest
    assert len(scale) == max(finest) + 1
    # Alone in its group, a position has the grid that it has without groups; with a wider one, not.
    alone, _, each, _ = input_grid(SPEC, stats, histogram, 6, "position")
    if granularity == "position":
        assert torch.equal(scale[group[5:]], alone[each[5:]])
        assert scale[group[1]] > alone[each[1]]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("histograms", [True, False], ids=["searched", "minmax"])
def test_grids_are_valid(granularity, histograms):
    x, stats, histogram = case(16, torch.ones(T))
    scale, zero, group, _ = input_grid(SPEC, stats, histogram if histograms else None, 6,
                                       granularity)  # fmt: skip
    assert group.shape == (T,) and group.max() < len(scale)
    assert torch.isfinite(scale).all() and (scale > 0).all()
    assert zero.min() >= 0 and zero.max() <= 63
    assert error(x, (scale, zero, group, None)) < 0.01


def test_finer_scales_pay_where_positions_differ():
    reach = torch.logspace(0, 2, T)
    x, stats, histogram = case(64, reach)
    errors = {g: error(x, input_grid(SPEC, stats, histogram, 6, g)) for g in GRANULARITIES}
    assert errors["position"] < errors["step"] < errors["tensor"]
    assert errors["auto"] <= 1.05 * errors["position"]
    assert input_grid(SPEC, stats, histogram, 6, "auto")[3] >= 0.75


def test_few_rows_of_alike_positions_share_their_steps_scale():
    _, stats, histogram = case(4, torch.ones(T), channels=8)
    unseen, _, _ = case(400, torch.ones(T), seed=1, channels=8)
    auto = input_grid(SPEC, stats, histogram, 8, "auto")
    each = input_grid(SPEC, stats, histogram, 8, "position")
    assert auto[3] <= 0.5
    assert error(unseen, auto, 8) < error(unseen, each, 8)


def test_input_without_positions_has_one_grid():
    spec = SimpleNamespace(groups=(0,), scale_groups=(0,), finest=None)
    x = torch.randn(32, 1, 16, generator=torch.Generator().manual_seed(0))
    stats = InputStatistics(
        x.amin(0), x.amax(0), torch.tensor([0]), x[:, 0], torch.zeros(32).long()
    )
    low, high = step_ranges(stats)
    histogram = torch.stack(
        [torch.histc(x[h::2], BINS, low.item(), high.item())[None] for h in (0, 1)]
    )
    scale, _, group, blend = input_grid(spec, stats, histogram, 8, "auto")
    assert len(scale) == 1 and group.tolist() == [0] and blend is None


def test_dead_input_gets_a_finite_grid():
    zeros = torch.zeros(3, 4)
    stats = InputStatistics(zeros, zeros, torch.tensor(STEPS), torch.zeros(T, 4), torch.arange(T))
    histogram = torch.zeros(2, T, BINS)
    histogram[..., 0] = 1
    for granularity in GRANULARITIES:
        scale, zero, _, _ = input_grid(SPEC, stats, histogram, 6, granularity)
        assert torch.isfinite(scale).all() and (scale > 0).all() and (zero >= 0).all()
