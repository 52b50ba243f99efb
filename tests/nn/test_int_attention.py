"""Attention in integers: the operator in its module, step by step and whole, and which masks."""

import copy
import math

import pytest
import torch

from ptq4arvg import ops
from ptq4arvg.nn import AttentionCore, Cursor, IntAttention, Prologue
from ptq4arvg.nn.int_attention import limits_of
from ptq4arvg.reference_attention import attention as reference_attention
from ptq4arvg.reference_attention import empty_kv_cache
from ptq4arvg.reference_attention import store_kv as reference_store_kv

B, H, T, D = 2, 3, 30, 20
SCALES = (1, 4, 9, 16)  # positions of each scale, as in VAR
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def qkv(t=T, dtype=torch.float32, seed=0):
    """Views of one projection, as the models make them."""
    x = torch.randn(B, t, 3, H, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
    return q / math.sqrt(D), k, v


def core_of(k, v):
    """Scales and shifts that just hold k and v."""

    def scale_and_shift(x):
        lo, hi = x.float().amin((0, 2)), x.float().amax((0, 2))
        return (hi - lo) / 254, (lo + hi) / 2

    return IntAttention(*scale_and_shift(k), *scale_and_shift(v))


def by_reference(core, q, k, v, **where):
    cache = empty_kv_cache(B, H, k.shape[2], D)
    reference_store_kv(k, v, *cache, core.k_scale, core.k_shift, core.v_scale, core.v_shift)
    y = reference_attention(
        q, *cache, core.k_scale, core.v_scale, core.v_shift, out_dtype=q.dtype, **where
    )
    return y.unflatten(2, (H, D)).transpose(1, 2)


def step_of(core, q, k, v, cache, cursor, mask=None):
    """A decoding step whose linear has given q, k and v."""
    qkv = torch.stack([x.transpose(1, 2) for x in (q, k, v)], 2)
    return core.attend(qkv, Prologue(), cache, cursor, mask).unflatten(2, (H, D)).transpose(1, 2)


def causal(t=T):
    return torch.ones(t, t, dtype=torch.bool).tril()


def by_scales():
    level = torch.repeat_interleave(torch.arange(len(SCALES)), torch.tensor(SCALES))
    return level[:, None] >= level


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, causal(), by_scales()[None, None]])
def test_it_computes_what_the_reference_says(dtype, mask):
    q, k, v = qkv(dtype=dtype)
    core = core_of(k, v)
    y = core(q, k, v, mask)
    limits = None if mask is None else mask.reshape(T, T).sum(1, dtype=torch.int32)
    assert torch.equal(y, by_reference(core, q, k, v, limits=limits))
    exact = AttentionCore()(q, k, v, mask).float()
    # Queries, keys and probabilities of 8 bits, each with an error of less than half a percent.
    error = (y.float() - exact).square().sum() / exact.square().sum()
    assert 0 < error < (1e-2 if dtype == torch.float32 else 2e-2) ** 2


def test_of_one_length_the_last_is_that_of_all():
    q, k, v = qkv()
    core = core_of(k, v)
    some = core(q[:, :, -4:], k, v)  # as many keys as there are, for any number of queries
    assert torch.equal(some, core(q, k, v)[:, :, -4:])


@pytest.mark.parametrize("mask", [None, causal(), torch.ones(T, 1, dtype=torch.bool)])
def test_of_what_a_linear_gives_it_computes_the_same(mask):
    q, k, v = qkv()
    core = core_of(k, v)
    x = torch.stack([part.transpose(1, 2) for part in (q, k, v)], 2)
    y = core.attend(x, Prologue(), mask=mask)
    assert torch.equal(y.unflatten(2, (H, D)).transpose(1, 2), core(q, k, v, mask))


def test_a_mask_of_more_keys_than_there_are_is_refused():
    q, k, v = qkv()
    x = torch.stack([part.transpose(1, 2) for part in (q, k, v)], 2)
    for core in (core_of(k, v), AttentionCore()):
        with pytest.raises(RuntimeError, match=r"expand|must match"):
            core.attend(x, Prologue(), mask=torch.ones(T, T + 2, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("steps", "mask"),
    [
        ((1,) * T, causal()),
        (SCALES, by_scales()),
        ((T,), torch.ones(T, T, dtype=torch.bool)),
        ((2, *(4,) * 7), torch.arange(2, T + 2)[:, None] // 4 >= torch.arange(2, T + 2) // 4),
    ],
)
def test_steps_with_a_cache_equal_the_whole_sequence(steps, mask, dtype):
    q, k, v = qkv(dtype=dtype)
    core, cursor = core_of(k, v), Cursor()
    whole = core(q, k, v, mask)
    room = T + 5
    codes = torch.randint(-128, 128, (2 * B * H * 3 * 16 * D,), generator=torch.Generator())
    # What a cache held before is not read.
    cache = [
        codes[: math.prod(shape)].view(shape).to(core.cache_dtype)
        for shape in core.cache_shapes(B, H, room, D)
    ]
    begin = 0
    for count in steps:
        at = slice(begin, begin + count)
        cursor.set(begin, count)
        step = step_of(core, q[:, :, at], k[:, :, at], v[:, :, at], cache, cursor)
        assert torch.equal(step, whole[:, :, at])
        begin += count


@pytest.mark.parametrize("added", [False, True])
def test_a_first_step_under_a_mask_of_its_own(added):
    """As RAR's and PAR's original code makes it: several positions at once, each with its limit."""
    q, k, v = qkv()
    core, cursor = core_of(k, v), Cursor()
    whole, cache = core(q, k, v, causal()), ops.empty_kv_cache(B, H, T, D)
    for begin, count in ((0, 5), (5, T - 5)):
        at = slice(begin, begin + count)
        mask = causal()[at, : begin + count]
        if added:
            mask = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        cursor.set(begin, count)
        step = step_of(core, q[:, :, at], k[:, :, at], v[:, :, at], cache, cursor, mask)
        assert torch.equal(step, whole[:, :, at])


def test_a_step_that_reads_its_position_from_the_device():
    q, k, v = qkv()
    core, cursor = core_of(k, v), Cursor()
    whole, cache = core(q, k, v, causal()), ops.empty_kv_cache(B, H, T, D)
    cursor.set(0, 1)
    with cursor.on_device(T, q.dtype):
        for t in range(T):
            cursor.position.fill_(t)
            at = slice(t, t + 1)
            step = step_of(core, q[:, :, at], k[:, :, at], v[:, :, at], cache, cursor)
            assert torch.equal(step, whole[:, :, at])


@pytest.mark.parametrize("rows", [(), (1,), (1, 1), (2, 1), (2, 3)])
def test_limits_of_masks(rows):
    keep = by_scales()
    wanted = [sum(SCALES[: i + 1]) for i, count in enumerate(SCALES) for _ in range(count)]
    added = torch.zeros(T, T).masked_fill_(~keep, -torch.inf)
    for mask in (keep, added, added.bfloat16()):
        limits = limits_of(mask.expand(*rows, T, T), T, T, mask.device)
        assert limits.dtype == torch.int32 and limits.tolist() == wanted


def test_limits_of_a_row_for_all_queries_and_of_no_mask():
    row = torch.arange(8) < 5
    assert limits_of(row[None], 3, 8, row.device).tolist() == [5, 5, 5]
    assert limits_of(None, 3, 8, row.device).tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    "mask",
    [
        ~causal(),  # later positions only
        torch.eye(T, dtype=torch.bool),  # a window
        torch.where(causal(), 0.5, -torch.inf),  # a bias
        torch.where(causal(), 0.0, -1e4),  # hidden, but not quite
        torch.stack([causal(), by_scales(), causal()])[None],  # heads that differ
        torch.stack([causal(), by_scales()])[:, None],  # images that differ
    ],
)
def test_other_masks_are_refused(mask):
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"attention in integers: the mask is none that .*'float'"):
        core_of(k, v)(q, k, v, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_stay_in_float32(dtype):
    _, k, v = qkv()
    core = core_of(k, v)
    # As a part of a model, whose other tensors change.
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), core)
    before = {name: table.clone() for name, table in core.state_dict().items()}
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    assert all(torch.equal(core.state_dict()[name], table) for name, table in before.items())
    assert {table.dtype for table in core.buffers()} == {torch.float32}


def test_tables_go_where_the_model_goes():
    _, k, v = qkv()
    core = core_of(k, v).to(device="meta", dtype=torch.bfloat16)
    assert {(t.device.type, t.dtype) for t in core.buffers()} == {("meta", torch.float32)}
    core.to_empty(device="cpu")
    assert {(t.device.type, t.dtype) for t in core.buffers()} == {("cpu", torch.float32)}
    other = core_of(k, v)
    core.load_state_dict(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(core.buffers(), other.buffers(), strict=True))


def test_a_copy_and_a_state_dict_give_the_same():
    q, k, v = qkv()
    core = core_of(k, v)
    assert set(core.state_dict()) == set(IntAttention.TABLES)
    other = IntAttention(*(torch.ones(H, D) for _ in range(4)))
    other.load_state_dict(core.state_dict())
    for again in (other, copy.deepcopy(core)):
        assert torch.equal(again(q, k, v), core(q, k, v))
    assert repr(core) == f"IntAttention({H} heads of {D} channels)"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_output_goes_to_the_projection_without_a_copy(dtype):
    q, k, v = qkv(dtype=dtype)
    core, cursor = core_of(k, v), Cursor()
    cursor.set(0, T)
    cache = ops.empty_kv_cache(B, H, T, D)
    for y in (core(q, k, v), core(q, k, v, causal()), step_of(core, q, k, v, cache, cursor)):
        assert y.dtype == dtype and y.shape == (B, H, T, D)
        rows = y.transpose(1, 2)
        assert rows.is_contiguous()
        assert rows.reshape(B, T, H * D).data_ptr() == y.data_ptr()


def test_caches_of_both_kinds():
    _, k, v = qkv()
    plain, core = AttentionCore(), core_of(k, v)
    assert (plain.integer, plain.cache_dtype) == (False, None)
    assert (core.integer, core.cache_dtype) == (True, torch.int8)
    assert plain.cache_shapes(B, H, 32, D) == ((B, H, 32, D),) * 2
    sizes = [math.prod(shape) for shape in core.cache_shapes(B, H, 32, D)]
    assert sizes == [B * H * 32 * D] * 2  # bytes: a value each
    with pytest.raises(ValueError, match="heads of 22 channels; wanted a multiple of 4 up to 128"):
        core.cache_shapes(B, H, 32, 22)


def test_a_compiler_takes_masks_as_they_are():
    """It cannot look at their numbers; those of the models are in order."""
    q, k, v = qkv()
    core = core_of(k, v)
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, mask), core(q, k, v, mask))
