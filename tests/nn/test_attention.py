"""Simulated quantization of the attention products."""

import pytest
import torch

from ptq4arvg.nn import AttentionCore, Cursor, QuantAttention
from ptq4arvg.nn.attention import quantize_softmax
from ptq4arvg.numerics import affine_grid


@pytest.mark.parametrize("kind", ["uniform", "log_sqrt2"])
@pytest.mark.parametrize("bits", [8, 6])
def test_softmax_grid_holds_zero_and_one(kind, bits):
    e = torch.tensor([0.0, 1e-30, 0.5, 1.0])
    q = quantize_softmax(e, bits, kind)
    assert q[0] == 0 and q[3] == 1 and abs(q[2] - 0.5) < 0.01
    assert (q >= 0).all() and (q <= 1).all()


def grids(q, k, v, bits):
    return {
        "q": affine_grid(q.amin((0, 3)), q.amax((0, 3)), bits),
        "k": affine_grid(k.amin((0, 3)), k.amax((0, 3)), bits),
        "v": affine_grid(v.amin((0, 2)), v.amax((0, 2)), bits),
    }


@pytest.mark.parametrize("kind", ["uniform", "log_sqrt2"])
def test_eight_bits_stay_close_and_steps_equal_the_whole_sequence(kind):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 16, generator=g) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    exact = AttentionCore()(q, k, v, mask)
    cursor = Cursor()
    core = QuantAttention(grids(q, k, v, 8), 8, kind, cursor)
    cursor.set(0, 6)
    whole = core(q, k, v, mask)
    error = (whole - exact).square().sum() / exact.square().sum()
    assert error < (1e-3 if kind == "uniform" else 2e-2)
    cursor.set(3, 3)
    step = core(q[:, :, 3:], k, v, mask[3:])
    torch.testing.assert_close(step, whole[:, :, 3:])


def test_a_step_that_sees_only_itself_has_the_grids_of_its_positions():
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, 6, 16, generator=g) for _ in range(3))
    k = k * torch.tensor([1.0, 1, 1, 9, 9, 9])[:, None]
    cursor = Cursor()
    core = QuantAttention(grids(q, k, v, 8), 8, "uniform", cursor)
    cursor.set(0, 6)
    part = torch.arange(6) // 3
    whole = core(q, k, v, part[:, None] == part)
    cursor.set(3, 3)
    step = core(*(x[:, :, 3:] for x in (q, k, v)))
    torch.testing.assert_close(step, whole[:, :, 3:])


def test_added_and_boolean_masks_agree():
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 5, 8, generator=g) for _ in range(3))
    cursor = Cursor()
    cursor.set(0, 5)
    core = QuantAttention(grids(q, k, v, 6), 6, "uniform", cursor)
    keep = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.zeros(5, 5).masked_fill(~keep, -torch.inf)
    assert torch.equal(core(q, k, v, keep), core(q, k, v, added))
