"""The check of the integer path finds layers that compute something else."""

import pytest
import torch
from torch import nn

from ptq4arvg.nn import Cursor, PackedLinear
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
    def __init__(self, *layers):
        super().__init__()
        self.cursor = Cursor()
        self.transformer = nn.Sequential(*(make(self.cursor) for make in layers))

    def replay(self, ids, labels):
        self.cursor.set(0, 5)
        x = torch.randn(len(ids), 5, 8, generator=torch.Generator().manual_seed(0))
        return self.transformer(x)


ROWS = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)


def test_right_layers_pass():
    checks = check_integer_path(Model(linear, lambda c: nn.ReLU(), linear), *ROWS)
    assert [check.name for check in checks] == ["0", "2"]
    assert all(check.passed for check in checks)
    assert all(check.kernel.startswith("gemm.w6") for check in checks)


def test_a_wrong_layer_is_found():
    model = Model(linear, linear)
    wrong = model.transformer[1]
    wrong.register_forward_hook(lambda module, args, output: output * 1.001)
    checks = check_integer_path(model, *ROWS)
    assert [check.passed for check in checks] == [True, False]


def test_a_float_model_is_an_error():
    with pytest.raises(ValueError, match="no integer linears"):
        check_integer_path(Model(lambda c: nn.ReLU()), *ROWS)
