"""A linear's tensors: round trip, sizes, and refusal of what does not fit."""

from dataclasses import replace

import pytest
import torch

from ptq4arvg.checkpoint.layout import linear_names, pack_linear, unpack_linear
from ptq4arvg.numerics import LinearQuantization, affine_grid, quantize_weight

SCHEMES = [(8, 8), (6, 6), (4, 8)]


def quantization(w_bits, a_bits, n=24, k=256, tokens=7, sink=(0,), bias=True):
    g = torch.Generator().manual_seed(w_bits)
    codes, w_scale, w_zero = quantize_weight(torch.randn(n, k, generator=g), w_bits)
    reach = 1 + torch.rand(3, generator=g)
    scale, zero = affine_grid(-reach, 2 * reach, a_bits)
    return LinearQuantization(
        codes, w_scale, w_zero, torch.randn(n, generator=g) if bias else None, scale, zero,
        torch.arange(tokens) % 3, w_bits, a_bits, sink,
    )  # fmt: skip


def read(q, tensors):
    return unpack_linear(
        "x", tensors, tuple(q.codes.shape), q.w_bits, q.a_bits, len(q.position_group), q.sink
    )


@pytest.mark.parametrize(("w_bits", "a_bits"), SCHEMES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_round_trip_is_exact(w_bits, a_bits, bias):
    q = quantization(w_bits, a_bits, bias=bias)
    tensors = pack_linear(q)
    needed, optional = linear_names(w_bits)
    assert needed <= set(tensors) <= needed | optional
    back = read(q, tensors)
    assert back.sink == q.sink
    for field in ("codes", "w_scale", "input_scale", "input_zero", "position_group"):
        assert torch.equal(getattr(back, field), getattr(q, field)), field
        assert getattr(back, field).dtype == getattr(q, field).dtype, field
    assert torch.equal(back.bias, q.bias) if bias else back.bias is None
    assert w_bits == 8 or back.w_zero.dtype == torch.int32
    assert back.w_zero is None if w_bits == 8 else torch.equal(back.w_zero, q.w_zero)


@pytest.mark.parametrize(("groups", "dtype"), [(65536, torch.uint16), (65537, torch.int32)])
def test_numbers_of_groups_take_two_bytes_as_long_as_they_fit(groups, dtype):
    g = torch.Generator().manual_seed(0)
    codes, w_scale, _ = quantize_weight(torch.randn(2, 4, generator=g), 8)
    zero = torch.zeros(groups, dtype=torch.int32)
    q = LinearQuantization(codes, w_scale, None, None, torch.ones(groups), zero,
                           torch.arange(groups), 8, 8)  # fmt: skip
    tensors = pack_linear(q)
    assert tensors["position_group"].dtype == dtype
    assert torch.equal(read(q, tensors).position_group, q.position_group)


def test_negative_numbers_of_groups_are_refused():
    groups = (1 << 16) + 1
    q = LinearQuantization(
        torch.ones(2, 4, dtype=torch.int8), torch.ones(2), None, None, torch.ones(groups),
        torch.zeros(groups, dtype=torch.int32), torch.tensor([0, -1]), 8, 8,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"x\.position_group holds -1 to 0; wanted 0 to 65536"):
        read(q, pack_linear(q))


def test_no_positions_are_refused():
    tensors = pack_linear(quantization(8, 8)) | {"position_group": torch.zeros(0).to(torch.uint16)}
    with pytest.raises(ValueError, match=r"x\.position_group is empty"):
        unpack_linear("x", tensors, (24, 256), 8, 8, 0, ())


def test_other_floats_and_other_strides_are_written_as_any():
    q = quantization(8, 8)
    bias, scales = q.bias.half(), (q.w_scale.double(), q.input_scale.double())
    other = replace(
        q, w_scale=scales[0], input_scale=scales[1], bias=bias, codes=q.codes.T.contiguous().T
    )
    tensors = pack_linear(other)
    wanted = pack_linear(replace(q, bias=bias.float()))
    assert all(t.is_contiguous() for t in tensors.values())
    for key, tensor in wanted.items():
        assert tensors[key].dtype == tensor.dtype and torch.equal(tensors[key], tensor), key


@pytest.mark.parametrize("w_bits", [8, 6])
def test_every_tensor_has_one_shape_and_dtype(w_bits):
    q = quantization(w_bits, 8)
    tensors = pack_linear(q)
    for key, tensor in tensors.items():
        others = [tensor[None], tensor[0], tensor.flatten()[0], tensor.to(torch.int16)]
        if key != "input_scale":  # whose rows say how many groups there are
            others += [tensor[:-1], torch.cat([tensor, tensor])]
        for other in others:
            with pytest.raises(ValueError, match=rf"^x\.{key} is .*; wanted torch\."):
                read(q, tensors | {key: other})
    fewer = tensors | {"input_scale": tensors["input_scale"][:-1]}
    with pytest.raises(ValueError, match=r"^x\.input_zero_point is .*; wanted torch\."):
        read(q, fewer)


@pytest.mark.parametrize("block", [-2, 1, 3, 24, 256])
def test_a_rotation_that_there_is_not_is_refused(block):
    q = quantization(6, 6, k=192)
    message = f"x: its input of 192 columns is rotated in blocks of {block}; wanted a power of two"
    with pytest.raises(ValueError, match=message):
        unpack_linear("x", pack_linear(q), (24, 192), 6, 6, 7, (0,), block)
    assert unpack_linear("x", pack_linear(q), (24, 192), 6, 6, 7, (0,), 64).rotation == 64


@pytest.mark.parametrize(("w_bits", "a_bits"), SCHEMES)
def test_a_weight_takes_its_bits(w_bits, a_bits):
    tensors = pack_linear(quantization(w_bits, a_bits))
    size = sum(t.nbytes for name, t in tensors.items() if name.startswith("weight"))
    assert size <= 24 * 256 * w_bits / 8 * 1.05 + 16


def test_a_missing_zero_point_means_the_middle_level():
    q = quantization(4, 8)
    plain = LinearQuantization(
        q.codes.clamp(-8, 7), q.w_scale, None, q.bias, q.input_scale, q.input_zero,
        q.position_group, 4, 8,
    )  # fmt: skip
    back = read(plain, pack_linear(plain))
    assert torch.equal(back.codes, plain.codes)
    assert back.w_zero.unique().tolist() == [8]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight_scale", lambda t: t[:-1], r"weight_scale is .* wanted torch.float32 \[24, 1\]"),
        ("weight_packed", lambda t: t[:, :-1], "weight_packed is"),
        ("weight_shape", lambda t: t + 1, r"weight_shape is \[25, 257\]; wanted \[24, 256\]"),
        ("weight_shape", lambda t: t.flip(0), r"weight_shape is \[256, 24\]; wanted \[24, 256\]"),
        ("weight_zero_point", lambda t: t.to(torch.int8), "weight_zero_point is"),
        ("position_group", lambda t: (t.int() + 1).to(torch.uint16), "holds 1 to 3; wanted 0 to 2"),
        ("input_scale", lambda t: -t, "not a positive number"),
        ("weight_scale", lambda t: t * torch.nan, "not a positive number"),
        ("input_scale", lambda t: 0 * t, "not a positive number"),
        ("weight_scale", lambda t: t * torch.inf, "not a positive number"),
        ("input_zero_point", lambda t: t + 60, "outside 6 bits"),
        ("input_zero_point", lambda t: torch.full_like(t, 64), "outside 6 bits"),
        ("bias", lambda t: t.half(), "bias is"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(key, change, message):
    q = quantization(6, 6)
    tensors = pack_linear(q)
    tensors[key] = change(tensors[key])
    with pytest.raises(ValueError, match=message):
        read(q, tensors)
