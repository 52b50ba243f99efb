"""Packed convolutions compute in integers what their simulation computes in floating point."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptq4arvg import ops
from ptq4arvg.nn import PackedConv2d
from ptq4arvg.numerics import LinearQuantization, affine_grid, quantize_weight
from ptq4arvg.reference_map import conv_columns

C, N = 12, 10
SCHEMES = [(8, 8), (6, 6), (4, 8), (8, 4)]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def quantization(w_bits=8, a_bits=8, kernel=3, bias=True, positions=1, rotation=0):
    g = generator(0)
    weight = torch.randn(N, C, kernel, kernel, generator=g)
    codes, w_scale, w_zero = quantize_weight(conv_columns(weight), w_bits)
    scale, zero = affine_grid(torch.tensor([-1.5]), torch.tensor([2.5]), a_bits)
    shift = torch.randn(N, generator=g) if bias else None
    group = torch.zeros(positions, dtype=torch.int64)
    return LinearQuantization(
        codes, w_scale, w_zero, shift, scale, zero, group, w_bits, a_bits, (), rotation
    )


def norm_of(seed=2, eps=1e-3):
    norm = nn.GroupNorm(4, C, eps=eps)
    for parameter in norm.parameters():
        parameter.data = torch.randn(C, generator=generator(seed + len(parameter.shape)))
    return norm


def maps(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def simulation(q, x, norm=None, residual=None, repeat=1):
    """In float64, from the definition of the grid; no input may be at the edge between codes."""
    x = x.double()
    if norm is not None:
        weight, bias = norm.weight.double(), norm.bias.double()
        x = F.silu(F.group_norm(x, norm.num_groups, weight, bias, norm.eps))
    x = x.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
    level = x / q.input_scale.double() + q.input_zero
    assert ((level % 1) - 0.5).abs().min() > 2e-5, "choose another seed"
    x = (level.round().clamp(0, 2**q.a_bits - 1) - q.input_zero) * q.input_scale.double()
    kernel = round((q.codes.shape[1] / C) ** 0.5)
    weight = q.weight(torch.float64).unflatten(1, (kernel, kernel, C)).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight, None if q.bias is None else q.bias.double(), padding=kernel // 2)
    return y if residual is None else y + residual.double()


def close(y, exact, dtype=torch.float32):
    """An output is rounded three times in float32, and once to its dtype."""
    bound = 1e-6 + torch.finfo(dtype).eps * (dtype != torch.float32)
    assert y.dtype == dtype and y.shape == exact.shape
    assert (y.double() - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("w_bits", "a_bits"), SCHEMES)
def test_integer_path_equals_simulation(w_bits, a_bits, kernel):
    q = quantization(w_bits, a_bits, kernel)
    conv, norm, x = PackedConv2d(q, C), norm_of(), maps(2, C, 5, 4)
    residual = maps(2, N, 5, 4, seed=3)
    assert conv.kernel_size == kernel
    close(conv(x), simulation(q, x))
    close(conv.upsampled(x), simulation(q, x, repeat=2))
    close(conv.normalized(x, norm), simulation(q, x, norm))
    close(conv.normalized(x, norm, residual), simulation(q, x, norm, residual))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    q = quantization()
    conv, norm, x = PackedConv2d(q, C, dtype), norm_of().to(dtype), maps(2, C, 5, 4, dtype=dtype)
    residual = maps(2, N, 5, 4, dtype=dtype, seed=11)
    for y, exact in (
        (conv.normalized(x, norm), simulation(q, x, norm)),
        (conv.normalized(x, norm, residual), simulation(q, x, norm, residual)),
    ):
        close(y, exact, dtype)
    x = maps(2, C, 5, 4, dtype=dtype, seed=11)
    close(conv.upsampled(x), simulation(q, x, repeat=2), dtype)


def test_a_norm_of_another_eps_or_without_weights_is_another():
    conv, x = PackedConv2d(quantization(), C), maps(1, C, 6, 6)
    plain = nn.GroupNorm(3, C, eps=0.5, affine=False)
    as_ones = nn.GroupNorm(3, C, eps=0.5)
    assert torch.equal(conv.normalized(x, plain), conv.normalized(x, as_ones))
    for groups, eps in ((3, 1e-6), (4, 0.5)):
        other = nn.GroupNorm(groups, C, eps=eps)
        assert not torch.equal(conv.normalized(x, plain), conv.normalized(x, other))


def test_without_a_bias():
    q = quantization(bias=False)
    conv, x = PackedConv2d(q, C), maps(2, C, 5, 4)
    assert conv.bias is None
    close(conv(x), simulation(q, x))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1)])
def test_maps_smaller_than_the_kernel(size):
    q = quantization(kernel=5)
    conv, x = PackedConv2d(q, C), maps(3, C, *size)
    close(conv(x), simulation(q, x))
    close(conv.upsampled(x), simulation(q, x, repeat=2))


def test_layouts_of_maps_give_the_same():
    conv, norm = PackedConv2d(quantization(), C), norm_of()
    x, residual = maps(2, C, 5, 4), maps(2, N, 5, 4, seed=5)
    y = conv.normalized(x, norm, residual)
    last = [t.to(memory_format=torch.channels_last) for t in (x, residual)]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv.normalized(last[0], norm, last[1]), y)
    wide = maps(2, C, 9, 8)[:, :, ::2, ::2]
    assert torch.equal(conv(wide), conv(wide.contiguous()))
    assert conv(x[:0]).shape == (0, N, 5, 4)


def test_maps_do_not_depend_on_each_other_or_on_threads():
    conv, norm = PackedConv2d(quantization(), C), norm_of()
    x, residual = maps(3, C, 60, 50), maps(3, N, 60, 50, seed=5)
    y, threads = conv.normalized(x, norm, residual), torch.get_num_threads()
    parts = zip(x.split([1, 2]), residual.split([1, 2]), strict=True)
    assert torch.equal(torch.cat([conv.normalized(a, norm, b) for a, b in parts]), y)
    try:
        torch.set_num_threads(3)
        assert torch.equal(conv.normalized(x, norm, residual), y)
    finally:
        torch.set_num_threads(threads)


def test_the_operators_that_compute_can_be_others():
    class Recorded:
        def __init__(self):
            self.seen = []

        def __getattr__(self, name):
            self.seen.append(name)
            return getattr(ops, name)

    conv = PackedConv2d(quantization(), C)
    conv.operators = Recorded()
    conv(maps(1, C, 3, 3))
    assert conv.operators.seen == ["quantize_map", "conv2d"]
    del conv.operators
    assert conv.operators is ops


@pytest.mark.parametrize("channels", [C + 1, 27, 5 * C, 2 * 9 * C])
def test_channels_that_do_not_fit_are_refused(channels):
    message = (
        f"PackedConv2d: a weight of {9 * C} columns and {channels} channels; wanted the channels "
        "times the square of an odd number"
    )
    with pytest.raises(ValueError) as caught:
        PackedConv2d(quantization(), channels)
    assert str(caught.value) == message


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match=f"a weight of {4 * C} columns and {C} channels; wanted"):
        PackedConv2d(quantization(kernel=2), C)


@pytest.mark.parametrize("options", [{"positions": 2}, {"rotation": 4}])
def test_positions_and_rotations_are_refused(options):
    found = {"positions": 1, "rotation": 0} | options
    with pytest.raises(
        ValueError,
        match=rf"PackedConv2d: {found['positions']} positions, rotation {found['rotation']}; "
        "wanted 1 position and no rotation",
    ):
        PackedConv2d(quantization(**options), C)


@pytest.mark.parametrize(("w_bits", "a_bits"), SCHEMES)
def test_state_and_canonical_form(w_bits, a_bits):
    q = quantization(w_bits, a_bits)
    conv, x = PackedConv2d(q, C), maps(2, C, 5, 4)
    back = conv.canonical()
    for name in ("codes", "w_scale", "bias", "input_scale", "input_zero", "position_group"):
        assert torch.equal(getattr(back, name), getattr(q, name))
    assert (back.w_zero is None) == (w_bits == 8)
    assert (back.w_bits, back.a_bits) == (w_bits, a_bits)
    names = {"packed", "w_scale", "w_sum", "bias", "input_scale", "input_zero", "position_group"}
    assert set(conv.state_dict()) == names | ({"w_zero"} if w_bits != 8 else set())
    assert not list(conv.parameters())
    assert torch.equal(conv.w_sum, q.codes.sum(1, dtype=torch.int32))
    for again in (PackedConv2d(back, C), copy.deepcopy(conv)):
        assert torch.equal(again(x), conv(x))
    other = quantization(w_bits, a_bits)
    other.codes.zero_()
    empty = PackedConv2d(other, C)
    empty.load_state_dict(conv.state_dict())
    assert torch.equal(empty(x), conv(x))


def test_repr():
    assert repr(PackedConv2d(quantization(6, 8), C)) == (
        f"PackedConv2d(in_features={9 * C}, out_features={N}, w_bits=6, a_bits=8, groups=1)"
    )


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_a_move_to_another_kind_of_device_packs_anew(monkeypatch, bits):
    conv, calls, pack = PackedConv2d(quantization(bits), C), [], ops.pack_weight
    monkeypatch.setattr(ops, "pack_weight", lambda *args: calls.append(args) or pack(*args))
    conv.to("cpu")
    assert not calls
    conv.to("meta")
    assert [codes.shape for codes, _, _ in calls] == [(N, 9 * C)]
    y = conv(torch.zeros(2, C, 5, 4, device="meta"))
    assert y.shape == (2, N, 5, 4) and y.device.type == "meta"
