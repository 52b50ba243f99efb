"""Quantizing the attention products of a model: ranges, the choice of the softmax grid."""

import pytest
import torch

from ptq4arvg import attention, load_model
from ptq4arvg.attention import (
    BALANCES,
    HEADROOM,
    SOFTMAX_KINDS,
    _errors,
    _integer_core,
    _Ranges,
    _replay,
    integer_attention_,
    quantize_attention_,
)
from ptq4arvg.calibration import Calibration, calibrate
from ptq4arvg.evaluation import agreement, evaluation_rows
from ptq4arvg.methods import get_method
from ptq4arvg.nn import AttentionCore, IntAttention, QuantAttention


def rows(model, n=3):
    ids = torch.randint(512, (n, model.tokens), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.tensor([0, 5, model.null_label])[:n], seed=1, select="given")


@pytest.fixture(scope="module")
def attended():
    """(float model, model with 8-bit attention products, kinds, progress calls, rows)."""
    model, plain = load_model("var-tiny"), load_model("var-tiny")
    calls = []
    kinds = quantize_attention_(model, rows(model), 8, progress=lambda *call: calls.append(call))
    return plain, model, kinds, calls, rows(model)


def test_every_core_is_replaced_by_a_kind_that_exists(attended):
    _, model, kinds, calls, _ = attended
    assert list(kinds) == model.attention_cores()
    assert set(kinds.values()) <= set(SOFTMAX_KINDS)
    for name, kind in kinds.items():
        core = model.transformer.get_submodule(name)
        assert isinstance(core, QuantAttention) and core.softmax == kind
    assert calls[-1] == ("attention", len(kinds), len(kinds))


def test_grids_cover_the_calibration_rows(attended):
    plain, model, _, _, calibration = attended
    name = model.attention_cores()[0]
    seen = []
    handle = plain.transformer.get_submodule(name).register_forward_pre_hook(
        lambda _m, args: seen.append(args[:3])
    )
    plain.replay(calibration.ids, calibration.labels)
    handle.remove()
    core, (q, k, v) = model.transformer.get_submodule(name), seen[0]
    for operand, x, dims in (("q", q, (0, 3)), ("k", k, (0, 3)), ("v", v, (0, 2))):
        scale, zero = getattr(core, f"{operand}_scale"), getattr(core, f"{operand}_zero")
        low, high = -zero * scale, (255 - zero) * scale
        slack = scale / 2 + 1e-6
        assert (x.amin(dims) >= low - slack).all() and (x.amax(dims) <= high + slack).all()


def test_errors_are_summed_over_rows_for_every_head():
    model = load_model("rar-tiny")
    name, calibration = model.attention_cores()[0], rows(model)
    core = model.transformer.get_submodule(name)
    off = torch.arange(float(model.config.num_heads))[:, None, None]  # [H, 1, 1]
    near = [lambda *args, k=k: core.forward(*args).double() + k * off for k in (0, 1, 2)]
    found = _errors(model, calibration, 1, {name: near})[name]
    outputs = off.new_tensor([len(calibration.labels), model.positions]).prod()
    outputs *= model.config.embed_dim // model.config.num_heads
    wanted = torch.tensor([0, 1, 4])[:, None] * off.flatten().square() * outputs
    torch.testing.assert_close(found, wanted.double())


def test_the_kind_of_lower_error_is_taken(monkeypatch):
    """Of all heads together."""
    model = load_model("rar-tiny")
    lower = [n % 2 for n in range(len(model.attention_cores()))]

    def errors(_model, _rows, _size, candidates):
        both = torch.tensor([[5.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
        pairs = zip(candidates, lower, strict=True)
        return {name: both if low else both.flip(0) for name, low in pairs}

    monkeypatch.setattr(attention, "_errors", errors)
    kinds = quantize_attention_(model, rows(model), 8)
    assert list(kinds.values()) == [SOFTMAX_KINDS[low] for low in lower]


def test_eight_bits_change_the_logits_little(attended):
    plain, model, _, _, calibration = attended
    exact = plain.replay(calibration.ids, calibration.labels)
    error = (model.replay(calibration.ids, calibration.labels) - exact).square().sum()
    assert 0 < error / exact.square().sum() < 1e-3


@pytest.mark.parametrize("kind", SOFTMAX_KINDS)
def test_the_grid_of_the_softmax_can_be_given(kind):
    model = load_model("var-tiny")
    kinds = quantize_attention_(model, rows(model, 1), 6, softmax=kind)
    assert set(kinds.values()) == {kind}
    assert {model.transformer.get_submodule(name).softmax for name in kinds} == {kind}


def test_methods_name_the_grid_of_the_softmax():
    assert get_method("repq").softmax == "log_sqrt2"
    assert get_method("ptq4arvg").softmax == "best"
    with pytest.raises(ValueError, match=r"softmax is 'log2'; wanted one of best, uniform, log_sq"):
        get_method("rtn", softmax="log2")


def test_hooks_are_removed_when_a_pass_fails():
    model = load_model("var-tiny")
    broken = rows(model)
    broken.ids[0, 0] = 10**6
    with pytest.raises(IndexError):
        quantize_attention_(model, broken, 8)
    for name in model.attention_cores():
        assert not model.transformer.get_submodule(name)._forward_hooks


# In integers.

# Next-token KL against the float model, in nats, over other rows than those of the calibration.
# Measured with 32 rows: 0.0002, 0.0002 and 0.0005, and the bounds are twice that. Ranges without
# headroom cost more (0.004 with 8 rows for PAR).
KL = {"var-tiny": 4e-4, "rar-tiny": 4e-4, "par-tiny": 1e-3}


@pytest.fixture(scope="module", params=KL)
def integers(request):
    """(float model, model with attention in integers, balances, progress calls, rows)."""
    plain, model = load_model(request.param), load_model(request.param)
    calls, given = [], rows(model)
    found = integer_attention_(model, given, 2, progress=lambda *call: calls.append(call))
    return plain, model, found, calls, given


def test_every_core_is_replaced_by_one_in_integers(integers):
    _, model, balances, calls, _ = integers
    assert list(balances) == model.attention_cores()
    for name, of_heads in balances.items():
        assert type(model.transformer.get_submodule(name)) is IntAttention
        assert len(of_heads) == model.config.num_heads and set(of_heads) <= set(BALANCES)
    assert calls == [("attention", i + 1, len(balances)) for i in range(len(balances))]


def test_no_key_or_value_of_the_calibration_rows_is_clipped(integers):
    plain, model, _, _, calibration = integers
    seen = {name: [] for name in model.attention_cores()}
    hooks = {name: lambda _m, args, _y, kept=kept: kept.append(args) for name, kept in seen.items()}
    _replay(plain, calibration, 2, hooks)
    for name, calls in seen.items():
        core = model.transformer.get_submodule(name)
        for operand, at in (("k", 1), ("v", 2)):
            x = torch.cat([args[at] for args in calls])
            scale, shift = (getattr(core, f"{operand}_{kind}") for kind in ("scale", "shift"))
            codes = (x - shift[:, None]) / scale[:, None]
            full = 127 / HEADROOM
            assert codes.abs().max() <= full + 0.01  # float32 rounds the scale and the shift
            reach = codes.abs().amax((0, 2))  # [H, d]
            # Some channel of every head, and every channel of the values, fills its range.
            assert (reach.amax(1) > full - 0.1).all()
            if operand == "v":
                assert (reach > full - 0.1).all()


def test_every_head_has_the_balance_of_least_error(integers):
    plain, model, balances, _, calibration = integers
    name = model.attention_cores()[-1]
    ranges = {name: _Ranges({"k": (0, 2), "v": (0, 2)})}
    _replay(plain, calibration, 2, ranges)
    every = [_integer_core(ranges[name], balance) for balance in BALANCES]
    chosen = model.transformer.get_submodule(name)
    errors = _errors(plain, calibration, 2, {name: [*every, chosen]})[name]
    assert errors.shape == (len(BALANCES) + 1, model.config.num_heads)
    assert torch.equal(errors[-1], errors[:-1].amin(0))
    for head, balance in enumerate(balances[name]):
        assert errors[BALANCES.index(balance), head] == errors[-1, head]


@pytest.mark.parametrize("name", KL)
def test_the_logits_stay_close(name):
    plain, model = load_model(name), load_model(name)
    integer_attention_(model, calibrate(plain, samples=32, keep=32))
    compared = evaluation_rows(plain, torch.arange(4), seed=7)
    assert 0 < agreement(plain, model, *compared).kl < KL[name]


@pytest.mark.parametrize("what", ["channel", "head", "all"])
@pytest.mark.parametrize("operand", ["k", "v"])
def test_channels_and_heads_that_are_always_zero(operand, what):
    model = load_model("var-tiny")
    c, heads = model.config.embed_dim, model.config.num_heads
    size = c // heads
    dead = {"channel": slice(size + 3, size + 4), "head": slice(size, 2 * size), "all": slice(c)}
    linear = model.transformer.blocks[0].attn.mat_qkv
    with torch.no_grad():
        for table in (linear.weight, linear.bias):
            table[("q", "k", "v").index(operand) * c :][:c][dead[what]] = 0
    calibration = rows(model)
    exact = model.replay(calibration.ids, calibration.labels)
    integer_attention_(model, calibration)
    core = model.transformer.blocks[0].attn.core
    assert all(table.isfinite().all() for table in core.buffers())
    assert (core.k_scale > 0).all() and (core.v_scale > 0).all()
    logits = model.replay(calibration.ids, calibration.labels)
    assert (logits - exact).square().sum() < 1e-3 * exact.square().sum()
    # Values that were never seen are clipped, and change little.
    q, k, v = torch.randn(3, 1, heads, 5, size, generator=torch.Generator().manual_seed(0))
    assert core(q, k, v).isfinite().all()


def test_a_model_without_cores_is_refused():
    model = load_model("mar-tiny")
    ids = torch.zeros(1, model.tokens, model.config.channels)
    empty = Calibration(ids, torch.zeros(1, dtype=torch.int64), 0, "given")
    with pytest.raises(ValueError, match="mar-tiny keeps its attention products in floating point"):
        quantize_attention_(model, empty, 8)


def test_integer_hooks_are_removed_when_a_pass_fails():
    model = load_model("var-tiny")
    broken = rows(model)
    broken.ids[0, 0] = 10**6
    with pytest.raises(IndexError):
        integer_attention_(model, broken)
    for name in model.attention_cores():
        core = model.transformer.get_submodule(name)
        assert type(core) is AttentionCore and not core._forward_hooks
