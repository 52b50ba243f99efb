"""Packed linears compute in integers what their simulation computes in floating point."""

import pytest
import torch

from ptq4arvg import ops
from ptq4arvg.models.layers import ModulatedNorm
from ptq4arvg.nn import Cursor, PackedLinear, QuantLinear
from ptq4arvg.numerics import LinearQuantization, affine_grid, quantize_weight


def quantization(w_bits, a_bits, n=40, k=52, tokens=9, sink=(), seed=0, rotation=0):
    g = torch.Generator().manual_seed(seed)
    codes, w_scale, w_zero = quantize_weight(torch.randn(n, k, generator=g), w_bits)
    groups = min(4, tokens)
    reach = 1 + torch.rand(groups, generator=g)
    scale, zero = affine_grid(-reach, 2 * reach, a_bits)
    position_group = torch.arange(tokens) % groups
    bias = torch.randn(n, generator=g)
    return LinearQuantization(
        codes, w_scale, w_zero, bias, scale, zero, position_group, w_bits, a_bits, sink, rotation
    )


@pytest.mark.parametrize(("w_bits", "a_bits"), [(8, 8), (6, 6), (4, 8)])
@pytest.mark.parametrize(("begin", "tokens"), [(0, 9), (4, 5), (8, 1)])
def test_integer_path_equals_simulation(w_bits, a_bits, begin, tokens):
    cursor = Cursor()
    q = quantization(w_bits, a_bits)
    packed, simulated = PackedLinear(q, cursor), QuantLinear(q, cursor)
    cursor.set(begin, tokens)
    x = 2 * torch.randn(3, tokens, 52, generator=torch.Generator().manual_seed(1))
    y = packed(x)
    exact = QuantLinear(q, cursor).double()(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y, simulated(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(packed.quantize(x), simulated.quantize(x))
    assert torch.equal(packed(packed.quantize(x)), y)


@pytest.mark.parametrize(("w_bits", "a_bits"), [(8, 8), (6, 6), (4, 8)])
def test_canonical_form_survives_packing(w_bits, a_bits):
    q = quantization(w_bits, a_bits)
    back = PackedLinear(q, Cursor()).canonical()
    assert torch.equal(back.codes, q.codes)
    assert (back.w_zero is None) == (q.w_zero is None)
    assert torch.equal(back.input_scale, q.input_scale)


@pytest.mark.parametrize(("sink", "begin", "hit"), [
    ((0, 2), 0, [0, 2]), ((2, 0), 2, [0]), ((0, 3, 7), 3, [0, 4]), ((1, 8), 2, []),
    ((0, 6), 1, []),
])  # fmt: skip
def test_sink_positions_are_computed_from_float_activations(sink, begin, hit):
    cursor = Cursor()
    q = quantization(6, 6, sink=sink)
    packed = PackedLinear(q, cursor)
    plain = PackedLinear(quantization(6, 6), cursor)
    x = torch.randn(2, 5, 52, generator=torch.Generator().manual_seed(2))
    cursor.set(begin, 5)
    y, expected = packed(x), plain(x)
    exact = torch.nn.functional.linear(x.double(), q.weight(torch.float64), q.bias.double())
    expected[:, hit] = exact[:, hit].float()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(QuantLinear(q, cursor)(x), y, rtol=1e-4, atol=1e-4)
    cursor.set(4, 2)
    assert torch.equal(packed(x[:, :2]), plain(x[:, :2]))  # no sink at positions 4 and 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotated_inputs(dtype):
    cursor = Cursor()
    q = quantization(6, 6, k=48, sink=(1,), rotation=16)
    packed, plain = PackedLinear(q, cursor), PackedLinear(quantization(6, 6, k=48), cursor)
    cursor.set(0, 5)
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(4)).to(dtype)
    turned = ops.reference.rotate(x.float(), 16)
    assert torch.equal(packed.rotated(x), turned)
    assert torch.equal(packed.quantize(x), plain.quantize(turned))
    y = packed(x)
    assert y.dtype == dtype and torch.equal(y[:, 2:], plain(turned)[:, 2:].to(dtype))
    exact = torch.nn.functional.linear(turned.double(), q.weight(torch.float64), q.bias.double())
    bound = max(1e-5, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(y[:, 1].double(), exact[:, 1], rtol=bound, atol=10 * bound)
    branch = torch.randn(40, 3), torch.randn(3, 48)
    simulated = QuantLinear(q, cursor, branch)(x.double())
    extra = turned.double() @ (branch[0].double() @ branch[1].double()).T
    torch.testing.assert_close(simulated[:, 1], exact[:, 1] + extra[:, 1], rtol=1e-5, atol=1e-4)
    assert packed.canonical().rotation == 16 and "rotation=16" in repr(packed)


@pytest.mark.parametrize("rotation", [0, 8])
def test_codes_for_the_next_linear_are_those_it_makes_itself(rotation):
    cursor = Cursor()
    cursor.set(0, 5)
    first = PackedLinear(quantization(8, 8), cursor)
    following = PackedLinear(quantization(4, 6, k=40, rotation=rotation), cursor)
    x = torch.randn(2, 5, 52, generator=torch.Generator().manual_seed(5))
    first.fuse("silu", None)
    codes = following.quantize(first(x))
    first.fuse("silu", following)
    assert torch.equal(first(x), codes)
    both = torch.randn(2, 5, 80, generator=torch.Generator().manual_seed(6))
    gated = ops.reference.activate("silu", both[..., :40]) * both[..., 40:]
    assert torch.equal(following.quantize_gated(both, "silu"), following.quantize(gated))
    norm = ModulatedNorm(40, eps=2.0)
    codes, wanted = following.quantize_norm(norm, gated), following.quantize(norm(gated))
    assert (codes - wanted).abs().max() <= 1 and (codes != wanted).double().mean() < 0.02


def test_sinks_have_the_activation_and_sums_the_dtype_of_what_they_are_added_to():
    cursor = Cursor()
    cursor.set(0, 5)
    packed = PackedLinear(quantization(6, 6, sink=(0, 2)), cursor)
    x = torch.randn(2, 5, 52, generator=torch.Generator().manual_seed(2))
    plain = packed(x)
    packed.fuse("silu", None)
    torch.testing.assert_close(packed(x), torch.nn.functional.silu(plain))
    packed = PackedLinear(quantization(6, 6), cursor, torch.bfloat16)
    codes = packed.quantize(x)
    assert packed(codes).dtype == torch.bfloat16
    residual = torch.ones(2, 5, 40)
    y = packed(codes, residual)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, residual + PackedLinear(quantization(6, 6), cursor)(x))


def test_input_without_positions_ignores_the_cursor():
    cursor = Cursor()
    packed = PackedLinear(quantization(8, 8, tokens=1), cursor)
    x = torch.randn(4, 52, generator=torch.Generator().manual_seed(3))
    cursor.set(7, 3)
    first = packed(x)
    cursor.set(0, 1)
    assert torch.equal(first, packed(x))


def test_position_outside_the_table_is_an_error():
    cursor = Cursor()
    packed = PackedLinear(quantization(8, 8), cursor)
    cursor.set(6, 4)
    with pytest.raises((RuntimeError, ValueError), match="9"):
        packed(torch.zeros(1, 4, 52))


def test_the_kernel_that_ran_can_be_asked_for():
    cursor = Cursor()
    cursor.set(0, 9)
    PackedLinear(quantization(6, 6), cursor)(torch.zeros(1, 9, 52))
    assert "gemm" in ops.last_kernel()


def test_weight_memory_follows_the_bits():
    for w_bits in (8, 6, 4):
        q = quantization(w_bits, 8, n=256, k=256)
        assert PackedLinear(q, Cursor()).weight_bytes() <= 1.05 * 256 * 256 * w_bits / 8 + 4 * 256


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_a_move_to_another_kind_of_device_packs_anew(monkeypatch, bits):
    q = quantization(bits, 8)
    packed = PackedLinear(q, Cursor())
    calls = []
    pack = ops.pack_weight
    monkeypatch.setattr(ops, "pack_weight", lambda *args: calls.append(args) or pack(*args))
    packed.to("cpu")
    assert not calls
    packed.to("meta")
    assert len(calls) == 1
    codes, zero, w_bits = calls[0]
    assert codes.device.type == packed.packed.device.type == "meta"
    assert codes.shape == q.codes.shape and w_bits == bits
    assert {buffer.device.type for buffer in packed.buffers()} == {"meta"}
    assert zero is None or zero.device.type == "meta"


def test_tables_follow_a_state():
    """Assigned or copied: what the operators read is made of it anew."""
    cursor = Cursor()
    cursor.set(0, 9)
    x = torch.randn(2, 9, 52, generator=torch.Generator().manual_seed(3))
    source = PackedLinear(quantization(8, 8, seed=1), cursor)
    for assign in (False, True):
        linear = PackedLinear(quantization(8, 8, seed=2), cursor)
        assert not torch.equal(linear(x), source(x))
        linear.load_state_dict(source.state_dict(), assign=assign)
        assert torch.equal(linear(x), source(x))
