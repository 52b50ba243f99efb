"""Every registered method on a trained model: its transforms keep the float function, its integer
path runs and equals its simulation, and GPTQ's rounding goes with it."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.evaluation import agreement, evaluation_rows, float_logits
from ptq4arvg.folding import fit, fold_stage_, stages
from ptq4arvg.methods import METHODS, get_method
from ptq4arvg.nn import PackedLinear
from ptq4arvg.pipeline import quantize_
from ptq4arvg.plan import make_plan
from ptq4arvg.statistics import collect_inputs
from ptq4arvg.token_scales import position_groups

STRESS = 30.0
SHORT = {"omniquant": {"steps": 2, "rows": 2}}  # less to learn, for a short test


@pytest.fixture(scope="module")
def case():
    """(calibration rows, rows to compare on, the float model's logits for them)."""
    model = ptq4arvg.load_model("var-tiny", stress=STRESS)
    rows = ptq4arvg.calibrate(model, samples=8, keep=4, seed=0)
    compared = evaluation_rows(model, torch.arange(0, 32, 16), seed=1)
    return rows, compared, float_logits(model, *compared)


@pytest.mark.parametrize("name", METHODS)
def test_transforms_keep_the_float_function(name, case):
    rows, compared, _ = case
    model = ptq4arvg.load_model("var-tiny", stress=STRESS).double()
    plan = make_plan(model.linears(), "W6A6")
    before = float_logits(model, *compared)
    with torch.no_grad():
        method = get_method(name, **SHORT.get(name, {})).prepare(model, plan, rows)
    steps = {p.name: position_groups(p.spec, "step") for p in plan}
    stats = collect_inputs(model, rows, steps, sample=64)
    parts = stages(plan)
    transforms, _ = fit(model, parts, stats, method, None)
    for part in parts:
        fold_stage_(model, part, transforms)
    for old, new in zip(before, float_logits(model, *compared), strict=True):
        assert (new - old).abs().max() < 1e-10 * old.abs().max()


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_in_integers(name, case):
    rows, compared, logits = case
    method = get_method(name, **SHORT.get(name, {}))
    model = ptq4arvg.load_model("var-tiny", stress=STRESS)
    report = quantize_(model, "W8A8", method, rows, pack=method.integer)
    if method.integer:  # quantize_ has compared each layer with its simulation
        modules = [model.transformer.get_submodule(layer.name) for layer in report.layers]
        assert all(type(module) is PackedLinear for module in modules)
    for batch in float_logits(model, *compared):
        assert torch.isfinite(batch).all()
    assert 0 < agreement(logits, model, *compared).kl < 1


@pytest.mark.parametrize("name", METHODS)
def test_compensated_rounding_goes_with_it(name, case):
    rows, compared, _ = case
    reports = {}
    for rounding in ("nearest", "gptq"):
        method = get_method(name, rounding=rounding, **SHORT.get(name, {}))
        model = ptq4arvg.load_model("var-tiny", stress=STRESS)
        reports[rounding] = quantize_(model, "W4A8", method, rows, pack=method.integer,
                                      ignore=[r"re:blocks\.[1-5]"])  # fmt: skip
        assert all(torch.isfinite(batch).all() for batch in float_logits(model, *compared))
    assert reports["gptq"].sqnr_db > reports["nearest"].sqnr_db + 1
    assert reports["gptq"].options["rounding"] == "gptq"


@pytest.mark.parametrize("value", ["no", 0, None])
def test_switches_are_on_or_off(value):
    with pytest.raises(ValueError, match=r"bias_correction is .*; wanted True or False"):
        get_method("rtn", bias_correction=value)
