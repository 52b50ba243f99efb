"""Bootstrap intervals against what statistics says of the mean."""

import pytest
import torch

from ptq4arvg.evaluation.bootstrap import bootstrap_interval, share_interval


def test_interval_of_a_mean_has_the_width_that_theory_gives():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double()
    low, high = bootstrap_interval(
        lambda rows: x[rows].mean().item(), 2000, resamples=2000, low=-torch.inf
    )
    assert low < x.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * x.std().item() / 2000**0.5, rel=0.1)


def test_a_biased_figure_lies_within_its_interval():
    """A resample of n distinct rows has fewer distinct rows, always."""
    low, high = bootstrap_interval(lambda rows: float(len(rows.unique())), 50)
    assert low < 50 < high


def test_interval_depends_on_its_seed_only_and_stays_within_bounds():
    inside = torch.tensor([True] * 39 + [False])
    state = torch.get_rng_state()
    first = share_interval(inside, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert share_interval(inside, seed=1) == first
    x = torch.linspace(0, 1, 40)
    ends = {bootstrap_interval(lambda rows: x[rows].mean().item(), 40, seed=s) for s in (0, 1, 2)}
    assert len(ends) == 3
    assert first[0] < 39 / 40 <= first[1] <= 1
    few = torch.tensor([True] * 4 + [False])
    assert all(0 <= end <= 1 for s in range(20) for end in share_interval(few, seed=s, level=0.99))
    assert bootstrap_interval(lambda rows: x[rows].mean().item(), 40, low=0.49, high=0.51) == (
        0.49, 0.51,
    )  # fmt: skip
    assert share_interval(torch.ones(9, dtype=torch.bool)) == (1, 1)


def test_progress_is_told():
    seen = []
    bootstrap_interval(lambda rows: 1.0, 3, resamples=2, progress=lambda *a: seen.append(a))
    assert seen == [("bootstrap", 1, 2), ("bootstrap", 2, 2)]


@pytest.mark.parametrize("wrong", [{"count": 1}, {"resamples": 1}, {"level": 1.0}])
def test_settings_that_give_no_interval_are_an_error(wrong):
    with pytest.raises(ValueError, match="wanted at least 2 of both and a level between 0 and 1"):
        bootstrap_interval(**({"figure": lambda rows: 0.0, "count": 5} | wrong))
