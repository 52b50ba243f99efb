"""`quantize_` with a decoder in integers: arguments, recipe and report, and the check of both."""

import copy

import pytest
import torch

import ptq4arvg
from ptq4arvg import ops
from ptq4arvg.calibration import Calibration
from ptq4arvg.decoder import quantize_decoder_
from ptq4arvg.fuse import unfuse_
from ptq4arvg.models.convolutions import decoder_convolutions
from ptq4arvg.nn import PackedConv2d
from ptq4arvg.numerics import Scheme, get_scheme
from ptq4arvg.pipeline import quantize_
from ptq4arvg.verify import check_integer_path


def rows(model):
    ids = torch.randint(512, (3, model.tokens), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.tensor([0, 5, model.null_label]), seed=1, select="given")


@pytest.fixture(scope="module")
def plain():
    """Tests must leave it as it is."""
    return ptq4arvg.load_model("rar-tiny")


def quantized(plain, decoder="W6A6", **options):
    model = copy.deepcopy(plain)
    options = {"scheme": "W8A8", "method": "rtn", "calibration": rows(model)} | options
    quantize_(model, decoder=decoder, **options)
    return model


@pytest.fixture(scope="module")
def model(plain):
    return quantized(plain)


def types(model):
    return {type(conv) for conv in decoder_convolutions(model.tokenizer).values()}


def test_recipe_and_report_tell_of_the_decoder(plain, model):
    assert types(model) == {PackedConv2d} and types(plain) != {PackedConv2d}
    assert model.recipe["decoder"] == "W6A6" and model.recipe["scheme"] == "W8A8"
    record = model.report.decoder
    assert record["scheme"] == "W6A6" and record["images"] == 2
    assert record["convolutions"] == len(decoder_convolutions(model.tokenizer))
    assert model.report.to_dict()["decoder"] == record
    assert len(model.report.layers) == len(plain.linears())  # its convolutions are no linears


def test_without_a_decoder_nothing_is_told(plain):
    model = quantized(plain, None)
    assert types(model) == types(plain)
    assert "decoder" not in model.recipe and model.report.decoder is None


def test_transformer_and_decoder_do_not_depend_on_each_other(plain, model):
    other = quantized(plain, None)
    mine, theirs = model.transformer.state_dict(), other.transformer.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    third = quantized(plain, Scheme("W6A6", 6, 6), scheme="W4A8", method="ptq4arvg",
                      rounding="nearest")  # fmt: skip
    assert third.recipe["decoder"] == "W6A6"
    mine, theirs = model.tokenizer.state_dict(), third.tokenizer.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(("rounding", "fitted"), [("nearest", False), ("gptq", True)])
def test_the_decoder_is_rounded_as_the_method_rounds(plain, rounding, fitted):
    model, wanted = quantized(plain, "W4A8", rounding=rounding), copy.deepcopy(plain)
    quantize_decoder_(wanted, get_scheme("W4A8"), rows(plain), fitted=fitted)
    mine, theirs = model.tokenizer.state_dict(), wanted.tokenizer.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_with_mean_bits_and_attention_in_integers(plain):
    model = quantized(plain, "w8a8", scheme=None, target_bits=5.5, attention="int8")
    assert model.recipe["decoder"] == "W8A8" and types(model) == {PackedConv2d}
    ids = rows(model).ids
    unfuse_(model)
    assert all(check.passed for check in check_integer_path(model, ids, rows(model).labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": False}, "decoder='W8A8' is computed in integers, and pack=False simulates; "
         "wanted decoder=None"),
        ({"compat": "research"}, "decoder='W8A8' is computed in integers, and compat='research' "
         "simulates; wanted decoder=None"),
        ({"method": "svdquant"}, "method 'svdquant' has no integer path (its low-rank branch reads "
         "float inputs); wanted decoder=None"),
        ({"method": "quarot"}, "method 'quarot' has no integer path (it rotates all channels of an "
         "input together); wanted decoder=None"),
    ],
)  # fmt: skip
def test_what_simulates_is_refused_before_any_work(plain, options, message):
    model, calls = copy.deepcopy(plain), []
    options = {"method": "rtn"} | options
    if "compat" in options:
        del options["method"]
    with pytest.raises(ValueError) as caught:
        quantize_(model, "W8A8", decoder="W8A8", progress=lambda *c: calls.append(c), **options)
    assert str(caught.value) == f"quantize_: {message}"
    untouched(model, plain, calls)


def untouched(model, plain, calls):
    assert not calls and model.recipe is None and model.report is None
    before, after = plain.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("scheme", ["W5A5", "W8", ""])
def test_unknown_schemes_are_refused_before_any_work(plain, scheme):
    model, calls = copy.deepcopy(plain), []
    with pytest.raises(ValueError, match=f"unknown scheme '{scheme}'; wanted one of W8A8, W6A8"):
        quantize_(model, "W8A8", "rtn", decoder=scheme, progress=lambda *c: calls.append(c))
    untouched(model, plain, calls)


def test_decoders_that_cannot_be_are_refused_before_any_work(plain):
    drawn, calls = copy.deepcopy(plain), []
    quantize_decoder_(drawn, get_scheme("W8A8"), rows(plain))
    double = copy.deepcopy(plain).double()
    refusals = (drawn, "quantize_: this model is left quantized in part"), (
        double, "rar-tiny: .*tokenizer.* is in float64, and",
    )  # fmt: skip
    for model, message in refusals:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            quantize_(model, "W8A8", "rtn", decoder="W8A8", progress=lambda *c: calls.append(c))
        assert not calls
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.fixture(scope="module")
def eight(plain):
    """At 8 bits a product reads the sums of the weight."""
    model = quantized(plain, "W8A8")
    unfuse_(model)
    return model


@pytest.fixture
def unfused(eight):
    """(model, ids, labels) for the check of the integer path."""
    return copy.deepcopy(eight), rows(eight).ids, rows(eight).labels


def test_the_check_compares_convolutions(unfused):
    checks = check_integer_path(*unfused)
    names = [f"tokenizer.{name}" for name in decoder_convolutions(unfused[0].tokenizer)]
    found = {check.name: check for check in checks if check.name.startswith("tokenizer.")}
    assert list(found) == names
    assert all(check.passed for check in checks)
    assert {check.error for check in found.values()} == {check.bound for check in found.values()}
    assert {check.bound for check in found.values()} == {0.0}
    assert all(check.kernel.startswith("conv2d.w8.") for check in found.values())
    for conv in decoder_convolutions(unfused[0].tokenizer).values():
        assert conv.operators is ops


def failed(unfused):
    return [check.name for check in check_integer_path(*unfused) if not check.passed]


@pytest.mark.parametrize("op", ["quantize_map", "conv2d"])
def test_the_check_finds_an_operator_that_computes_something_else(monkeypatch, unfused, op):
    right, names = getattr(ops, op), list(decoder_convolutions(unfused[0].tokenizer))
    calls = []

    def wrong(*args, **options):
        y = right(*args, **options)
        calls.append(y)
        if len(calls) == 5:  # one number of one convolution, as little as can be
            flat = y.view(-1)
            flat[0] += 1 if op == "quantize_map" else flat[0].abs() * 2**-23
        return y

    monkeypatch.setattr(ops, op, wrong)
    assert failed(unfused) == [f"tokenizer.{names[4]}"]
    assert len(calls) == len(names)


@pytest.mark.parametrize("buffer", ["w_sum", "packed"])
def test_the_check_finds_a_broken_convolution(unfused, buffer):
    """A weight and its sums that do not belong together."""
    names = list(decoder_convolutions(unfused[0].tokenizer))
    conv = decoder_convolutions(unfused[0].tokenizer)[names[3]]
    assert not failed(unfused)
    if buffer == "w_sum":
        conv.w_sum += 1
    else:
        conv.packed = ops.pack_weight(conv.canonical().codes.flip(0), None, 8)
    assert failed(unfused) == [f"tokenizer.{names[3]}"]
