"""Norms with modulation, folds into them, gated products and residuals: by their definitions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from ptq4arvg.models.layers import (
    Activation,
    GatedFeedForward,
    ModulatedNorm,
    absorb_constant_,
    add_gated,
    divide_rows_,
    fold_modulation_,
)
from ptq4arvg.nn import PackedLinear

C = 6


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scales(*shape, seed=0):
    return normal(*shape, seed=seed).exp()


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_norm_and_what_is_folded_into_it(rms, affine):
    norm, x = ModulatedNorm(C, 1e-3, affine, rms).double().requires_grad_(False), normal(2, 3, C)
    scale, shift = normal(2, 1, C, seed=1), normal(2, 1, C, seed=2)
    centred = x if rms else x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    if affine:
        norm.weight.copy_(scales(C, seed=3))
        norm.bias = nn.Parameter(normal(C, seed=4))
        y = y * norm.weight + norm.bias
    assert_close(norm(x), y)
    assert_close(norm(x, scale, shift), y * (1 + scale) + shift)
    norm.constant, norm.post_scale, norm.post_shift = (normal(C, seed=s) for s in (5, 6, 7))
    wanted = (y * (norm.constant + scale) + shift) * norm.post_scale + norm.post_shift
    assert_close(norm(x, scale, shift), wanted)
    norm.post_scale = None
    assert_close(norm(x), y + norm.post_shift)


@pytest.mark.parametrize("positions", [None, 1, 3])
def test_a_fused_norm_takes_modulations_of_an_image_and_not_of_positions(positions):
    norm, x, calls = ModulatedNorm(C, 1e-6), normal(2, 3, C), []
    norm.quantizer = lambda *args: calls.append(args) or "codes"
    given = () if positions is None else (normal(2, positions, C), normal(2, positions, C, seed=1))
    y = norm(x, *given)
    if positions == 3:
        assert not calls and torch.equal(y, norm.compute(x, *given))
    else:
        assert y == "codes" and calls == [(norm, x, *(given or (None, None)))]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_fold_into_a_norm_is_computed_in_double_and_writes_to_no_tensor(bias, shifted):
    norm = ModulatedNorm(C, 1e-6, affine=True, rms=True).bfloat16().requires_grad_(False)
    norm.weight.copy_(normal(C))
    if bias:
        norm.bias = nn.Parameter(normal(C, seed=1).bfloat16())
    old = norm.weight, norm.bias
    kept = [None if t is None else t.clone() for t in old]
    scale, shift = scales(C, seed=2), normal(C, seed=3) * shifted
    norm.fold_(scale, shift)
    assert torch.equal(norm.weight, (kept[0].double() / scale).bfloat16())
    if bias or shifted:
        wanted = (kept[1].double() if bias else 0) / scale - shift
        assert torch.equal(norm.bias, wanted.bfloat16())
    else:
        assert norm.bias is None
    assert torch.equal(old[0], kept[0]) and (not bias or torch.equal(old[1], kept[1]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [None, 0.0, 1.0])
def test_rows_divided_and_moved(bias, shift):
    linear = nn.Linear(5, 8, bias).bfloat16().requires_grad_(False)
    old = linear.weight, linear.bias
    weight, b = linear.weight.clone(), linear.bias.clone() if bias else torch.zeros(8)
    scale, rows = scales(3, seed=2), slice(2, 5)
    moved = None if shift is None else shift * normal(3, seed=3)
    divide_rows_(linear, rows, scale, moved)
    assert torch.equal(linear.weight[rows], (weight[rows].double() / scale[:, None]).bfloat16())
    if bias or shift:
        wanted = b[rows].double() / scale - (0 if moved is None else moved)
        assert torch.equal(linear.bias[rows], wanted.bfloat16())
    else:
        assert linear.bias is None
    for others in (slice(0, 2), slice(5, 8)):
        assert torch.equal(linear.weight[others], weight[others])
        assert linear.bias is None or torch.equal(linear.bias[others], b[others].bfloat16())
    assert torch.equal(old[0], weight) and (not bias or torch.equal(old[1], b))


def test_folds_into_a_modulation_add_up_and_the_constant_goes_into_its_bias():
    norm, linear = ModulatedNorm(C, 1e-6).double(), nn.Linear(4, 3 * C).double()
    linear.requires_grad_(False)
    of_scale, of_shift = slice(C, 2 * C), slice(2 * C, 3 * C)
    x, condition = normal(2, 3, C), normal(2, 4, seed=1)

    def output():
        modulation = linear(condition)[:, None]
        return norm(x, modulation[..., of_scale], modulation[..., of_shift])

    wanted, gate = output(), linear.weight[:C].clone()
    absorb_constant_(norm, linear, of_scale)  # none yet
    for seed in (2, 3):
        scale, shift = scales(C, seed=seed), normal(C, seed=seed + 9)
        fold_modulation_(norm, linear, of_scale, of_shift, scale, shift)
        wanted = wanted / scale - shift
    assert_close(output(), wanted)
    bias = linear.bias
    kept = bias.clone()
    absorb_constant_(norm, linear, of_scale)
    assert norm.constant is None and torch.equal(bias, kept)
    assert_close(output(), wanted)
    assert torch.equal(linear.weight[:C], gate)


@pytest.mark.parametrize(
    ("name", "function"),
    [("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")), ("silu", F.silu)],
)
def test_a_fused_activation_is_the_identity(name, function):
    act, x = Activation(name), normal(40)
    assert torch.equal(act(x), function(x))
    act.fused = True
    assert act(x) is x


def test_a_gated_product_and_its_published_names():
    names = ("gate", "value", "down")
    made = GatedFeedForward(4, 3, names).double().requires_grad_(False)
    weights = dict(
        zip(names, (normal(3, 4), normal(3, 4, seed=1), normal(4, 3, seed=2)), strict=True)
    )
    made.load_state_dict({f"{name}.weight": value for name, value in weights.items()})
    x = normal(2, 5, 4, seed=3)
    gate = x @ weights["gate"].T
    wanted = (gate * gate.sigmoid() * (x @ weights["value"].T)) @ weights["down"].T
    assert_close(made(x), wanted)
    made.quantizer = lambda both, name: both[..., :3] * 0 if name == "silu" else None
    assert not made(x).any()


class _Doubles(PackedLinear):
    """Twice its input, with an epilogue that takes a residual and a gate per image."""

    def __init__(self, sink):
        nn.Module.__init__(self)
        self.sink, self.fused = sink, None

    def forward(self, x, residual=None, gate=None):
        self.fused = residual is not None
        y = 2 * x if gate is None else 2 * x * gate[:, None]
        return y if residual is None else residual + y


@pytest.mark.parametrize("sink", [(), (0,)])
@pytest.mark.parametrize("positions", [None, 1, 3])
def test_an_epilogue_takes_one_gate_per_image_and_no_sinks(sink, positions):
    linear, x, residual = _Doubles(sink), normal(2, 3, C), normal(2, 3, C, seed=1)
    gate = None if positions is None else normal(2, positions, C, seed=2)
    wanted = residual + 2 * x * (1 if gate is None else gate)
    assert_close(add_gated(linear, x, residual, gate), wanted)
    assert linear.fused == (not sink and positions != 3)
    assert_close(add_gated(nn.Identity(), 2 * x, residual, gate), wanted)
