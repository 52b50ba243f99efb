"""Hadamard matrices by Paley's constructions, and the fast rotation against the matrix."""

import pytest
import torch
from torch import nn

from ptq4arvg.hadamard import Rotation, factor, paley, split_size, turn_input_, turn_of


@pytest.mark.parametrize("order", [4, 8, 12, 20, 24, 28, 36, 44, 60, 68, 76, 84, 108, 200])
def test_paley_matrices_are_hadamard(order):
    matrix = paley(order)
    assert set(matrix.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


def test_both_constructions_are_used():
    assert factor(12) == "paley 1" and factor(28) == "paley 2" and factor(36) == "paley 2"
    assert [n for n in range(40) if factor(n)] == [1, 4, 8, 12, 20, 24, 28, 32, 36]


@pytest.mark.parametrize("order", [1, 2, 6, 40, 52, 92])
def test_an_order_without_a_construction_is_refused(order):
    with pytest.raises(ValueError, match=f"no matrix of order {order}; wanted q"):
        paley(order)


def test_sizes_of_the_published_models_have_a_rotation():
    widths = [768, 1024, 1280, 1408, 1536, 1920, 2304, 3200]  # VAR, RAR, PAR, MAR
    hidden = [3072, 3584, 4096, 5120, 6144, 7680, 8704, 9216]
    assert all(split_size(size) for size in widths + hidden)
    assert split_size(1024) == (1024, 1)
    assert split_size(1280) == (64, 20) and split_size(1408) == (32, 44)
    assert split_size(3200) == (16, 200)
    assert [split_size(size) for size in (0, 3, 6, 92, 1026)] == [None] * 5


@pytest.mark.parametrize("size", [1, 2, 8, 12, 40, 48, 112, 256])
def test_rotation_is_orthogonal_and_evens_out(size):
    rotation = Rotation(size, seed=3)
    matrix = rotation(torch.eye(size, dtype=torch.float64))
    eye = torch.eye(size, dtype=torch.float64)
    assert (matrix @ matrix.T - eye).abs().max() < 1e-12
    assert (matrix.abs() - size**-0.5).abs().max() < 1e-12  # every channel counts alike
    x = torch.randn(3, 5, size, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(rotation(x), x @ matrix, rtol=0, atol=1e-12)


def test_signs_depend_on_the_seed_only():
    before = torch.random.get_rng_state()
    assert torch.equal(Rotation(64, 1).signs, Rotation(64, 1).signs)
    assert not torch.equal(Rotation(64, 1).signs, Rotation(64, 2).signs)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_size_without_a_matrix_says_so():
    with pytest.raises(ValueError, match="no Hadamard matrix of order 92 is known here; wanted"):
        Rotation(92)


def test_a_turned_input_keeps_its_dtype():
    linear, x = nn.Linear(8, 8, bias=False).bfloat16(), torch.arange(8.0).bfloat16()

    def turn(x):
        return 2 * x.float()

    assert turn_of(linear) is None
    turn_input_(linear, turn, torch.eye(8).bfloat16())
    assert turn_of(linear) is turn
    assert linear(x).dtype == torch.bfloat16 and torch.equal(linear(x), 2 * x)
