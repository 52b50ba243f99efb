"""gemm and gemm_quantize against the reference, bit for bit, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptq4arvg import ops
from ptq4arvg.reference import gemm as reference_gemm
from ptq4arvg.reference import gemm_quantize as reference_gemm_quantize

BITS = (8, 6, 4)


def _both(same_bits, a, weight, a_scale, *args, **options):
    """Run kernel and reference on the same arguments; compare; return the kernel's."""
    common = (a_scale, weight.scale, *args)
    actual = ops.gemm(a, weight.packed, *common, w_zero=weight.zero, bits=weight.bits, **options)
    expected = reference_gemm(
        a, weight.dense, *common, w_zero=weight.zero, bits=weight.bits, **options
    )
    same_bits(actual, expected)
    return actual


@pytest.mark.parametrize("bits", BITS)
def test_rows_up_to_300(isa, make, same_bits, bits):
    maker = make(bits)
    weight, a_scale = maker.weight(35, 70, bits), maker.uniform(0.01, 0.1, 7)
    a_zero = maker.integers(-128, 127, 7)
    for m in (*range(0, 20), 23, 24, 25, 47, 48, 49, 63, 64, 65, 127, 129, 191, 255, 256, 257, 300):
        _both(same_bits, maker.codes(m, 70), weight, a_scale, a_zero)


@pytest.mark.parametrize("bits", BITS)
def test_columns_and_depths_off_every_tile_edge(isa, make, same_bits, bits):
    maker = make(10 + bits)
    a_scale, a_zero = maker.uniform(0.01, 0.1, 5), maker.integers(-128, 127, 5)
    for n in (1, 7, 8, 9, 15, 16, 17, 31, 33, 47, 63, 64, 65, 100):
        for k in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 130):
            _both(same_bits, maker.codes(5, k), maker.weight(n, k, bits), a_scale, a_zero)


@pytest.mark.parametrize("bits", BITS)
def test_blocks_of_rows_and_many_panels(isa, make, same_bits, bits):
    """Deep enough that the rows are cut into several blocks."""
    maker = make(20 + bits)
    a_scale = maker.uniform(0.01, 0.1, 11)
    _both(same_bits, maker.codes(150, 2050), maker.weight(90, 2050, bits), a_scale)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_whole_epilogue(isa, make, same_bits, bits, activation):
    maker = make(30 + bits)
    images, tokens, n, k = 3, 4, 37, 45
    weight = maker.weight(n, k, bits)
    a_scale, a_zero = maker.uniform(0.01, 0.5, 20), maker.integers(-128, 127, 20)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        _both(
            same_bits, maker.codes(images, tokens, k), weight, a_scale, a_zero, weight.w_sum,
            bias=maker.normal(n, dtype=dtype), activation=activation, tokens=tokens,
            position=torch.tensor([9], dtype=torch.int32),
            gate=maker.normal(images, n, dtype=dtype), out_dtype=dtype,
            residual=maker.normal(images, tokens, n, dtype=dtype),
        )  # fmt: skip


def test_each_part_of_the_epilogue_alone(isa, make, same_bits):
    maker = make(40)
    weight, a = maker.weight(19, 21, 8), maker.codes(6, 21)
    a_scale = maker.uniform(0.01, 0.5, 3)
    for option in (
        {"bias": maker.normal(19)},
        {"gate": maker.normal(2, 19)},
        {"residual": maker.normal(6, 19)},
        {"a_zero": maker.integers(-128, 127, 3)},
        {"activation": "gelu"},
        {"out_dtype": torch.bfloat16},
        {"out_dtype": torch.float16},
    ):
        _both(same_bits, a, weight, a_scale, **option)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_values_neither_saturate_nor_wrap(isa, make, bits, sign):
    """The largest products everywhere, at unit scales: y is the integer sum itself."""
    k = 1000  # 128 * 127 * 1000 < 2^24, so float32 holds every sum
    top = {8: 127, 6: 63, 4: 15}[bits]
    zero = None if bits == 8 else torch.full((18,), 0 if sign > 0 else top, dtype=torch.int32)
    codes = torch.full((18, k), sign * top, dtype=torch.int8)
    packed = ops.pack_weight(codes, zero, bits)
    for value in (-128, 127):
        a = torch.full((7, k), value, dtype=torch.int8)
        y = ops.gemm(a, packed, torch.ones(1), torch.ones(18), w_zero=zero, bits=bits)
        assert torch.equal(y, torch.full((7, 18), float(value * sign * top * k)))


def test_int32_is_exact_at_the_greatest_depth(isa, make):
    """Sums near 2^30 whose zero-point correction leaves a few units: every bit must be right."""
    maker = make(50)
    k = 65536
    codes = maker.integers(-127, 127, 5, k, dtype=torch.int8)
    codes[0], codes[1] = 127, -127
    packed = ops.pack_weight(codes, None, 8)
    for offset in (-128, 126):
        noise = maker.integers(0, 1, 3, k, dtype=torch.int8)
        a = (noise + offset).to(torch.int8)
        a_zero = torch.tensor([offset], dtype=torch.int32)
        y = ops.gemm(a, packed, torch.ones(1), torch.ones(5), a_zero)
        assert torch.equal(y.long(), noise.long() @ codes.long().T)


def test_alternating_extremes(isa, make, same_bits):
    """Signs that a saturating pair sum would get wrong only in some places."""
    maker = make(51)
    pattern = torch.tensor([127, -127, 127, 127, -127], dtype=torch.int8)
    weight = maker.pack(pattern.repeat(20, 41)[:, :203].contiguous(), None, 8)
    a = torch.tensor([-128, -128, 127, -128], dtype=torch.int8).repeat(9, 51)[:, :203]
    _both(same_bits, a, weight, maker.uniform(0.1, 1, 1))


def test_strided_activations(isa, make, same_bits):
    maker = make(60)
    weight, a_scale = maker.weight(21, 30, 8), maker.uniform(0.1, 1, 4)
    wide = maker.codes(12, 64)
    views = {
        "rows of a wider tensor": wide[:, 5:35],
        "every second row": wide[::2, :30],
        "every second column (copied)": wide[:, 1:61:2],
        "transposed (copied)": maker.codes(30, 12).T,
        "three dimensions": wide.view(3, 4, 64)[:, :, 20:50],
        "inner rows (copied)": wide.view(3, 4, 64)[:, 1:3, :30],
        "one row for all": wide[:1, :30].expand(8, 30),
        "one dimension": wide[3, :30],
    }
    for name, a in views.items():
        y = _both(same_bits, a, weight, a_scale)
        assert y.shape == (*a.shape[:-1], 21), name


def test_strided_gate_residual_and_columns(isa, make, same_bits):
    maker = make(61)
    weight, a = maker.weight(21, 30, 8), maker.codes(2, 3, 30)
    modulation = maker.normal(2, 6, 21)  # as AdaLN gives it: six vectors an image
    _both(
        same_bits, a, weight, maker.uniform(0.1, 1, 6)[::2], gate=modulation[:, 2],
        residual=maker.normal(2, 3, 50)[..., 7:28], bias=maker.normal(42)[::2],
    )  # fmt: skip
    _both(same_bits, a, weight, maker.uniform(0.1, 1, 3), gate=modulation[:, 2:3])


def test_table_wraps_after_tokens_and_starts_at_position(isa, make):
    maker = make(62)
    weight, a = maker.weight(5, 16, 8), maker.codes(7, 16)
    a_scale = maker.uniform(0.1, 1, 10)
    one_by_one = [
        ops.gemm(a[m : m + 1], weight.packed, a_scale[[4 + m % 3]], weight.scale) for m in range(7)
    ]
    position = torch.tensor([4], dtype=torch.int32)
    y = ops.gemm(a, weight.packed, a_scale, weight.scale, position=position, tokens=3)
    assert torch.equal(y, torch.cat(one_by_one))
    position.fill_(7)
    moved = ops.gemm(a, weight.packed, a_scale, weight.scale, position=position, tokens=3)
    assert not torch.equal(y, moved)


@pytest.mark.parametrize("bits", BITS)
def test_column_sums_default_to_the_packed_ones(isa, make, bits):
    maker = make(63)
    weight, a = maker.weight(40, 30, bits), maker.codes(5, 30)
    common = (a, weight.packed, maker.uniform(0.1, 1, 5), weight.scale, maker.integers(-9, 9, 5))
    given_sums = ops.gemm(*common, weight.w_sum, weight.zero, bits=bits)
    assert torch.equal(given_sums, ops.gemm(*common, None, weight.zero, bits=bits))


@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_depend_on_its_company(isa, make, bits):
    maker = make(64)
    weight, a = maker.weight(70, 90, bits), maker.codes(29, 90)
    options = {"w_zero": weight.zero, "bits": bits, "tokens": 1}
    whole = ops.gemm(a, weight.packed, torch.ones(1), weight.scale, **options)
    for begin, end in ((0, 1), (3, 8), (28, 29), (5, 29)):
        part = ops.gemm(a[begin:end], weight.packed, torch.ones(1), weight.scale, **options)
        assert torch.equal(part, whole[begin:end])


def test_threads_do_not_matter(isa, make):
    maker = make(65)
    weight, a = maker.weight(300, 260, 6), maker.codes(200, 260)
    common = (a, weight.packed, torch.ones(1), weight.scale)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.gemm(*common, w_zero=weight.zero, bits=6))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("out_bits", BITS)
@pytest.mark.parametrize("bits", BITS)
def test_gemm_quantize(isa, make, same_bits, bits, out_bits):
    maker = make(70 + bits + out_bits)
    weight, a = maker.weight(37, 45, bits), maker.codes(3, 4, 45)
    a_scale = maker.uniform(0.01, 0.5, 20)
    options = {
        "w_zero": weight.zero, "bits": bits, "bias": maker.normal(37), "activation": "gelu",
        "position": torch.tensor([9], dtype=torch.int32), "tokens": 4,
        "residual": maker.normal(12, 37), "gate": maker.normal(3, 37),
    }  # fmt: skip
    table = (maker.uniform(0.1, 9, 15), maker.integers(0, 2**out_bits - 1, 15))
    out = {"out_inv_scale": table[0], "out_zero": table[1], "out_bits": out_bits}
    codes = ops.gemm_quantize(a, weight.packed, a_scale, weight.scale, **options, **out)
    expected = reference_gemm_quantize(a, weight.dense, a_scale, weight.scale, **options, **out)
    same_bits(codes, expected)
    y = ops.gemm(a, weight.packed, a_scale, weight.scale, **options)
    two_steps = ops.quantize(y, *table, out_bits, options["position"], 4)
    assert torch.equal(codes, two_steps.view_as(codes))


@pytest.mark.parametrize("rotation", [2, 4, 8, 16])
@pytest.mark.parametrize("bits", BITS)
def test_results_are_rotated_before_they_are_quantized(isa, make, same_bits, bits, rotation):
    maker = make(80 + bits + rotation)
    table = (maker.uniform(0.05, 2, 15), maker.integers(0, 63, 15))
    out = {"out_inv_scale": table[0], "out_zero": table[1], "out_bits": 6, "out_rotation": rotation}
    a_scale = maker.uniform(0.01, 0.5, 20)
    position = torch.tensor([9], dtype=torch.int32)
    for m, n in ((1, rotation), (4, 16), (12, 48), (28, 112 + rotation), (240, 320 - rotation)):
        weight, a, tokens = maker.weight(n, 45, bits), maker.codes(m, 45), min(m, 4)
        options = {"w_zero": weight.zero, "bits": bits, "position": position, "tokens": tokens}
        for more in (
            {"bias": maker.normal(n), "activation": "gelu"},
            {"residual": maker.normal(m, n), "gate": maker.normal(m // tokens, n)},
        ):
            args = (a_scale, weight.scale, maker.integers(-128, 127, 20))
            codes = ops.gemm_quantize(a, weight.packed, *args, **options, **more, **out)
            expected = reference_gemm_quantize(a, weight.dense, *args, **options, **more, **out)
            same_bits(codes, expected)
            y = ops.gemm(a, weight.packed, *args, **options, **more)
            steps = ops.quantize(y, *table, 6, position, tokens, rotation)
            same_bits(codes, steps)


@pytest.mark.parametrize("op", ["gemm", "gemm_quantize"])
def test_no_rows(isa, make, op):
    weight = make(0).weight(6, 8, 8)
    out = {} if op == "gemm" else {
        "out_inv_scale": torch.ones(1), "out_zero": torch.zeros(1, dtype=torch.int32), "out_bits": 8
    }  # fmt: skip
    a = torch.zeros(2, 0, 8, dtype=torch.int8)
    y = getattr(ops, op)(a, weight.packed, torch.ones(1), weight.scale, **out)
    assert y.shape == (2, 0, 6)


@pytest.mark.parametrize("bits", BITS)
def test_names_the_kernel_that_ran(isa, make, bits):
    weight = make(0).weight(6, 8, bits)
    for rows in (1, 100):
        a = torch.zeros(rows, 8, dtype=torch.int8)
        ops.gemm(a, weight.packed, torch.ones(1), weight.scale, w_zero=weight.zero, bits=bits)
        ran = "avx512_vnni" if isa == "amx_int8" and rows == 1 else isa  # AMX hands few rows on
        assert ops.last_kernel() == f"gemm.w{bits}.{ran}"
        assert ops.last_kernel() in [k["name"] for k in ops.list_kernels() if k["available"]]


@given(
    m=st.integers(0, 40), n=st.integers(1, 90), k=st.integers(1, 200), bits=st.sampled_from(BITS),
    tokens=st.integers(0, 9), position=st.integers(0, 6), seed=st.integers(0, 2**32 - 1),
    activation=st.sampled_from(ops.ACTIVATIONS), with_zero=st.booleans(),
)  # fmt: skip
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(
    isa, make, same_bits, m, n, k, bits, tokens, position, seed, activation, with_zero
):
    maker = make(seed)
    table = position + (tokens or 9)
    _both(
        same_bits, maker.codes(m, k), maker.weight(n, k, bits), maker.uniform(0.01, 1, table),
        maker.integers(-128, 127, table) if with_zero else None, bias=maker.normal(n),
        position=torch.tensor([position if tokens else 0], dtype=torch.int32), tokens=tokens,
        activation=activation,
    )  # fmt: skip
