"""Streaming statistics of inputs, against the same numbers computed at once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq4arvg import reference
from ptq4arvg.calibration import Calibration
from ptq4arvg.statistics import InputStatistics, collect_histograms, collect_inputs, collect_ranges

T, K, ROWS = 12, 6, 10
STEP = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2])


class Toy(nn.Module):
    """A model of one linear whose input is a fixed function of the ids."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict({"linear": nn.Linear(K, 3)})
        g = torch.Generator().manual_seed(0)
        self.table = torch.randn(50, K, generator=g) * torch.tensor([1, 1, 5, 1, 0, 1])

    def inputs(self, ids):
        return self.table[ids] * (1 + torch.arange(T))[:, None].to(self.table)

    def replay(self, ids, labels):
        return self.transformer["linear"](self.inputs(ids))


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(50, (ROWS, T), generator=g)
    return Toy(), Calibration(ids, torch.zeros(ROWS, dtype=torch.int64))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_ranges_and_sample_do_not_depend_on_the_batch_size(case, batch_size):
    toy, rows = case
    x = toy.inputs(rows.ids)  # [ROWS, T, K]
    stats = collect_inputs(toy, rows, {"linear": STEP}, sample=40, batch_size=batch_size)["linear"]
    for s in range(3):
        assert torch.equal(stats.lo[s], x[:, s == STEP].amin((0, 1)))
        assert torch.equal(stats.hi[s], x[:, s == STEP].amax((0, 1)))
    flat = x.reshape(-1, K)
    assert 40 <= len(stats.sample) <= 3 * 40
    found = (stats.sample[:, None] == flat[None]).all(-1)
    assert found.any(1).all()
    for row, position in zip(stats.sample, stats.sample_position, strict=True):
        assert (x[:, position] == row).all(-1).any()
    assert set(stats.sample_position.tolist()) == set(range(T))


def test_ranges_of_rotated_inputs(case):
    toy, rows = case

    def turn(x):
        return reference.rotate(x / 3, 2)

    lo, hi = collect_ranges(toy, rows, {"linear": (STEP, turn)}, batch_size=3)["linear"]
    x = turn(toy.inputs(rows.ids).double())
    for s in range(3):
        torch.testing.assert_close(lo[s].double(), x[:, s == STEP].amin((0, 1)))
        torch.testing.assert_close(hi[s].double(), x[:, s == STEP].amax((0, 1)))


def test_ranges_of_the_sample(case):
    toy, rows = case
    stats = collect_inputs(toy, rows, {"linear": STEP}, sample=40)["linear"]
    turned = stats.turned(2)
    assert torch.equal(turned.sample, reference.rotate(stats.sample, 2))
    at = STEP[turned.sample_position]
    for s in range(3):
        assert torch.equal(turned.lo[s], turned.sample[at == s].amin(0))
        assert torch.equal(turned.hi[s], turned.sample[at == s].amax(0))
    first = replace(stats, sample=stats.sample[at == 0],
                    sample_position=stats.sample_position[at == 0]).sampled()  # fmt: skip
    assert torch.equal(first.lo[0], stats.sample[at == 0].amin(0))
    assert not first.lo[1:].any() and not first.hi[1:].any()
    positive = replace(stats, sample=stats.sample.abs() + 1).sampled()
    assert (positive.lo >= 1).all()  # no zero that is not in the sample
    empty = replace(stats, sample=stats.sample[:0], sample_position=stats.sample_position[:0])
    assert not empty.turned(2).hi.any() and empty.turned(2).hi.shape == stats.hi.shape


class Growing(Toy):
    """Runs its linear twice per replay, on the first 3 and on the first 7 positions."""

    def replay(self, ids, labels):
        for tokens in (3, 7):
            self.transformer["linear"](self.inputs(ids)[:, :tokens])


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_inputs_of_fewer_positions_than_the_table(case, batch_size):
    rows = case[1]
    toy, x = Growing(), case[0].inputs(rows.ids)
    stats = collect_inputs(toy, rows, {"linear": STEP}, {"linear": 2}, sample=20,
                           batch_size=batch_size)["linear"]  # fmt: skip
    assert torch.equal(stats.lo[2], x[:, 4:7].amin((0, 1)))
    assert 20 <= len(stats.sample) <= 2 * 20
    for row, position in zip(stats.sample, stats.sample_position, strict=True):
        assert (x[:, position] == row).all(-1).any()
    assert set(stats.sample_position.tolist()) == set(range(7))
    whole = collect_inputs(toy, rows, {"linear": STEP}, {"linear": 2}, sample=20,
                           batch_size=ROWS)["linear"]  # fmt: skip
    assert sorted(stats.sample.tolist()) == sorted(whole.sample.tolist())
    ranges = {"linear": (x.amin((0, 2)), x.amax((0, 2)), torch.ones(K))}
    found = collect_histograms(toy, rows, ranges, 64, batch_size=batch_size)["linear"]
    visits = torch.tensor([2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert torch.equal(found.sum((0, 2)), visits * ROWS * K * torch.ones(()))
    once = collect_histograms(case[0], rows, ranges, 64)["linear"]
    assert torch.equal(found, once * visits[:, None])


def test_a_step_that_no_row_reaches_has_no_range(case):
    rows, steps = case[1], torch.cat([torch.zeros(7), torch.ones(5)]).long()
    stats = collect_inputs(Growing(), rows, {"linear": steps})["linear"]
    assert not stats.lo[1].any() and not stats.hi[1].any()
    assert stats.lo[0].any()


def test_transformed_statistics_are_those_of_the_transformed_input(case):
    toy, rows = case
    scale, shift = torch.rand(K) + 0.5, torch.randn(K)
    stats = collect_inputs(toy, rows, {"linear": STEP})["linear"].transformed(scale, shift)
    x = toy.inputs(rows.ids) / scale - shift
    torch.testing.assert_close(stats.lo[2], x[:, STEP == 2].amin((0, 1)))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_histograms_count_even_and_odd_rows_apart(case, batch_size):
    toy, rows = case
    x = toy.inputs(rows.ids)
    lo, hi = x.amin((0, 2)), x.amax((0, 2))
    weight = torch.tensor([1.0, 2, 0.5, 1, 1, 1])
    ranges = {"linear": (lo, hi, weight)}
    found = collect_histograms(toy, rows, ranges, 64, batch_size=batch_size)["linear"]
    assert found.shape == (2, T, 64)
    for half in (0, 1):
        for t in (0, 5, 11):
            values = x[half::2, t].flatten()
            bins = ((values - lo[t]) * (64 / (hi[t] - lo[t]))).long().clamp(0, 63)
            expected = torch.zeros(64).index_add_(0, bins, weight.repeat(ROWS // 2))
            torch.testing.assert_close(found[half, t], expected)


def test_weights_of_all_sizes_count_and_values_outside_fall_into_the_end_bins(case):
    toy, rows = case
    x = toy.inputs(rows.ids)
    weight = torch.tensor([1.0, 1 / 3, 1e-9, 0.0, 0.0, 0.0])
    middle = torch.tensor([-0.5, 0.5]).expand(T, 2)
    found = collect_histograms(toy, rows, {"linear": (*middle.unbind(1), weight)}, 4)["linear"]
    bins = ((x + 0.5) * 4).floor().long().clamp(0, 3)  # [ROWS, T, K]
    for half in (0, 1):
        for t in range(T):
            own = bins[half::2, t, :3]
            counts = torch.stack([(own == b).sum(0) for b in range(4)])  # [4, 3]
            expected = counts.double() @ weight[:3].double()
            # Each weight to 2^-23 of the largest, the sum to float32; and never to nothing.
            error = (found[half, t].double() - expected).abs()
            assert (error <= 2.0**-22 * counts.sum(1)).all()
            assert torch.equal(found[half, t] > 0, counts.sum(1) > 0)


def test_histograms_of_a_transformed_input(case):
    toy, rows = case
    scale, shift = torch.rand(K) + 0.5, torch.randn(K)
    x = toy.inputs(rows.ids) / scale - shift
    ranges = {"linear": (x.amin((0, 2)), x.amax((0, 2)), torch.ones(K))}
    found = collect_histograms(toy, rows, ranges, 64, {"linear": lambda x: x / scale - shift})
    toy.inputs = lambda ids: x[: len(ids)]
    assert torch.equal(found["linear"], collect_histograms(toy, rows, ranges, 64)["linear"])


def test_half_precision_is_kept_and_is_the_same_in_float32(case):
    toy, rows = case
    toy.table = toy.table.bfloat16()
    toy.transformer.bfloat16()
    stats = collect_inputs(toy, rows, {"linear": STEP}, sample=40)["linear"]
    assert stats.lo.dtype == stats.hi.dtype == stats.sample.dtype == torch.bfloat16
    wide, exact = stats.float(), toy.inputs(rows.ids)
    assert wide.lo.dtype == wide.hi.dtype == wide.sample.dtype == torch.float32
    assert torch.equal(wide.hi[2], exact[:, STEP == 2].amax((0, 1)).float())
    scale, shift = torch.rand(K) + 0.5, torch.randn(K)
    a, b = stats.transformed(scale, shift), wide.transformed(scale, shift)
    assert torch.equal(a.lo, b.lo) and torch.equal(a.sample, b.sample)


def test_hooks_are_removed_even_when_the_model_fails(case):
    toy, rows = case
    toy.replay = lambda ids, labels: (_ for _ in ()).throw(RuntimeError("stop"))
    with pytest.raises(RuntimeError, match="stop"):
        collect_inputs(toy, rows, {"linear": STEP})
    assert not toy.transformer["linear"]._forward_pre_hooks


def test_a_thinned_sample_keeps_vectors_with_their_positions():
    position = torch.arange(500) % 7
    stats = InputStatistics(
        torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(7, dtype=torch.int64),
        torch.stack([torch.arange(500.0), position.float()], 1), position,
    )  # fmt: skip
    thin = stats.thinned(100)
    assert len(thin.sample) == len(thin.sample_position) == 100
    assert torch.equal(thin.sample[:, 1].long(), thin.sample_position)
    assert (thin.sample[:, 0].diff() > 0).all() and thin.sample[-1, 0] >= 400
    assert set(thin.sample_position.tolist()) == set(range(7))
    assert torch.equal(thin.sample, stats.thinned(100).sample)
    assert stats.thinned(500) is stats
