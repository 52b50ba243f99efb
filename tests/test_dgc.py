"""Selection of calibration rows."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptq4arvg.dgc import mahalanobis, research_distances, research_ratio, select_dgc

RECORDS = load_file(Path(__file__).parent / "golden/quant_internals/quant_internals.safetensors")


@pytest.mark.parametrize("case", ["n_gt_d", "n_lt_d", "dup"])
def test_research_distances_match_the_record(case):
    samples = RECORDS[f"dgc/var/{case}/samples"]
    mine = research_distances(samples[:, 0])
    torch.testing.assert_close(mine, RECORDS[f"dgc/var/{case}/distances"], rtol=1e-3, atol=1e-3)


def test_research_distance_is_constant_with_fewer_rows_than_dimensions():
    x = torch.randn(10, 24, generator=torch.Generator().manual_seed(0)).double().float()
    assert torch.allclose(research_distances(x), torch.full((10,), 9 / 10**0.5), rtol=1e-3)
    assert research_ratio(x, x.flip(0), 10) == 0.5


@pytest.mark.parametrize(("keep", "own"), [(2, 0), (12, 10), (22, 20)])
def test_the_research_ratio_is_the_share_of_the_largest_distances(keep, own):
    conditional = torch.tensor([[1.0], [-1.0]]).repeat(10, 1)  # all at 0.97 standard deviations
    unconditional = torch.tensor([[10.0], [-10.0], *[[0.0]] * 18])  # two at 3.1, others at 0
    assert research_ratio(conditional, unconditional, keep) == own / keep
    assert research_ratio(unconditional, conditional, keep) == 2 / keep


def test_distance_still_tells_rows_apart_with_fewer_rows_than_dimensions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, generator=g) * torch.logspace(0, -2, 256)
    x[7] *= 4
    distance = mahalanobis(x)
    assert distance.argmax() == 7
    assert distance.std() > 0.05 * distance.mean()


def by_definition(x, rank):
    """The distance from full matrices: leading eigenvectors, Ledoit and Wolf's covariance."""
    x = x.double() - x.double().mean(0)
    z = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -rank:]
    products = z[:, :, None] * z[:, None]  # [n, r, r]
    covariance = products.mean(0)
    mean = covariance.trace() / rank * torch.eye(rank, dtype=torch.float64)
    noise = (products - covariance).square().sum() / len(x) ** 2
    shrink = min(noise / (covariance - mean).square().sum(), torch.ones(()).double())
    inverse = torch.linalg.inv((1 - shrink) * covariance + shrink * mean)
    return ((z @ inverse) * z).sum(1).sqrt()


@pytest.mark.parametrize(("rows", "columns", "given", "rank"), [
    (64, 256, None, 16), (40, 8, None, 8), (40, 30, 5, 5), (9, 40, 20, 8), (5, 2, None, 1),
])  # fmt: skip
@pytest.mark.parametrize("decay", [0, -2])
def test_the_distance_is_that_of_a_shrunk_covariance(rows, columns, given, rank, decay):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, columns, generator=g) * torch.logspace(0, decay, columns) + 7
    if rank == 1:  # nothing to shrink towards: the distance is a standard score
        x = x[:, :1]
        expected = (x.double() - x.double().mean(0)).abs()[:, 0]
        expected /= expected.square().mean().sqrt()
    else:
        expected = by_definition(x, rank)
    torch.testing.assert_close(mahalanobis(x, given), expected, rtol=1e-9, atol=1e-9)


def test_directions_without_any_spread_do_not_count():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(40, 3, generator=g).double() @ torch.randn(3, 50, generator=g).double()
    torch.testing.assert_close(mahalanobis(x), by_definition(x, 3), rtol=1e-9, atol=1e-9)
    signs = torch.tensor([[1.0], [-1.0]]).repeat(4, 1)
    torch.testing.assert_close(mahalanobis(signs), torch.ones(8).double())


def test_few_rows_are_told_apart_by_their_length():
    x = torch.tensor([[0.0, 0], [3, 0], [0, 6]])
    centred = x - torch.tensor([1.0, 2])
    torch.testing.assert_close(mahalanobis(x), centred.double().square().sum(1).sqrt())


def test_duplicates_are_kept_last():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 16, generator=g)
    x[20:] = x[20] * 0.01  # twenty near-copies close to the mean
    chosen = select_dgc(x, torch.ones(40, dtype=torch.bool), 20)
    assert (chosen < 20).sum() >= 18


@pytest.mark.parametrize("floor", [0.25, 0.5])
@pytest.mark.parametrize("keep", [1, 8, 30, 40])
def test_selection_is_sorted_unique_and_keeps_a_floor_of_each_kind(keep, floor):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    conditional = torch.arange(40) < 20
    x[20:] *= 0.01  # unconditional rows all near the mean
    chosen = select_dgc(x, conditional, keep, floor)
    assert len(chosen) == keep == len(set(chosen.tolist()))
    assert chosen.tolist() == sorted(chosen.tolist())
    assert (~conditional[chosen]).sum() >= min(int(floor * keep), 20)


@pytest.mark.parametrize("keep", [0, 41])
def test_keep_out_of_range_is_an_error(keep):
    with pytest.raises(ValueError, match=f"keep is {keep}; wanted 1 to 40"):
        select_dgc(torch.zeros(40, 3), torch.ones(40, dtype=torch.bool), keep)


def test_constant_features_do_not_break():
    assert mahalanobis(torch.ones(12, 5)).tolist() == [0.0] * 12
