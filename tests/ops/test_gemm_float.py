"""gemm_float: close to float64, and each row on its own."""

from __future__ import annotations

import pytest
import torch

from ptq4arvg import ops

BITS = (8, 6, 4)


def _bound(x, weight):
    """Rounding bound of a float32 sum over k in any order: k eps sum |x w|, and the scale."""
    size = x.double().abs() @ (weight.scale.double()[:, None] * weight.codes.double()).abs().T
    return size * (x.shape[-1] + 4) * 2.0**-24 + 1e-30


@pytest.mark.parametrize("bits", BITS)
def test_close_to_float64(isa, make, bits):
    maker = make(bits)
    for n in (1, 8, 16, 17, 50):
        for k in (1, 3, 4, 9, 64, 130):
            weight = maker.weight(n, k, bits)
            for m in (0, 1, 2, 3, 4, 5, 9):
                x = maker.normal(m, k)
                y = ops.gemm_float(x, weight.packed, weight.scale, weight.zero, bits=bits)
                exact = x.double() @ (weight.scale.double()[:, None] * weight.codes.double()).T
                assert y.shape == (m, n)
                assert bool(((y.double() - exact).abs() <= _bound(x, weight)).all())


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_epilogue_and_dtypes(isa, make, activation, dtype):
    maker = make(1)
    weight, x = maker.weight(37, 45, 6), maker.normal(2, 3, 45, dtype=dtype)
    options = {"bits": 6, "activation": activation, "out_dtype": dtype}
    bias = maker.normal(37, dtype=dtype)
    y = ops.gemm_float(x, weight.packed, weight.scale, weight.zero, bias, **options)
    expected = ops.reference.gemm_float(x, weight.dense, weight.scale, weight.zero, bias, **options)
    assert y.dtype == dtype
    unit = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    torch.testing.assert_close(y, expected, rtol=unit, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_depend_on_its_company(isa, make, bits):
    maker = make(2)
    weight, x = maker.weight(70, 90, bits), maker.normal(11, 90)
    whole = ops.gemm_float(x, weight.packed, weight.scale, weight.zero, bits=bits)
    for begin, end in ((0, 1), (3, 5), (10, 11), (2, 11)):
        part = ops.gemm_float(x[begin:end], weight.packed, weight.scale, weight.zero, bits=bits)
        assert torch.equal(part, whole[begin:end])


def test_strided_rows(isa, make):
    maker = make(3)
    weight, wide = maker.weight(9, 20, 4), maker.normal(4, 3, 50)
    for x in (wide[..., 3:23], wide[:, 1:2, :20], wide[..., ::2][..., :20]):
        y = ops.gemm_float(x, weight.packed, weight.scale, weight.zero, bits=4)
        dense = ops.gemm_float(x.contiguous(), weight.packed, weight.scale, weight.zero, bits=4)
        assert torch.equal(y, dense)


def test_threads_do_not_matter(isa, make):
    maker = make(4)
    weight, x = maker.weight(300, 200, 6), maker.normal(20, 200)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(ops.gemm_float(x, weight.packed, weight.scale, weight.zero, bits=6))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("bits", BITS)
def test_names_the_kernel_that_ran(isa, make, bits):
    weight = make(0).weight(6, 8, bits)
    ops.gemm_float(torch.ones(1, 8), weight.packed, weight.scale, weight.zero, bits=bits)
    assert ops.last_kernel() == f"gemm_float.w{bits}.{isa}"
