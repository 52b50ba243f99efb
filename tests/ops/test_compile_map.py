"""torch.compile and export of a function of maps of any size."""

from __future__ import annotations

import pytest
import torch

from ptq4arvg import ops


def _convolution(make):
    """quantize_map and conv2d with a residual: one function of a map, channels first."""
    maker = make(1)
    weight = maker.weight(12, 9 * 24, 6)
    scale, zero = maker.uniform(0.05, 0.1, 1), maker.integers(0, 255, 1)

    def convolution(x):
        x = x.permute(0, 2, 3, 1)
        codes = ops.quantize_map(x, 1 / scale, zero, 8, groups=4, activation="silu", border=1)
        y = ops.conv2d(
            codes, weight.packed, scale, weight.scale, zero - 128, w_zero=weight.zero, bits=6,
            residual=x[..., :12],
        )  # fmt: skip
        return y.permute(0, 3, 1, 2) * 2

    return convolution


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_any_number_and_size_of_images_is_compiled_once(make, backend):
    """Higher and wider ones alike."""
    torch._dynamo.reset()
    convolution, maker = _convolution(make), make(2)
    compiled = torch.compile(convolution, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for images, height, width in ((3, 5, 4), (2, 16, 3), (5, 7, 9), (4, 6, 7)):
            x = maker.normal(images, 24, height, width)
            torch.testing.assert_close(compiled(x), convolution(x), rtol=0, atol=0)


def test_export(make):
    convolution = _convolution(make)

    class Module(torch.nn.Module):
        def forward(self, x):
            return convolution(x)

    images, height = (torch.export.Dim(name, min=1, max=64) for name in ("images", "height"))
    x, shapes = make(3).normal(3, 24, 5, 4), {"x": {0: images, 2: height}}
    program = torch.export.export(Module(), (x,), dynamic_shapes=shapes)
    more = make(4).normal(7, 24, 9, 4)
    assert torch.equal(program.module()(more), convolution(more))
