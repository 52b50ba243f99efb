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


def test_distance_still_tells_rows_apart_with_fewer_rows_than_dimensions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, generator=g) * torch.logspace(0, -2, 256)
    x[7] *= 4
    distance = mahalanobis(x)
    assert distance.argmax() == 7
    assert distance.std() > 0.05 * distance.mean()


def test_duplicates_are_kept_last():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 16, generator=g)
    x[20:] = x[20] * 0.01  # twenty near-copies close to the mean
    chosen = select_dgc(x, torch.ones(40, dtype=torch.bool), 20)
    assert (chosen < 20).sum() >= 18


@pytest.mark.parametrize("keep", [1, 8, 30, 40])
def test_selection_is_sorted_unique_and_keeps_a_floor_of_each_kind(keep):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    conditional = torch.arange(40) < 20
    x[20:] *= 0.01  # unconditional rows all near the mean
    chosen = select_dgc(x, conditional, keep)
    assert len(chosen) == keep == len(set(chosen.tolist()))
    assert chosen.tolist() == sorted(chosen.tolist())
    assert (~conditional[chosen]).sum() >= min(int(0.25 * keep), 20)


def test_keep_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="keep is 41; wanted 1 to 40"):
        select_dgc(torch.zeros(40, 3), torch.ones(40, dtype=torch.bool), 41)


def test_constant_features_do_not_break():
    assert mahalanobis(torch.ones(12, 5)).tolist() == [0.0] * 12
