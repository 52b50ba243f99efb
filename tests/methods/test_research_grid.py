"""The research code's quantizers against records of that code (tests/golden/quant_internals)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptq4arvg.methods.research_grid import (
    Average,
    gps_scale,
    percentile_grid,
    round_to,
    smooth_factors,
    zero_centring_shift,
)

RECORDS = load_file(
    Path(__file__).parents[1] / "golden/quant_internals/quant_internals.safetensors"
)


def record(name, *keys):
    return [RECORDS[f"{name}/{key}"] for key in keys]


def close(actual, expected, rtol=1e-5):
    torch.testing.assert_close(actual.flatten(), expected.float().flatten(), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("data", ["x", "xpos", "xneg", "xheavy", "xsmall"])
def test_per_tensor_grid(bits, data):
    x, delta, zero, output = record(
        f"var/b{bits}/per_tensor/{data}", "input", "delta", "zero_point", "output"
    )
    mine = percentile_grid(x.reshape(1, -1), bits)
    close(mine[0], delta)
    close(mine[1], zero)
    close(round_to(x, *mine, bits), output)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_per_row_and_per_channel_grids(bits):
    w, delta, zero = record(f"var/b{bits}/per_row_weight", "input", "delta", "zero_point")
    mine = percentile_grid(w, bits)
    close(mine[0], delta)
    close(mine[1], zero)
    x, delta, zero = record(f"var/b{bits}/per_channel_act", "input", "delta", "zero_point")
    mine = percentile_grid(x.flatten(0, 1).T.contiguous(), bits)
    close(mine[0], delta)
    close(mine[1], zero)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_zero_centring_shift(bits):
    delta, zero, shift = record(f"var/b{bits}/sym_shift", "delta", "zero_point", "shift")
    close(zero_centring_shift(delta, zero, bits), shift)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_gps_factors_and_their_average(bits):
    def factors(name, x):
        weight, d, z, wd, wz = record(
            name, "weight", "act_delta", "act_zero_point", "w_delta", "w_zero_point"
        )
        act, rows = (d.flatten(), z.flatten()), (wd.flatten(), wz.flatten())
        return gps_scale(x.flatten(0, 1), weight, act, rows, bits)

    x, scales = record(f"var/b{bits}/gps", "input", "scales")
    close(factors(f"var/b{bits}/gps", x), scales, 1e-4)
    name = f"var/b{bits}/gps_ema"
    a, b, scales_a, scales_ab = record(name, "input_a", "input_b", "scales_a", "scales_ab")
    average = Average()
    close(average(factors(name, a)), scales_a, 1e-4)
    close(average(factors(name, b)), scales_ab, 1e-4)


def test_a_channel_without_rounding_errors_is_not_scaled():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20, 6, generator=g), torch.randn(5, 6, generator=g)
    x[:, 2] = 0
    grids = (percentile_grid(t, 6) for t in (x.T.contiguous(), weight))
    scale = gps_scale(x, weight, *grids, 6)
    assert scale[2] == 1 and scale.isfinite().all() and (scale > 0).all()


def test_smoothing_factors_and_their_average():
    x, weight, scales = record("var/smoothquant", "input", "weight", "scales")
    close(smooth_factors(x.flatten(0, 1), weight), scales)
    a, b, weight, scales_a, scales_ab = record(
        "var/smoothquant_ema", "input_a", "input_b", "weight", "scales_a", "scales_ab"
    )
    average = Average()
    close(average(smooth_factors(a.flatten(0, 1), weight)), scales_a)
    close(average(smooth_factors(b.flatten(0, 1), weight)), scales_ab)


def test_constant_row_gets_a_finite_grid():
    x = torch.tensor([[2.5] * 8, [0.0] * 8])
    delta, zero = percentile_grid(x, 6)
    assert torch.isfinite(delta).all() and (delta > 0).all()
    torch.testing.assert_close(round_to(x, delta[:, None], zero[:, None], 6), x)
