"""Quantizing the attention products of a model: ranges, the choice of the softmax grid."""

import pytest
import torch

from ptq4arvg import load_model
from ptq4arvg.attention import SOFTMAX_KINDS, quantize_attention_
from ptq4arvg.calibration import Calibration
from ptq4arvg.methods import get_method
from ptq4arvg.nn import QuantAttention


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
