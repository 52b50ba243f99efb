"""quantize_ on the bundled model: quality, verification, options, determinism, memory."""

import math

import pytest
import torch
from torch import nn

import ptq4arvg
from ptq4arvg.evaluation import agreement, evaluation_rows, float_logits
from ptq4arvg.fuse import fuse_, unfuse_
from ptq4arvg.models import build_model
from ptq4arvg.nn import PackedLinear, QuantAttention, QuantLinear
from ptq4arvg.pipeline import quantize_
from ptq4arvg.verify import check_integer_path
from tests.models.tiny import TINY

STRESSES = (0.0, 30.0)


@pytest.fixture(scope="module")
def cases():
    """stress -> (calibration rows, rows to compare on, the float model's logits for them)."""
    made = {}
    for stress in STRESSES:
        model = ptq4arvg.load_model("var-tiny", stress=stress)
        rows = ptq4arvg.calibrate(model, samples=32, keep=16, seed=0)
        compared = evaluation_rows(model, torch.arange(0, 32, 4), seed=1)
        made[stress] = rows, compared, float_logits(model, *compared)
    return made


@pytest.fixture(scope="module")
def quantized(cases):
    """(stress, method, scheme) -> (model, report, agreement), made once."""
    made = {}

    def get(stress, method, scheme):
        key = stress, method, scheme
        if key not in made:
            rows, compared, logits = cases[stress]
            model = ptq4arvg.load_model("var-tiny", stress=stress)
            report = quantize_(model, scheme, method, rows)
            made[key] = model, report, agreement(logits, model, *compared)
        return made[key]

    return get


@pytest.mark.parametrize("stress", STRESSES)
def test_the_method_beats_round_to_nearest(quantized, stress):
    _, report, close = quantized(stress, "ptq4arvg", "W6A6")
    _, plain_report, plain = quantized(stress, "rtn", "W6A6")
    assert close.kl < plain.kl / (10 if stress else 1.5)
    assert close.top1 > plain.top1
    assert report.sqnr_db > plain_report.sqnr_db
    assert report.worst.sqnr_db > plain_report.worst.sqnr_db


def test_outlier_channels_cost_next_to_nothing(quantized):
    stressed = quantized(30.0, "ptq4arvg", "W6A6")[2].kl
    assert stressed < 1.5 * quantized(0.0, "ptq4arvg", "W6A6")[2].kl


def test_more_bits_are_closer(quantized):
    kl = {s: quantized(0.0, "ptq4arvg", s)[2].kl for s in ("W8A8", "W6A6", "W4A8")}
    assert kl["W8A8"] < 0.2 * kl["W6A6"] and kl["W6A6"] < kl["W4A8"]


@pytest.mark.parametrize("scheme", ["W8A8", "W6A6", "W4A8"])
def test_everything_is_packed_and_no_float_copy_stays(quantized, scheme):
    model, report, _ = quantized(0.0, "ptq4arvg", scheme)
    assert {layer.name for layer in report.layers} == {spec.name for spec in model.linears()}
    for layer in report.layers:
        module = model.transformer.get_submodule(layer.name)
        assert type(module) is PackedLinear
        assert layer.kernel.startswith("gemm") and math.isfinite(layer.sqnr_db)
        assert layer.bytes_after <= 1.05 * layer.bytes_before * layer.w_bits / 16
        large = [b for b in module.buffers() if b.is_floating_point() and b.ndim == 2]
        assert not large
    left = [n for n, m in model.transformer.named_modules() if isinstance(m, nn.Linear)]
    assert left == ["word_embed"]


def test_integer_path_equals_simulation_layer_by_layer(quantized, cases):
    model, _, _ = quantized(30.0, "ptq4arvg", "W6A6")
    rows = cases[30.0][0]
    unfuse_(model)
    checks = check_integer_path(model, rows.ids[:3], rows.labels[:3])
    fuse_(model)
    assert len(checks) == len(model.linears()) and all(check.passed for check in checks)


def test_fused_and_separate_operators_agree(quantized, cases):
    model, _, _ = quantized(0.0, "ptq4arvg", "W8A8")
    rows = cases[0.0][0]
    fused = model.replay(rows.ids[:2], rows.labels[:2])
    unfuse_(model)
    separate = model.replay(rows.ids[:2], rows.labels[:2])
    assert fuse_(model) > 0
    # The norm's sums are rounded differently, so that single codes may fall to either side, and
    # later layers carry that on, up to what rounding all of them otherwise would change.
    assert (fused - separate).square().mean() < 1e-3 * separate.square().mean()


def test_stepwise_generation_equals_replay(quantized):
    model, _, _ = quantized(0.0, "ptq4arvg", "W6A6")
    one = model.sample_ids(torch.tensor([3, 7]), seed=5)
    many = model.sample_ids(torch.tensor([3, 7, 9]), seed=5)
    assert torch.equal(one, many[:2])


def test_same_recipe_same_bits(cases, quantized):
    first, report, _ = quantized(0.0, "ptq4arvg", "W6A6")
    again = ptq4arvg.load_model("var-tiny")
    second = quantize_(again, "W6A6", "ptq4arvg", cases[0.0][0])
    assert second.to_dict() == report.to_dict()
    state, other = first.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert first.recipe == again.recipe


def test_ignore_and_overrides(cases):
    model = ptq4arvg.load_model("var-tiny")
    report = quantize_(
        model, "W6A6", calibration=cases[0.0][0], ignore=["head"], overrides={"re:.*fc2$": "W8A8"}
    )
    assert report.kept == ["head"] and isinstance(model.transformer.head, nn.Linear)
    bits = {layer.w_bits for layer in report.layers if layer.role == "fc2"}
    assert bits == {8}
    assert model.recipe["overrides"] == {"re:.*fc2$": "W8A8"}


@pytest.mark.parametrize("given", [str, lambda name: [name], lambda name: iter([name])])
@pytest.mark.parametrize("bits", [{}, {"target_bits": 8}], ids=["scheme", "budget"])
def test_a_recipe_names_what_was_ignored(given, bits):
    model = build_model("rar-test", TINY["rar"], seed=0)
    name = model.linears()[0].name
    rows = ptq4arvg.calibrate(model, samples=2, keep=2)
    report = quantize_(model, method="rtn", calibration=rows, ignore=given(name), **bits)
    assert report.kept == model.recipe["ignore"] == [name]


def test_a_recipe_tells_of_own_weights():
    for given, told in (({}, {}), ({"weights": "random"}, {"weights": "own"})):
        model = ptq4arvg.load_model("rar-tiny", **given)
        quantize_(model, "W8A8", "rtn", ptq4arvg.calibrate(model, samples=2, keep=2))
        assert {k: v for k, v in model.recipe.items() if k == "weights"} == told


def test_simulation_without_packing(cases, quantized):
    rows, compared, logits = cases[0.0]
    model = ptq4arvg.load_model("var-tiny")
    report = quantize_(model, "W6A6", calibration=rows, pack=False)
    assert all(layer.kernel == "simulated" for layer in report.layers)
    assert type(model.transformer.head) is QuantLinear
    packed = quantized(0.0, "ptq4arvg", "W6A6")[2]
    assert agreement(logits, model, *compared).kl == pytest.approx(packed.kl, rel=0.1)


def test_quantized_attention_products_are_a_simulation_that_costs_little(cases, quantized):
    rows, compared, logits = cases[0.0]
    model = ptq4arvg.load_model("var-tiny")
    quantize_(model, "W8A8", calibration=rows, attention="simulated")
    assert all(
        isinstance(model.transformer.get_submodule(n), QuantAttention)
        for n in model.attention_cores()
    )
    kl = agreement(logits, model, *compared).kl
    assert kl < 2 * quantized(0.0, "ptq4arvg", "W8A8")[2].kl


def test_sinks_in_float(cases):
    rows, compared, logits = cases[0.0]
    model = ptq4arvg.load_model("var-tiny")
    quantize_(model, "W6A6", calibration=rows, sink="float")
    assert model.transformer.head.sink == (0,)
    assert math.isfinite(agreement(logits, model, *compared).kl)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "W6A7"}, "unknown scheme 'W6A7'"),
        ({"method": "rnt"}, "unknown method 'rnt'.*rtn"),
        ({"granularty": "step"}, "has no option 'granularty'.*granularity"),
        ({"ignore": ["hed"]}, "ignore pattern 'hed' matched 0 of"),
        ({"overrides": {"fc9": "W8A8"}}, "override 'fc9' matched 0 of"),
        ({"compat": "reserch"}, "compat is 'reserch'"),
        ({"compat": "research", "method": "rtn"}, "reproduces the method 'ptq4arvg'"),
        ({"compat": "research", "gps": False}, "takes no option 'gps'"),
    ],
)
def test_bad_arguments_change_nothing(cases, arguments, message):
    model = ptq4arvg.load_model("var-tiny")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        quantize_(model, calibration=cases[0.0][0], **arguments)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_quantized_model_is_not_quantized_again(quantized, cases):
    model, _, _ = quantized(0.0, "ptq4arvg", "W6A6")
    with pytest.raises(ValueError, match="quantized already"):
        quantize_(model, "W8A8", calibration=cases[0.0][0])


def test_half_precision_models(tmp_path):
    """What is not quantized stays in bfloat16, and a checkpoint gives the same images."""
    model = ptq4arvg.load_model("var-tiny", dtype=torch.bfloat16)
    rows = ptq4arvg.calibrate(model, samples=8, keep=4)
    exact = model.replay(rows.ids, rows.labels).float()
    quantize_(model, "W8A8", calibration=rows)
    logits = model.replay(rows.ids, rows.labels)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).square().sum() < 1e-3 * exact.square().sum()
    images = model.generate([3, 7], seed=1)
    model.save_pretrained(tmp_path / "q")
    assert torch.equal(ptq4arvg.load_quantized(tmp_path / "q").generate([3, 7], seed=1), images)
