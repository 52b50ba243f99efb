"""Arguments that the operators on maps are compiled with."""

from __future__ import annotations

import torch

__all__ = ["map_calls"]


def map_calls(make) -> dict[str, list[tuple[tuple, dict]]]:
    """Arguments of both operators, plain, with all options, and of no images."""
    maker = make(0)
    n, c = 21, 10
    grid = maker.uniform(0.1, 1, 1), maker.integers(0, 15, 1)
    x, channels_first = maker.normal(2, 4, 3, c), maker.normal(2, c, 4, 5)
    norm = {
        "groups": 5, "weight": maker.normal(c), "bias": maker.normal(c).bfloat16(), "eps": 1e-5,
    }  # fmt: skip
    eight, six = maker.weight(n, 9 * c, 8), maker.weight(n, 4 * c, 6)
    a, turned = maker.codes(2, 5, 4, c), maker.codes(2, 4, 5, c).transpose(1, 2)
    plain = (eight.packed, grid[0], eight.scale)
    epilogue = {
        "w_zero": six.zero, "bias": maker.normal(n), "bits": 6, "kernel_size": 2,
        "activation": "gelu", "residual": maker.normal(2, 4, 3, n), "out_dtype": torch.bfloat16,
    }  # fmt: skip
    return {
        "quantize_map": [
            ((x, *grid, 8), {}),
            (
                (channels_first.permute(0, 2, 3, 1).half(), *grid, 6),
                {**norm, "activation": "silu", "scale": 2, "border": 1},
            ),
            ((x[:0], *grid, 4), {"border": 2}),
        ],
        "conv2d": [
            ((a, *plain), {}),
            (
                (turned, six.packed, grid[0], six.scale, maker.integers(-128, 127, 1), six.w_sum),
                epilogue,
            ),
            ((a[:0], *plain), {}),
        ],
    }
