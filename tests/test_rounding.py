"""GPTQ's rounding: against the textbook loop, its limits, what it gains and what it leaves."""

import pytest
import torch

from ptq4arvg import rounding
from ptq4arvg.methods import get_method
from ptq4arvg.numerics import quantize_weight
from ptq4arvg.rounding import channel_products, mean_products


def correlated(k=48, rows=400, rank=6, seed=0):
    """Inputs [rows, K] that a few directions explain, but for some noise."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, k, generator=g)
    return torch.randn(rows, rank, generator=g) @ basis + 0.1 * torch.randn(rows, k, generator=g)


def weight_of(n=24, k=48, seed=1):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def compensated_codes(weight, scale, zero, bits, x):
    return rounding.compensated_codes(weight, scale, zero, bits, channel_products(x))


def textbook(weight, scale, zero, bits, x):
    """One row, one column at a time, the inverse of H reduced by elimination (OBQ in order)."""
    h = mean_products(x)
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for n, values in enumerate(weight.double().clone()):
        low = -127 if zero is None else -int(zero[n])
        high = 127 if zero is None else low + 2**bits - 1
        inverse = torch.linalg.inv(h)
        for k in range(len(values)):
            level = min(max(round((values[k] / scale[n].double()).item()), low), high)
            codes[n, k] = level
            error = (values[k] - level * scale[n].double()) / inverse[k, k]
            values[k:] -= error * inverse[k, k:]
            inverse -= inverse[:, k, None] * inverse[None, k] / inverse[k, k]
    return codes


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("block", [128, 16, 7])
def test_it_is_the_textbook_loop(bits, block, monkeypatch):
    monkeypatch.setattr(rounding, "BLOCK", block)
    x, weight = correlated(), weight_of(n=5)
    _, scale, zero = quantize_weight(weight, bits)
    codes = compensated_codes(weight, scale, zero, bits, x)
    assert torch.equal(codes, textbook(weight, scale, zero, bits, x))


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_correlated_inputs_are_what_it_is_for(bits):
    x, weight = correlated(), weight_of()
    nearest, scale, zero = quantize_weight(weight, bits, x.square().mean(0))
    codes = compensated_codes(weight, scale, zero, bits, x)

    def error(codes, on):
        return (on @ (codes * scale[:, None] - weight).t()).square().mean()

    assert error(codes, x) < 0.3 * error(nearest, x)
    unseen = correlated(rows=1000)[400:]
    assert error(codes, unseen) < 0.3 * error(nearest, unseen)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_codes_stay_within_the_grid(bits):
    x, weight = correlated(rank=2), weight_of()
    _, scale, zero = quantize_weight(weight, bits)
    scale = scale / 3  # a grid that is too narrow: most values are at its ends
    codes = compensated_codes(weight, scale, zero, bits, x)
    low = torch.full((24,), -127) if zero is None else -zero
    high = torch.full((24,), 127) if zero is None else low + 2**bits - 1
    assert (codes >= low[:, None]).all() and (codes <= high[:, None]).all()
    assert (codes == low[:, None]).any() and (codes == high[:, None]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_is_left_as_it_was(dtype):
    weight = weight_of().to(dtype)
    before = weight.clone()
    _, scale, zero = quantize_weight(weight, 4)
    compensated_codes(weight, scale, zero, 4, correlated())
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_few_rows_at_a_time_are_all_rows(bits, monkeypatch):
    x, weight = correlated(), weight_of()
    _, scale, zero = quantize_weight(weight, bits)
    codes = compensated_codes(weight, scale, zero, bits, x)
    monkeypatch.setattr(rounding, "ROWS", 7)
    assert torch.equal(compensated_codes(weight, scale, zero, bits, x), codes)


@pytest.mark.parametrize("bits", [8, 4])
def test_without_anything_to_make_up_for_it_rounds_to_nearest(bits):
    weight = weight_of()
    nearest, scale, zero = quantize_weight(weight, bits)
    for x in (torch.zeros(10, 48), torch.eye(48)):
        assert torch.equal(compensated_codes(weight, scale, zero, bits, x), nearest)


def test_dead_channels_and_few_inputs():
    x, weight = correlated(rows=10), weight_of()
    x[:, 5] = 0
    nearest, scale, zero = quantize_weight(weight, 4)
    codes = compensated_codes(weight, scale, zero, 4, x)
    assert torch.equal(codes[:, 5], nearest[:, 5])
    assert not torch.equal(codes, nearest)


def shrinkage(x):
    """The share by its definition, product by product."""
    products = x.double()[:, :, None] * x.double()[:, None]  # [M, K, K]
    mean = products.mean(0)
    variance = (products - mean).square().sum(0) / len(x) / (len(x) - 1)
    off = ~torch.eye(x.shape[1], dtype=torch.bool)
    return min(max((variance[off].sum() / mean[off].square().sum()).item(), 0.0), 1.0)


@pytest.mark.parametrize("rows", [2, 3, 40, 400])
def test_products_are_shrunk_by_the_share_of_the_paper(rows):
    # Two rows are from channels that hardly agree, of which nothing is left.
    x = correlated(rows=rows) if rows > 2 else torch.tensor([[1.0, 1.0], [1.0, -0.5]])
    plain = x.double().t() @ x.double() / rows
    expected = plain * (1 - shrinkage(x))
    expected.diagonal().copy_(plain.diagonal())
    torch.testing.assert_close(mean_products(x.double()), expected, rtol=1e-10, atol=1e-12)
    # In float32 a sum of products is within rows * 2^-24 of the sum of their magnitudes; the share
    # taken off hardly moves.
    magnitudes = x.double().abs().t() @ x.double().abs() / rows
    error = (mean_products(x) - expected).abs()
    assert (error <= 2 * rows * 2.0**-24 * (magnitudes + expected.abs().max())).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2500, 3), (1025, 257), (30, 600)])
def test_products_are_taken_in_blocks(rows, columns):
    x = torch.randint(-8, 9, (rows, columns), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(rounding._products(x), (x.long().t() @ x.long()).double())


@pytest.mark.parametrize("columns", [1, 5, 200])
def test_the_factor_is_that_of_the_inverse(columns):
    h = mean_products(correlated(k=columns, rows=40).double())
    h.diagonal().add_(0.01)
    upper = rounding._inverse_factor(h)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.t() @ upper @ h, torch.eye(len(h), dtype=h.dtype))


def test_products_of_unrelated_channels_vanish_and_related_ones_stay():
    g = torch.Generator().manual_seed(0)
    unrelated = torch.randn(30, 64, generator=g)
    off = mean_products(unrelated) - mean_products(unrelated).diag().diag()
    plain = unrelated.double().t() @ unrelated.double() / 30
    assert off.norm() < 0.3 * (plain - plain.diag().diag()).norm()
    assert shrinkage(correlated(rows=2000)) < 0.01


def test_shrinking_is_what_few_unrelated_inputs_need():
    """Without it, twice as many channels as vectors are fitted to chance."""
    g = torch.Generator().manual_seed(0)
    x, unseen = torch.randn(48, 96, generator=g), torch.randn(4000, 96, generator=g)
    weight = weight_of(k=96)
    nearest, scale, zero = quantize_weight(weight, 4)
    codes = compensated_codes(weight, scale, zero, 4, x)

    def error(codes):
        return (unseen @ (codes * scale[:, None] - weight).t()).square().mean()

    assert error(codes) < 1.1 * error(nearest)


def test_more_channels_than_fit_make_up_among_themselves(monkeypatch):
    x, weight = correlated(), weight_of()
    _, scale, zero = quantize_weight(weight, 4)
    parts = [
        compensated_codes(weight[:, own], scale, zero, 4, x[:, own])
        for own in (slice(0, 20), slice(20, 40), slice(40, 48))
    ]
    monkeypatch.setattr(rounding, "CHANNELS", 20)
    assert torch.equal(compensated_codes(weight, scale, zero, 4, x), torch.cat(parts, 1))


def test_another_rounding_is_refused():
    message = r"rounding is 'gtpq'; wanted one of nearest, gptq, descent, auto\. Closest: 'gptq'"
    with pytest.raises(ValueError, match=message):
        get_method("rtn", rounding="gtpq")
