"""The reference against first principles in float64 and int64."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq4arvg import reference as ref
from ptq4arvg.reference import exponential


def _grid(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, 200_001, dtype=torch.float64).float()


def test_fused_rounds_once():
    """1 + 2^-23 + 2^-24 less 2^-70: in float64 that is halfway between two floats, and the upper
    one is even."""
    a, b = (torch.tensor(2.0**-12 * (1 + sign * 2**-23)) for sign in (1, -1))
    c = torch.tensor(1 + 2.0**-23)
    assert ref.fused(a, b, c).item() == 1 + 2.0**-23
    assert ref.fused(-a, b, -c).item() == -1 - 2.0**-23
    assert (a.double() * b.double() + c.double()).float().item() == 1 + 2.0**-22


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_fused_is_the_nearest_float(seed):
    g = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, 50, generator=g) * torch.exp(torch.randn(3, 50, generator=g) * 5)
    found = ref.fused(a, b, c)
    around = [torch.nextafter(found, torch.tensor(way)) for way in (-torch.inf, torch.inf)]
    for x, y, z, *floats in zip(*(t.tolist() for t in (a, b, c, found, *around)), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        mine, *others = (abs(exact - Fraction(value)) for value in floats)
        assert mine <= min(others)


def test_fused_takes_infinity_and_nan():
    inf, nan = float("inf"), float("nan")
    a, b = torch.tensor([inf, inf, 1.0, 1e30]), torch.tensor([1.0, -1.0, nan, 1e30])
    found = ref.fused(a, b, torch.tensor(1.0))
    assert torch.equal(found.nan_to_num(0.0, 1.0, -1.0), torch.tensor([1.0, -1.0, 0.0, 1.0]))


def test_exponential_error():
    x = _grid(-87.0, 87.0)
    exact = torch.exp(x.double())
    assert float(((exponential(x).double() - exact) / exact).abs().max()) < 2.5e-7


def test_exponential_clamps_and_takes_nan():
    x = torch.tensor([-1000.0, float("-inf"), 1000.0, float("inf"), float("nan")])
    low, high = exponential(torch.tensor([-87.0, 87.0]))
    assert torch.equal(exponential(x), torch.stack([low, low, high, high, low]))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("bound", [1.0, 8.0, 40.0])
def test_activation_error(name, bound):
    x = _grid(-bound, bound)
    wide = x.double()
    exact = {
        "silu": lambda: torch.nn.functional.silu(wide),
        "gelu": lambda: torch.nn.functional.gelu(wide),
        "gelu_tanh": lambda: torch.nn.functional.gelu(wide, approximate="tanh"),
    }[name]()
    error = (ref.activate(name, x).double() - exact).abs() / x.double().abs().clamp(min=1)
    assert float(error.max()) < 4e-7


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activation_far_out(name):
    x = torch.tensor([1e4, 1e30, -1e4, -1e30, 0.0])
    y = ref.activate(name, x)
    assert torch.equal(y[:2], x[:2])
    assert float(y[2:].abs().max()) < 1e-7
    assert torch.isnan(ref.activate(name, torch.tensor([float("nan")]))).all()


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activation_has_no_subnormal_results(name):
    y = ref.activate(name, _grid(-1000.0, 1000.0))
    assert float(y[y != 0].abs().min()) > torch.finfo(torch.float32).tiny


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 6, 4]))
@settings(max_examples=30, deadline=None)
def test_quantize_is_the_affine_grid(seed, bits):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 7, generator=g) * 3
    inv_scale = torch.rand(4, generator=g) * 20 + 0.1
    zero = torch.randint(0, 2**bits, (4,), generator=g).to(torch.int32)
    stored = ref.quantize(x, inv_scale, zero, bits).double()
    t = torch.arange(12) % 4
    offset = 128 if bits == 8 else zero[t, None]
    level = stored + offset
    # The product is a float32 number; rounding and clamping of it are exact in float64.
    exact = torch.round((x * inv_scale[t, None]).double()) + zero[t, None]
    assert torch.equal(level, exact.clamp(0, 2**bits - 1))


@pytest.mark.parametrize("block", [2, 4, 8, 16, 32, 64, 128])
def test_rotate_is_orthogonal_up_to_its_length(block):
    matrix = ref.rotate(torch.eye(2 * block, dtype=torch.float64), block)
    assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 1.0}
    one = torch.eye(2 * block, dtype=torch.float64)
    assert torch.equal(matrix @ matrix.T, block * one)
    assert not matrix[:block, block:].any()
    sylvester = matrix[:block, :block] * matrix[:block, :1]  # rows without their signs
    k = torch.arange(block)
    bits = k[:, None] & k
    parity = sum(bits >> i & 1 for i in range(7)) % 2
    assert torch.equal(sylvester, 1.0 - 2.0 * parity.double())


@pytest.mark.parametrize("block", [4, 16, 64])
def test_rotate_spreads_what_columns_have_in_common(block):
    y = ref.rotate(torch.ones(3, 128), block)
    assert torch.equal(y.abs(), torch.full_like(y, block**0.5))


def test_rotate_by_nothing():
    x = torch.randn(2, 7)
    assert ref.rotate(x, 0) is x


def test_quantize_rounds_half_to_even():
    x = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]])
    zero = torch.tensor([10], dtype=torch.int32)
    codes = ref.quantize(x, torch.ones(1), zero, 6)
    assert codes.tolist() == [[-2, -2, 0, 0, 2, 2]]


def test_quantize_of_nan_and_infinity():
    x = torch.tensor([[float("nan"), float("-inf"), float("inf"), 3e38]])
    zero = torch.tensor([5], dtype=torch.int32)
    assert ref.quantize(x, torch.ones(1), zero, 8).tolist() == [[-128, -128, 127, 127]]
    assert ref.quantize(x, torch.ones(1), zero, 4).tolist() == [[-5, -5, 10, 10]]


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_gemm_is_the_dequantized_product(make, bits):
    maker = make(1)
    weight = maker.weight(11, 37, bits)
    a, tokens = maker.codes(6, 37), 3
    a_scale, a_zero = maker.uniform(0.01, 0.1, 5), maker.integers(-128, 127, 5)
    bias, gate = maker.normal(11), maker.normal(2, 11)
    residual = maker.normal(6, 11)
    y = ref.gemm(
        a, weight.dense, a_scale, weight.scale, a_zero, weight.w_sum, weight.zero, bias, bits=bits,
        position=torch.tensor([2], dtype=torch.int32), tokens=tokens, activation="silu",
        residual=residual, gate=gate,
    )  # fmt: skip
    t = 2 + torch.arange(6) % tokens
    x_hat = a_scale[t, None].double() * (a.double() - a_zero[t, None])
    w_hat = weight.scale[:, None].double() * weight.codes.double()
    exact = torch.nn.functional.silu(x_hat @ w_hat.T + bias.double())
    exact = residual.double() + gate.double()[torch.arange(6) // tokens] * exact
    assert float((y.double() - exact).abs().max()) < 1e-5


def test_gemm_int32_is_exact(make):
    """Sums of up to 2^30 checked against int64, made visible by cancelling all but a few units."""
    maker = make(2)
    k, n = 65536, 3
    codes = maker.integers(-127, 127, n, k, dtype=torch.int8)
    codes[0], codes[1] = 127, -127
    noise = maker.integers(0, 1, 2, k, dtype=torch.int8)
    a = (noise - 128).to(torch.int8)
    a_zero = torch.tensor([-128], dtype=torch.int32)
    one = torch.ones(1)
    y = ref.gemm(a, ref.pack_weight(codes, None, 8), one, torch.ones(n), a_zero)
    assert torch.equal(y.long(), noise.long() @ codes.long().T)


@pytest.mark.parametrize("rms", [False, True])
def test_norm_quantize_is_the_norm(make, rms):
    maker = make(3)
    x = maker.normal(8, 40) * 5 + 2
    weight, bias, constant = (maker.normal(40) for _ in range(3))
    post_scale, post_shift = maker.normal(40), maker.normal(40)
    scale, shift = maker.normal(2, 40), maker.normal(2, 40)
    inv_scale, zero = torch.full((4,), 30.0), torch.full((4,), 128, dtype=torch.int32)
    codes = ref.norm_quantize(
        x, inv_scale, zero, 8, weight=weight, bias=bias, scale=scale, shift=shift,
        constant=constant, post_scale=post_scale, post_shift=post_shift, rms=rms,
    )  # fmt: skip
    wide = x.double()
    if rms:
        y = wide / torch.sqrt(wide.square().mean(1, keepdim=True) + 1e-6)
    else:
        y = torch.nn.functional.layer_norm(wide, (40,), eps=1e-6)
    image = torch.arange(8) // 4
    y = (y * weight + bias) * (constant + scale[image]) + shift[image]
    y = (y * post_scale + post_shift) * 30
    # Float32 steps may move a value across a rounding border, never further than one level.
    exact = torch.round(y).clamp(-128, 127)
    far = (codes.double() - exact).abs()
    assert float(far.max()) <= 1
    assert float(far.mean()) < 0.01


def test_gemm_float_is_the_product(make):
    maker = make(4)
    weight = maker.weight(9, 50, 6)
    x, bias = maker.normal(3, 50), maker.normal(9)
    y = ref.gemm_float(x, weight.dense, weight.scale, weight.zero, bias, bits=6, activation="gelu")
    w_hat = weight.scale[:, None].double() * weight.codes.double()
    exact = torch.nn.functional.gelu(x.double() @ w_hat.T + bias.double())
    assert float((y.double() - exact).abs().max()) < 2e-6


def test_pack_weight_refuses_levels_out_of_range():
    with pytest.raises(ValueError, match=r"\[-127, 127\]"):
        ref.pack_weight(torch.full((1, 4), -128, dtype=torch.int8), None, 8)
    with pytest.raises(ValueError, match="levels of 4 bits"):
        ref.pack_weight(torch.full((1, 4), 8, dtype=torch.int8), None, 4)


def test_rotations_that_fit():
    """None, or powers of two that divide the columns, up to the widest block."""
    fits = ref.rotation_fits
    assert [block for block in range(-4, 300) if fits(block, 256)] == [0, 2, 4, 8, 16, 32, 64, 128]
    assert [block for block in range(300) if fits(block, 96, 16)] == [0, 2, 4, 8, 16]
    assert [block for block in range(300) if fits(block, 24)] == [0, 2, 4, 8]
    assert [block for block in range(300) if fits(block, 7)] == [0]
