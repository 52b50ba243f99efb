"""Coordinate descent on codes and scales: what no step may do, and where it ends."""

import pytest
import torch

import ptq4arvg
from ptq4arvg import descent, rounding
from ptq4arvg.methods import get_method
from ptq4arvg.models import load_model
from ptq4arvg.nn import PackedLinear
from ptq4arvg.numerics import quantize_weight
from ptq4arvg.pipeline import quantize_
from ptq4arvg.rounding import channel_products
from tests.test_rounding import compensated_codes, correlated, weight_of


def descended(weight, codes, scale, zero, bits, x):
    return descent.descended(weight, codes, scale, zero, bits, channel_products(x))


def start(bits, x=None, weight=None):
    x = correlated() if x is None else x
    weight = weight_of() if weight is None else weight
    _, scale, zero = quantize_weight(weight, bits, x.square().mean(0))
    return weight, compensated_codes(weight, scale, zero, bits, x), scale, zero, bits, x


def losses(weight, codes, scale, x):
    """Of every row, float64 [N]."""
    error = weight.double() - codes.double() * scale.double()[:, None]
    (h,) = channel_products(x)
    return ((error @ h) * error).sum(1)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_no_row_loses_more_and_most_lose_less(bits, monkeypatch):
    weight, codes, scale, *rest, x = start(bits)
    found, step = descended(weight, codes, scale, *rest, x)
    before, after = losses(weight, codes, scale, x), losses(weight, found, step, x)
    assert (after <= before * (1 + 1e-6)).all()  # a scale is rounded to float32
    assert after.sum() < {8: 0.95, 6: 0.95, 4: 0.85}[bits] * before.sum()
    unseen = correlated(rows=1000)[400:]
    assert losses(weight, found, step, unseen).sum() < losses(weight, codes, scale, unseen).sum()
    monkeypatch.setattr(descent, "TURNS", 1)
    found, step = descended(weight, codes, scale, *rest, x)
    assert after.sum() < losses(weight, found, step, x).sum()  # a turn is not enough


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [128, 7])
def test_no_code_can_move_alone_in_the_end(bits, block, monkeypatch):
    """Every code one up or down, as far as the grid goes, loses at least as much."""
    monkeypatch.setattr(descent, "BLOCK", block)
    monkeypatch.setattr(descent, "TURNS", 100)
    weight, codes, scale, zero, bits, x = start(bits)
    monkeypatch.setattr(descent, "_least_squares", lambda parts, step: step)
    found, step = descended(weight, codes, scale, zero, bits, x)
    assert torch.equal(step, scale)
    low, high = rounding.limits(zero, bits, len(weight), weight.device)
    best = losses(weight, found, step, x)
    for k in range(weight.shape[1]):
        for move in (-1, 1):
            other = found.double()
            other[:, k] = (other[:, k] + move).clamp(low, high)
            assert (losses(weight, other, step, x) >= best * (1 - 1e-12)).all()


def test_blocks_change_nothing(monkeypatch):
    arguments = start(4)
    whole = descended(*arguments)
    monkeypatch.setattr(descent, "BLOCK", 5)
    for one, other in zip(descended(*arguments), whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_stay_within_the_grid(bits):
    weight, codes, scale, zero, bits, x = start(bits, correlated(rank=2))
    found, step = descended(weight, codes.clamp(-3, 3), scale / 3, zero, bits, x)
    low, high = rounding.limits(zero, bits, len(weight), weight.device)
    assert (found >= low[:, None]).all() and (found <= high[:, None]).all()
    assert (step > 0).all() and step.dtype == torch.float32 and found.dtype == torch.int8


def test_the_scale_is_that_of_least_squares():
    weight, codes, _, zero, bits, x = start(4)
    _, step = descended(weight, codes, torch.full((24,), 0.2), zero, bits, x)
    found, again = descended(weight, codes, step, zero, bits, x)
    for factor in (0.999, 1.001):
        assert (losses(weight, found, again, x) <= losses(weight, found, again * factor, x)).all()


def test_rows_and_inputs_of_zeros():
    """A row of zeros has codes of zero and keeps its scale; without inputs the weight decides."""
    weight = weight_of()
    weight[3] = 0
    arguments = start(4, weight=weight)
    codes, scale = descended(*arguments)
    assert not codes[3].any() and scale[3] == arguments[2][3]
    weight, codes, scale, zero, bits, _ = arguments
    found, step = descended(weight, codes, scale, zero, bits, torch.zeros(10, 48))
    assert torch.isfinite(step).all()
    nothing = torch.zeros(10, 48)  # H is the identity: the plain error of the weight
    assert losses(weight, found, step, nothing).sum() < losses(weight, codes, scale, nothing).sum()


def test_the_arguments_are_left_as_they_were():
    arguments = start(4)
    before = [t.clone() if isinstance(t, torch.Tensor) else t for t in arguments]
    descended(*arguments)
    for one, other in zip(arguments, before, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("bits", [8, 4])
def test_a_few_rows_at_a_time_are_all_rows(bits, monkeypatch):
    arguments = start(bits)
    codes, scale = descended(*arguments)
    monkeypatch.setattr(descent, "ROWS", 7)
    found, step = descended(*arguments)
    assert torch.equal(found, codes) and torch.equal(step, scale)


def test_channels_beyond_the_limit_are_unrelated_but_share_the_scale(monkeypatch):
    weight, codes, scale, zero, bits, x = start(4)
    monkeypatch.setattr(rounding, "CHANNELS", 20)
    found, step = descended(weight, codes, scale, zero, bits, x)

    monkeypatch.undo()

    def loss(codes, scale):
        parts = zip(weight.split(20, 1), codes.split(20, 1), x.split(20, 1), strict=True)
        return sum(losses(w, q, scale, own) for w, q, own in parts)

    assert (loss(found, step) <= loss(codes, scale) * (1 + 1e-6)).all()


def test_the_default_descends_at_4_bits():
    method = get_method("ptq4arvg")
    assert [method.rounding_of(bits) for bits in (8, 6, 4)] == ["gptq", "gptq", "descent"]
    assert get_method("rtn").rounding_of(4) == "nearest"
    for rounding_ in ("nearest", "gptq", "descent"):
        assert get_method("rtn", rounding=rounding_).rounding_of(4) == rounding_
        assert get_method("rtn", rounding=rounding_).rounding_of(8) == rounding_


@pytest.mark.slow
def test_a_model_of_two_schemes_is_rounded_by_each():
    """The linears at 4 bits as by descent, the others as by GPTQ."""
    found = {}
    for rounding_ in ("auto", "gptq", "descent"):
        model = load_model("par-tiny")
        rows = ptq4arvg.calibrate(model, samples=8, keep=4)
        quantize_(model, "W6A6", "rtn", rows, rounding=rounding_, ignore=[r"re:layers\.[1-9]"],
                  overrides={r"re:.*w2$": "W4A8"})  # fmt: skip
        found[rounding_] = {
            name: module.canonical().codes
            for name, module in model.named_modules() if isinstance(module, PackedLinear)
        }  # fmt: skip
    assert len(found["auto"]) > 2
    for name, codes in found["auto"].items():
        same = "descent" if name.endswith("w2") else "gptq"
        other = "gptq" if same == "descent" else "descent"
        assert torch.equal(codes, found[same][name])
        assert not torch.equal(codes, found[other][name])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "ptq4arvg"])
def test_a_model_comes_closer_in_integers(method):
    """The layers run with the codes and the scales that were found."""
    reports = {}
    for rounding_ in ("gptq", "descent"):
        model = load_model("par-tiny")
        rows = ptq4arvg.calibrate(model, samples=8, keep=4)
        reports[rounding_] = quantize_(model, "W4A8", method, rows, rounding=rounding_)
        assert model.generate([1]).isfinite().all()
    assert reports["descent"].sqnr_db > reports["gptq"].sqnr_db + 0.2
