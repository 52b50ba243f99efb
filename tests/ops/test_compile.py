"""opcheck, torch.compile without graph breaks or repeated compiling, and export."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ptq4arvg import ops
from tests.ops.map_calls import map_calls


def _calls(make) -> dict[str, list[tuple[tuple, dict]]]:
    """Arguments of every operator, plain and with all options."""
    maker = make(0)
    n, k, t = 21, 10, 6
    position = torch.tensor([2], dtype=torch.int32)
    six, eight = maker.weight(n, k, 6), maker.weight(n, k, 8)
    a, x = maker.codes(2, 3, k), maker.normal(2, 3, k)
    a_scale, a_zero = maker.uniform(0.1, 1, t), maker.integers(-128, 127, t)
    zero = maker.integers(0, 63, t)
    epilogue = {
        "bits": 6, "position": position, "tokens": 3, "activation": "gelu",
        "residual": maker.normal(2, 3, n), "gate": maker.normal(2, n),
    }  # fmt: skip
    out = {"out_inv_scale": a_scale, "out_zero": zero, "out_bits": 6}
    six_args = (six.packed, a_scale, six.scale, a_zero, six.w_sum, six.zero, maker.normal(n))
    eight_args = (eight.packed, a_scale, eight.scale)
    modulation = {"scale": maker.normal(2, k), "shift": maker.normal(2, k)}
    vectors = ("weight", "bias", "constant", "post_scale", "post_shift")
    # Keys, values and queries [B, H, t, d] as views of one projection; a cache with room for more.
    qkv = maker.normal(2, 3, 3, 5, 8)  # [B, t, 3, H, d]
    heads = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    larger = tuple(maker.codes(*shape) for shape in ops.kv_cache_shapes(4, 5, 20, 8))
    cache, gaps = [codes[:2] for codes in larger], [codes[::2] for codes in larger]
    k_table, v_table = [(maker.uniform(0.01, 0.1, 5, 8), maker.normal(5, 8)) for _ in range(2)]
    limits = torch.tensor([3, 1, 20], dtype=torch.int32)
    return {
        "pack_weight": [((six.codes, six.zero, 6), {}), ((eight.codes, None, 8), {})],
        "unpack_weight": [((six.packed, six.zero, 6, n, k), {})],
        "quantize": [((x, a_scale, zero, 6), {}), ((x.half(), a_scale, zero, 8, position, 3), {})],
        "gemm": [
            ((a, *eight_args), {}),
            ((a, *six_args), {**epilogue, "out_dtype": torch.bfloat16}),
            ((a[:, :0], *eight_args), {}),
        ],
        "gate_quantize": [
            ((x, a_scale, zero, 6), {}),
            (
                (x.half(), a_scale, zero, 8),
                {"activation": "gelu", "position": position, "tokens": 3},
            ),
        ],
        "gemm_quantize": [((a, *eight_args), out), ((a, *six_args), {**epilogue, **out})],
        "norm_quantize": [
            ((x, a_scale, zero, 6), {"rms": True}),
            (
                (x, a_scale, zero, 6),
                {**modulation, **{name: maker.normal(k) for name in vectors}, "tokens": 3},
            ),
        ],
        "gemm_float": [
            ((x, eight.packed, eight.scale), {}),
            (
                (x.bfloat16(), six.packed, six.scale, six.zero, maker.normal(n)),
                {"bits": 6, "activation": "silu", "out_dtype": torch.float16},
            ),
        ],
        "store_kv": [
            ((*heads[1:], *cache, *k_table, *v_table), {}),
            (
                (heads[1].half(), heads[2].bfloat16(), *gaps, *k_table, *v_table, position),
                {},
            ),
            ((*(x[:, :, :0] for x in heads[1:]), *cache, *k_table, *v_table), {}),
        ],
        "store_qkv": [
            ((qkv, *cache, *k_table, *v_table), {}),
            (
                (qkv.half(), *gaps, *k_table, *v_table),
                {
                    "norm": "layer",
                    "eps": 1e-5,
                    "q_weight": maker.normal(8),
                    "position": position,
                    "k_bias": maker.normal(8).bfloat16(),
                    "q_factors": maker.normal(5),
                    "rotation": maker.normal(qkv.shape[1], 4, 2),
                },
            ),
            ((qkv[:, :0], *cache, *k_table, *v_table), {"norm": "l2", "q_factor": 0.5}),
        ],
        "attention": [
            ((heads[0], *cache, k_table[0], *v_table), {"position": position}),
            (
                (heads[0].half(), *gaps, k_table[0], *v_table),
                {"limits": limits, "out_dtype": torch.bfloat16},
            ),
            ((heads[0][:, :, :0], *cache, k_table[0], *v_table), {}),
        ],
        "attention_quantize": [
            ((heads[0], *cache, k_table[0], *v_table), {"position": position, **out}),
            (
                (heads[0].half(), *gaps, k_table[0], *v_table),
                {"limits": limits, **out, "out_position": position, "out_rotation": 8},
            ),
            ((heads[0][:, :, :0], *cache, k_table[0], *v_table), out),
        ],
    } | map_calls(make)


NAMES = (
    "pack_weight", "unpack_weight", "quantize", "gate_quantize", "gemm", "gemm_quantize",
    "norm_quantize", "gemm_float", "store_kv", "store_qkv", "attention", "attention_quantize",
    "quantize_map", "conv2d",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(make, name):
    op = getattr(torch.ops.ptq4arvg, name).default
    for args, kwargs in _calls(make)[name]:
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_the_same_result(make, name):
    face = getattr(ops, name)
    compiled = torch.compile(face, fullgraph=True, backend="aot_eager")
    for (args, kwargs), (same_args, _) in zip(_calls(make)[name], _calls(make)[name], strict=True):
        result, expected = compiled(*args, **kwargs), face(*same_args, **kwargs)
        assert result is expected is None or torch.equal(result, expected)
        for mine, wanted in zip(args, same_args, strict=True):  # store_kv writes in its caches
            assert mine is wanted or not isinstance(mine, torch.Tensor) or torch.equal(mine, wanted)


def _step(make, whole):
    """Keys and values of new tokens stored, and attention to all that are there; whole: stored as
    they come, on the way to q."""
    maker = make(6)
    k_scale, v_scale = (maker.uniform(0.01, 0.1, 2, 8) for _ in range(2))
    k_shift, v_shift = (maker.normal(2, 8) for _ in range(2))

    def step(x, k_cache, v_cache, position):
        qkv, into = x.unflatten(2, (3, 2, 8)), (k_cache, v_cache)
        tables = k_scale, k_shift, v_scale, v_shift
        if whole:
            q = ops.store_qkv(qkv, *into, *tables, norm="rms", q_factor=0.3, position=position)
            q = q.transpose(1, 2)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            ops.store_kv(k, v, *into, *tables, position)
        y = ops.attention(q, k_cache, v_cache, k_scale, v_scale, v_shift, position=position)
        return y + x[..., :16]

    return step


def _decode(step, other, make, images=3):
    """Both steps over a sequence, a few tokens at a time; equal outputs and caches."""
    maker = make(7)
    caches = [ops.empty_kv_cache(images, 2, 100, 8) for _ in range(2)]
    first = 0
    for tokens in (5, 3, 7, 16, 40):  # 5 first: no other size, which it would be taken for
        x, position = maker.normal(images, tokens, 48), torch.tensor([first], dtype=torch.int32)
        before = caches[0][0].clone()
        y = step(x, *caches[0], position)
        torch.testing.assert_close(y, other(x, *caches[1], position), rtol=0, atol=0)
        for mine, wanted in zip(*caches, strict=True):
            assert torch.equal(mine, wanted)
        assert not torch.equal(caches[0][0], before)
        first += tokens


@pytest.mark.parametrize("backend", [
    "eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_stored_keys_are_seen_when_compiled(make, backend, whole):
    """The attention after a store reads what it stored, and so does the next call."""
    torch._dynamo.reset()  # what was compiled with the other value of `whole`
    step = _step(make, whole)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        _decode(compiled, step, make)


@pytest.mark.parametrize("whole", [False, True])
def test_export_of_a_store(make, whole):
    step = _step(make, whole)

    class Module(torch.nn.Module):
        def forward(self, x, k_cache, v_cache, position):
            return step(x, k_cache, v_cache, position)

    cache, position = ops.empty_kv_cache(3, 2, 100, 8), torch.tensor([0], dtype=torch.int32)
    tokens = {1: torch.export.Dim("tokens", min=1, max=100)}
    shapes = {"x": tokens, "k_cache": None, "v_cache": None, "position": None}
    args = (make(8).normal(3, 4, 48), *cache, position)
    program = torch.export.export(Module(), args, dynamic_shapes=shapes)
    _decode(program.module(), step, make)
    functional = program.run_decompositions()
    assert set(functional.graph_signature.user_inputs_to_mutate.values()) == {"k_cache", "v_cache"}
    _decode(functional.module(), step, make)


def _layer(make):
    """quantize, gemm with re-quantization, gemm: one function of x, position and tokens."""
    maker = make(1)
    first, second = maker.weight(40, 24, 6), maker.weight(12, 40, 8)
    table = maker.uniform(0.05, 0.1, 600), maker.integers(0, 63, 600)
    inner = maker.uniform(0.05, 0.1, 600), maker.integers(0, 255, 600)

    def layer(x, position, tokens):
        place = {"position": position, "tokens": tokens}
        codes = ops.quantize(x, 1 / table[0], table[1], 6, **place)
        hidden = ops.gemm_quantize(
            codes, first.packed, table[0], first.scale, w_zero=first.zero, bits=6,
            activation="gelu_tanh", out_inv_scale=1 / inner[0], out_zero=inner[1], out_bits=8,
            **place,
        )  # fmt: skip
        y = ops.gemm(
            hidden, second.packed, inner[0], second.scale, inner[1] - 128, residual=x[..., :12],
            **place,
        )  # fmt: skip
        return y * 2

    return layer


def test_dynamic_rows_and_tokens_compile_once(make):
    layer, maker = _layer(make), make(2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for images, tokens, first in ((3, 5, 2), (2, 7, 0), (4, 16, 9), (6, 100, 31), (7, 256, 300)):
        x, position = maker.normal(images, tokens, 24), torch.tensor([first], dtype=torch.int32)
        assert torch.equal(compiled(x, position, tokens), layer(x, position, tokens))
    assert counter.frame_count == 1


def test_no_rows_compiled(make):
    layer = _layer(make)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert compiled(torch.zeros(0, 5, 24), None, 5).shape == (0, 5, 12)


@pytest.mark.slow
def test_inductor(make):
    layer, maker = _layer(make), make(3)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for images in (3, 5):
        x = maker.normal(images, 4, 24)
        torch.testing.assert_close(compiled(x, None, 4), layer(x, None, 4), rtol=1e-6, atol=1e-6)


def test_export(make):
    layer = _layer(make)

    class Module(torch.nn.Module):
        def forward(self, x, position):
            return layer(x, position, 4)

    x, position = make(4).normal(3, 4, 24), torch.tensor([7], dtype=torch.int32)
    shapes = {"x": {0: torch.export.Dim("images", min=1, max=4096)}, "position": None}
    program = torch.export.export(Module(), (x, position), dynamic_shapes=shapes)
    more = make(5).normal(9, 4, 24)
    assert torch.equal(program.module()(more, position), layer(more, position, 4))
