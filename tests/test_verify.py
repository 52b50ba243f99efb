"""The check of the integer path finds layers that compute something else."""

import pytest
import torch
from torch import nn

from ptq4arvg import verify
from ptq4arvg.nn import Cursor, IntAttention, PackedLinear
from ptq4arvg.numerics import LinearQuantization, affine_grid, quantize_weight
from ptq4arvg.verify import check_integer_path


def linear(cursor, w_bits=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes, w_scale, w_zero = quantize_weight(torch.randn(8, 8, generator=g), w_bits)
    scale, zero = affine_grid(torch.tensor([-3.0]), torch.tensor([3.0]), 6)
    group = torch.zeros(5, dtype=torch.int64)
    q = LinearQuantization(codes, w_scale, w_zero, None, scale, zero, group, w_bits, 6)
    return PackedLinear(q, cursor)


class Model(nn.Module):
    def __init__(self, *layers, visits=1):
        super().__init__()
        self.often = visits
        self.cursor = Cursor()
        self.transformer = nn.Sequential(*(make(self.cursor) for make in layers))

    def visits(self, name):
        return self.often

    def replay(self, ids, labels):
        self.cursor.set(0, 5)
        x = torch.randn(len(ids), 5, 8, generator=torch.Generator().manual_seed(0))
        for _ in range(self.often):
            x = self.transformer(x)
        return x


ROWS = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)


def test_right_layers_pass():
    checks = check_integer_path(Model(linear, lambda c: nn.ReLU(), linear), *ROWS)
    assert [check.name for check in checks] == ["0", "2"]
    assert all(check.passed for check in checks)
    assert all(check.kernel.startswith("gemm.w6") for check in checks)


@pytest.mark.parametrize(("room", "unpacked"), [(2**20, [1, 1]), (8 * 8 * 8, [1, 3]), (0, [3, 3])])
def test_layers_that_run_often_are_unpacked_once_as_far_as_there_is_room(
    monkeypatch, room, unpacked
):
    monkeypatch.setattr(verify, "KEPT", room)
    model = Model(linear, linear, visits=3)
    counts = [0, 0]
    for i, module in enumerate(model.transformer):
        plain = module.canonical

        def canonical(i=i, plain=plain):
            counts[i] += 1
            return plain()

        monkeypatch.setattr(module, "canonical", canonical)
    assert all(check.passed for check in check_integer_path(model, *ROWS))
    assert counts == unpacked


def test_a_wrong_layer_is_found():
    model = Model(linear, linear)
    wrong = model.transformer[1]
    wrong.register_forward_hook(lambda module, args, output: output * 1.001)
    checks = check_integer_path(model, *ROWS)
    assert [check.passed for check in checks] == [True, False]


class Attention(nn.Module):
    """One head of 8 channels, of which q, k and v are the same."""

    def __init__(self):
        super().__init__()
        scale = torch.full((1, 8), 0.03)
        self.core = IntAttention(scale, scale, scale, -scale)

    def forward(self, x):
        x = x[:, None]  # [B, 1, t, d]
        return self.core(x, x, x)[:, 0]


@pytest.mark.parametrize("by", [1.0, 1 + 2**-22])
def test_attention_in_integers_has_to_be_equal(by):
    model = Model(linear, lambda _cursor: Attention())
    model.transformer[1].core.register_forward_hook(lambda module, args, output: output * by)
    checks = check_integer_path(model, *ROWS)
    assert [check.name for check in checks] == ["0", "1.core"]
    assert [check.passed for check in checks] == [True, by == 1.0]
    assert checks[1].kernel.startswith("attention.")


def test_a_float_model_is_an_error():
    with pytest.raises(ValueError, match="no integer linears"):
        check_integer_path(Model(lambda c: nn.ReLU()), *ROWS)
