"""Every refusal of the attention operators and of kv_cache_shapes, with its text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptq4arvg import ops
from tests.ops.refusals import call_fake, check_fake_refusal, check_refusal, each

B, H, TOKENS, D, PANELS = 2, 3, 5, 8, 2
NAN, INF = float("nan"), float("inf")
STORES = ("store_kv", "store_qkv")
READS, CODES = ("attention", "attention_quantize"), ("attention_quantize",)
ALL = (*STORES, *READS)
FLOATS = "wanted float32, float16 or bfloat16"
HEADS = "wanted heads [B, H, t, d] of d channels, a multiple of 4 up to 128"
KEYS = "wanted [2, 3, panels, 2, 16, 4] as kv_cache_shapes gives them"
VALUES = "wanted [2, 3, 8, 8, 4], as many keys as k_cache has"
GAPS = "has gaps within an image, wanted them between images at most"


def _codes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int8)


def _ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _floats(*values: float) -> Tensor:
    return torch.tensor(values)


def _table(value: float) -> Tensor:
    """One bad entry, in head 1 and channel 6."""
    table = torch.ones(H, D)
    table[1, 6] = value
    return table


def _arguments(op: str) -> dict:
    """Valid arguments of each operator; the cases below spoil one."""
    x = torch.ones(B, H, TOKENS, D)
    k_cache, v_cache = ops.empty_kv_cache(B, H, 16 * PANELS, D)
    cache, tables = {"k_cache": k_cache, "v_cache": v_cache}, torch.ones(H, D)
    k, v = {"k_scale": tables}, {"v_scale": tables, "v_shift": tables}
    if op == "store_kv":
        return {"k": x, "v": x, **cache, **k, "k_shift": tables, **v}
    if op == "store_qkv":
        return {"qkv": torch.ones(B, TOKENS, 3, H, D), **cache, **k, "k_shift": tables, **v}
    out = {"out_inv_scale": torch.ones(40), "out_zero": _ints(*range(40)), "out_bits": 6}
    return {"q": x, **cache, **k, **v, **(out if op in CODES else {})}


def _of_lead(x: Tensor, message: str) -> list[tuple[tuple[str], dict, str]]:
    """The same about the leading argument of each operator."""
    return [((op,), {name: x}, f"{name} {message}") for op, name in
            (("store_kv", "k"), *((read, "q") for read in READS))]  # fmt: skip


def _of_size(size: int) -> dict:
    """Heads of so many channels, and what fits them."""
    k_cache, v_cache = ops.empty_kv_cache(B, H, 16, size)
    tables = dict.fromkeys(("k_scale", "v_scale", "v_shift"), torch.ones(H, size))
    return {"q": torch.ones(B, H, 1, size), "k_cache": k_cache, "v_cache": v_cache, **tables}


VECTORS = ("q_weight", "q_bias", "k_weight", "k_bias")
SHIFTS = [(ALL, "v_shift"), (STORES, "k_shift")]
TABLES = [(ALL, "k_scale"), (ALL, "v_scale"), *SHIFTS]

# operators, spoiled arguments, message after "<op>: ", in the order of the checks; those of the
# second list need the data, so that fake kernels do not know them
SHAPE_CASES = [
    # heads
    *_of_lead(torch.ones(H, TOKENS, D), "has shape [3, 5, 8], wanted [B, H, t, d]"),
    *_of_lead(torch.ones(()), "has shape [], wanted [B, H, t, d]"),
    *_of_lead(torch.ones(B, H, TOKENS, D, dtype=torch.float64), f"has dtype float64, {FLOATS}"),
    *_of_lead(_codes(B, H, TOKENS, D), f"has dtype int8, {FLOATS}"),
    *_of_lead(torch.ones(B, H, TOKENS, 6), f"has shape [2, 3, 5, 6], {HEADS}"),
    *_of_lead(torch.ones(B, H, TOKENS, 132), f"has shape [2, 3, 5, 132], {HEADS}"),
    *_of_lead(torch.ones(B, H, TOKENS, 0), f"has shape [2, 3, 5, 0], {HEADS}"),
    *_of_lead(torch.ones(B, 0, TOKENS, D), f"has shape [2, 0, 5, 8], {HEADS}"),
    (("store_kv",), {"v": torch.ones(B, H, 4, D)}, "v has shape [2, 3, 4, 8], wanted [2, 3, 5, 8]"),
    (("store_kv",), {"v": torch.ones(H, TOKENS, D)},
     "v has shape [3, 5, 8], wanted [2, 3, 5, 8]"),
    (("store_kv",), {"v": torch.ones(B, H, TOKENS, D, dtype=torch.int32)},
     f"v has dtype int32, {FLOATS}"),
    # heads of all three
    *[(("store_qkv",), {"qkv": torch.ones(*shape)},
       f"qkv has shape {list(shape)}, wanted [B, t, 3, H, d]")
      for shape in ((B, TOKENS, 3 * H, D), (B, TOKENS, 2, H, D), (B, TOKENS, 4, H, D), (3,))],
    (("store_qkv",), {"qkv": _codes(B, TOKENS, 3, H, D)}, f"qkv has dtype int8, {FLOATS}"),
    *[(("store_qkv",), {"qkv": torch.ones(B, TOKENS, 3, *shape)},
       f"qkv has shape {[B, TOKENS, 3, *shape]}, wanted heads [B, t, 3, H, d] of d channels, a "
       "multiple of 4 up to 128") for shape in ((H, 6), (H, 132), (H, 0), (0, D))],
    # what is done to them
    (("store_qkv",), {"norm": "batch"},
     "norm is 'batch', wanted one of none, l2, layer, rms"),
    *[(("store_qkv",), {"norm": norm, "eps": eps},
       f"eps is {eps:g}, wanted a finite float32 above 0")
      for norm in ("l2", "layer", "rms") for eps in (0.0, -1.0, NAN, 1e-60, INF, 3.4028236e38)],
    *[(("store_qkv",), {name: torch.ones(D, dtype=torch.float64)},
       f"{name} has dtype float64, {FLOATS}") for name in VECTORS],
    *[(("store_qkv",), {name: torch.ones(H)},
       f"{name} has 3 entries, wanted 8 (one for each channel of a head)") for name in VECTORS],
    *[(("store_qkv",), {name: torch.ones(1, D)}, f"{name} has shape [1, 8], wanted one dimension")
      for name in VECTORS],
    (("store_qkv",), {"q_factors": torch.ones(D)},
     "q_factors has 8 entries, wanted 3 (one for each head)"),
    (("store_qkv",), {"q_factors": _ints(1, 2, 3)}, f"q_factors has dtype int32, {FLOATS}"),
    (("store_qkv",), {"rotation": torch.ones(TOKENS, D // 2, 2, dtype=torch.float64)},
     "rotation has dtype float64, wanted float32"),
    *[(("store_qkv",), {"rotation": torch.ones(*shape)},
       f"rotation has shape {list(shape)}, wanted [5, 4, 2]: cosine and sine for every token and "
       "pair of channels") for shape in ((4, 4, 2), (TOKENS, D, 2), (TOKENS, 4), (TOKENS, 4, 1))],
    # the cache
    (ALL, {"k_cache": _codes(B, H, PANELS, 2, 16)}, f"k_cache has shape [2, 3, 2, 2, 16], {KEYS}"),
    (ALL, {"k_cache": _codes(3)}, f"k_cache has shape [3], {KEYS}"),
    *[(ALL, {"k_cache": _codes(*shape)}, f"k_cache has shape {list(shape)}, {KEYS}") for shape in (
        (1, H, PANELS, 2, 16, 4), (B, 2, PANELS, 2, 16, 4), (B, H, 0, 2, 16, 4),
        (B, H, PANELS, 3, 16, 4), (B, H, PANELS, 2, 8, 4), (B, H, PANELS, 2, 16, 8))],
    *[(ALL, {"v_cache": _codes(*shape)}, f"v_cache has shape {list(shape)}, {VALUES}")
      for shape in ((1, H, 8, D, 4), (B, 2, 8, D, 4), (B, H, 4, D, 4), (B, H, 8, 4, 4),
                    (B, H, 8, D, 8), (B, H, 8, D), (B, H, 8, D, 4, 1))],
    (ALL, {"k_cache": torch.zeros(B, H, PANELS, 2, 16, 4)}, "k_cache has dtype float32, "
     "wanted int8"),
    (ALL, {"v_cache": torch.zeros(B, H, 8, D, 4, dtype=torch.uint8)},
     "v_cache has dtype uint8, wanted int8"),
    (ALL, {"k_cache": _codes(1, 1, 1, 1, 1, 1).expand(B, H, 4097, 2, 16, 4)},
     "k_cache has 65552 keys, wanted at most 65536 so that sums fit in int32"),
    # tables
    *[(names, {table: torch.ones(H, D, dtype=torch.float64)},
       f"{table} has dtype float64, wanted float32") for names, table in TABLES],
    *[(names, {table: torch.ones(*shape)},
       f"{table} has shape {list(shape)}, wanted [3, 8] (heads, channels)")
      for names, table in TABLES for shape in ((H * D,), (D, H), (1, D))],
    # limits, positions, output
    (READS, {"limits": torch.ones(TOKENS)}, "limits has dtype float32, wanted int32"),
    (READS, {"limits": torch.ones(TOKENS, dtype=torch.int64)},
     "limits has dtype int64, wanted int32"),
    (READS, {"limits": _ints(1, 2)},
     "limits has 2 entries, wanted 5 (one for each query)"),
    (READS, {"limits": _ints(1, 2, 3, 4, 5)[None]},
     "limits has shape [1, 5], wanted one dimension"),
    (ALL, {"position": torch.zeros(1, dtype=torch.int64)},
     "position has dtype int64, wanted int32"),
    (READS, {"limits": _ints(1, 2, 3, 4, 5), "position": _ints(0)},
     "limits and position are both given, wanted one of them"),
    (("attention",), {"out_dtype": torch.int8}, f"out_dtype is int8, {FLOATS}"),
    (("attention",), {"out_dtype": torch.float64}, f"out_dtype is float64, {FLOATS}"),
    # codes
    (CODES, {"out_bits": 5}, "out_bits is 5, wanted 4, 6 or 8"),
    (CODES, {"out_inv_scale": _ints(*range(40))}, "out_inv_scale has dtype int32, wanted float32"),
    (CODES, {"out_inv_scale": torch.ones(4), "out_zero": _ints(0, 0, 0, 0)},
     "out_inv_scale has 4 positions, but out_position 0 + tokens 5 = 5 are needed"),
    (CODES, {"out_zero": torch.ones(40)}, "out_zero has dtype float32, wanted int32"),
    (CODES, {"out_position": torch.zeros(1, dtype=torch.int64)},
     "out_position has dtype int64, wanted int32"),
    *[(CODES, {"out_rotation": block}, f"out_rotation is {block} and d 8; wanted 0, or a power of "
       "two from 2 to 16 that divides d") for block in (-2, 1, 3, 16, 32)],
    (CODES, {**_of_size(32), "out_rotation": 32}, "out_rotation is 32 and d 32; wanted 0, or a "
     "power of two from 2 to 16 that divides d"),
]  # fmt: skip

DATA_CASES = [
    (ALL, {"k_cache": _codes(B, H, 2 * PANELS, 2, 16, 4)[:, :, ::2]}, f"k_cache {GAPS}"),
    (ALL, {"k_cache": _codes(B, H, PANELS, 2, 4, 16).transpose(4, 5)}, f"k_cache {GAPS}"),
    (ALL, {"k_cache": _codes(B, 4, PANELS, 2, 16, 4)[:, :H]}, None),  # a gap between images
    (ALL, {"v_cache": _codes(B, 2 * H, 8, D, 4)[:, ::2]}, f"v_cache {GAPS}"),
    (ALL, {"v_cache": _codes(B, H, 8, D, 8)[..., :4]}, f"v_cache {GAPS}"),
    (ALL, {"v_cache": _codes(2 * B, H, 8, D, 4)[::2]}, None),
    *[(names, {table: _table(value)}, f"{table}[1, 6] is {text}, wanted finite numbers")
      for names, table in SHIFTS for value, text in ((NAN, "nan"), (INF, "inf"), (-INF, "-inf"))],
    *[(ALL, {table: _table(value)}, f"{table}[1, 6] is {text}, wanted finite numbers above 0")
      for table in ("k_scale", "v_scale")
      for value, text in ((NAN, "nan"), (INF, "inf"), (0.0, "0"), (-2.0, "-2"))],
    *[(names, {table: _table(-3e38)}, None) for names, table in SHIFTS],
    (ALL, {"k_scale": _table(1e-45)}, None),
    (READS, {"limits": _ints(1, 2, 0, 4, 5)}, "limits[2] is 0, wanted 1 to 32"),
    (READS, {"limits": _ints(1, 2, 3, 33, 5)}, "limits[3] is 33, wanted 1 to 32"),
    (ALL, {"position": _ints(1, 2)}, "position has shape [2], wanted one element"),
    (ALL, {"position": _ints()}, "position has shape [0], wanted one element"),
    (ALL, {"position": _ints(-1)}, "position is -1, wanted 0 or more"),
    (ALL, {"position": _ints(28)},
     "k_cache has 32 positions, but position 28 + tokens 5 = 33 are needed"),
    (ALL, {"position": _ints(27)}, None),
    (READS, {"q": torch.ones(B, H, 33, D)},
     "k_cache has 32 positions, but position 0 + tokens 33 = 33 are needed"),
    (READS, {"q": torch.ones(B, H, 33, D), "limits": torch.ones(33, dtype=torch.int32)},
     None),
    (CODES, {"out_inv_scale": _floats(1, 1, 1, INF, 1), "out_zero": _ints(0, 0, 0, 0, 0)},
     "out_inv_scale[3] is inf, wanted finite numbers above 0"),
    (CODES, {"out_zero": _ints(0, 64, *range(38))}, "out_zero[1] is 64, wanted 0 to 63"),
    (CODES, {"out_position": _ints(0, 1)}, "out_position has shape [2], wanted one element"),
    (CODES, {"out_position": _ints(-1)}, "out_position is -1, wanted 0 or more"),
    (CODES, {"out_position": _ints(36)},
     "out_inv_scale has 40 positions, but out_position 36 + tokens 5 = 41 are needed"),
    (CODES, {"out_position": _ints(35), "position": _ints(27), "out_rotation": 8}, None),
    (CODES, {"out_inv_scale": torch.ones(1), "out_zero": _ints(9)}, None),
    (("store_kv",), {"k": torch.ones(B, H, 33, D), "v": torch.ones(B, H, 33, D)},
     "k_cache has 32 positions, but position 0 + tokens 33 = 33 are needed"),
    (("store_qkv",), {"qkv": torch.ones(B, 33, 3, H, D)},
     "k_cache has 32 positions, but position 0 + tokens 33 = 33 are needed"),
    (("store_qkv",), {"eps": 0.0}, None),
    *[(("store_qkv",), {"norm": "rms", "eps": eps}, None) for eps in (1e-45, 1e-30, 3.4028235e38)],
    (("attention",), {"k_cache": _codes(B, H, 4096, 2, 16, 4),
                      "v_cache": _codes(B, H, 16384, D, 4)}, None),
    (("attention",), _of_size(128), None),
]  # fmt: skip


@pytest.mark.parametrize(("op", "spoiled", "message"), each(SHAPE_CASES + DATA_CASES))
def test_message(op, spoiled, message):
    check_refusal(op, {**_arguments(op), **spoiled}, message)


@pytest.mark.parametrize(("op", "spoiled", "message"), each(SHAPE_CASES))
def test_fake_message(op, spoiled, message):
    """What the fake kernels can see without data: the same words."""
    check_fake_refusal(op, {**_arguments(op), **spoiled}, message)


@pytest.mark.parametrize(("op", "spoiled", "message"), each(DATA_CASES))
def test_fake_kernels_refuse_nothing_else(op, spoiled, message):
    call_fake(op, {**_arguments(op), **spoiled})


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *[
            (op, name)
            for op in ALL
            for name in _arguments(op)
            if name not in ("k", "q", "qkv", "out_bits")
        ],
        *[(op, "position") for op in ALL],
        *[(op, "limits") for op in READS],
        ("attention_quantize", "out_position"),
        *[("store_qkv", name) for name in (*VECTORS, "q_factors", "rotation")],
    ],
)
def test_device(op, name):
    arguments = _arguments(op)
    lead = next(iter(arguments))
    optional = {
        "position": _ints(1), "out_position": _ints(1), "limits": _ints(1, 2, 3, 4, 5),
        "q_factors": torch.ones(H), "rotation": torch.ones(TOKENS, D // 2, 2),
        **dict.fromkeys(VECTORS, torch.ones(D)),
    }  # fmt: skip
    value = {**optional, **arguments}[name]
    message = f"{op}: {name} is on meta, but {lead} is on cpu; wanted all on one device"
    with pytest.raises(ValueError, match=message):
        getattr(ops, op)(**{**arguments, name: value.to("meta")})
    with pytest.raises((RuntimeError, ValueError), match=message):
        call_fake(op, {**_arguments(op), name: value.to("meta")})


@pytest.mark.parametrize("op", ALL)
def test_valid_arguments_pass(op):
    getattr(ops, op)(**_arguments(op))
    call_fake(op, _arguments(op))


@pytest.mark.parametrize("size", [-4, 0, 1, 6, 127, 132, 256])
def test_heads_of_caches(size):
    message = f"kv_cache_shapes: heads of {size} channels; wanted a multiple of 4 up to 128"
    with pytest.raises(ValueError) as caught:
        ops.kv_cache_shapes(1, 1, 16, size)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match=message):
        ops.empty_kv_cache(1, 1, 16, size)
