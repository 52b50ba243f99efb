"""SVDQuant: the randomized SVD against the exact one, and what the branch is for."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.methods import get_method
from ptq4arvg.methods.svdquant import low_rank
from ptq4arvg.models import build_model
from ptq4arvg.nn import Cursor, QuantLinear
from ptq4arvg.numerics import LinearQuantization, affine_grid, get_scheme, quantize_weight
from ptq4arvg.pipeline import quantize_
from tests.methods.layers import gaussian, outlier_channels, view_of
from tests.models.tiny import TINY


def low_rank_outliers(rank=4, seed=0):
    """A weight with a few strong directions on top of small, even values."""
    x, weight = gaussian(seed)
    g = torch.Generator().manual_seed(seed + 1)
    up, down = torch.randn(48, rank, generator=g), torch.randn(rank, 64, generator=g)
    return x, weight + up @ down


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_randomized_svd_is_as_close_as_the_exact_one(rank):
    _, weight = low_rank_outliers()
    up, down = low_rank(weight, rank)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    exact = (u[:, :rank] * s[:rank]) @ v[:rank]
    best = (weight - exact).norm()
    assert (weight - up @ down).norm() < 1.001 * best
    assert up.shape == (48, rank) and down.shape == (rank, 64)


def test_a_rank_beyond_the_weight_is_clamped_and_below_one_an_error():
    _, weight = gaussian()
    before = torch.random.get_rng_state()
    up, down = low_rank(weight, 1000)
    assert len(down) == 48 and (up @ down - weight).abs().max() < 1e-5
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="rank is 0; wanted 1 or more"):
        get_method("svdquant", rank=0)


def test_the_branch_takes_low_rank_outliers_off_the_weight():
    view, scheme = view_of(*low_rank_outliers()), get_scheme("W4A8")
    method = get_method("svdquant", rank=4)
    transform = method.fit(view, scheme)
    branch = method.branch(transform.weight(view.weight))
    with_branch = method.output_error(view, transform, scheme, branch)
    assert with_branch == pytest.approx(transform.record["error_after"])
    assert with_branch < 0.2 * method.output_error(view, transform, scheme)
    smooth = get_method("smoothquant", alpha=None).fit(view, scheme)
    assert with_branch < 0.2 * method.output_error(view, smooth, scheme)


def test_the_start_of_the_branch_is_that_of_the_seed():
    weight = low_rank_outliers()[1].double()
    found = get_method("svdquant", rank=4, seed=2).branch(weight)
    assert all(map(torch.equal, found, low_rank(weight, 4, seed=2)))
    assert not torch.equal(found[0], low_rank(weight, 4)[0])


def test_smoothing_moves_outliers_of_the_input_into_the_branch():
    view, scheme = view_of(*outlier_channels()), get_scheme("W6A6")
    transform = get_method("svdquant", rank=8).fit(view, scheme)
    assert transform.record["smooth"] > 0 and transform.record["rank"] == 8


def test_layers_that_nothing_folds_into_keep_their_branch():
    view = view_of(*outlier_channels(), foldable=False)
    method = get_method("svdquant")
    assert method.fit(view, get_scheme("W6A6")) is None
    assert method.branch(view.weight)[1].shape == (32, 64)


def test_the_branch_counts_as_weight():
    model = build_model("test", TINY["var"], seed=0)
    rows = ptq4arvg.calibrate(model, samples=4, keep=2, seed=0)
    layers = quantize_(model, "W4A8", "svdquant", rows, rank=2).layers
    n, k = model.transformer.head.weight.shape
    assert layers[-1].bytes_after == n * k // 2 + 2 * 2 * (n + k)


def test_simulated_linear_is_the_sum_of_both_parts():
    x, weight = low_rank_outliers()
    up, down = low_rank(weight, 4)
    codes, w_scale, w_zero = quantize_weight(weight - up @ down, 4)
    grid = affine_grid(x.amin()[None], x.amax()[None], 8)
    whole = torch.zeros(x.shape[1], dtype=torch.int64)
    q = LinearQuantization(codes, w_scale, w_zero, None, *grid, whole, 4, 8)
    cursor = Cursor()
    cursor.set(0, x.shape[1])
    module, plain = QuantLinear(q, cursor, (up, down)), QuantLinear(q, cursor)
    wanted = plain(x) + x @ (up @ down).T
    torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-4)
    assert (module(x) - x @ weight.T).norm() < 0.2 * (plain(x) - x @ weight.T).norm()
