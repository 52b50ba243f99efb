"""What is collected beside the cells, against the model itself."""

import pytest
import torch

from ptq4arvg import load_model
from ptq4arvg.calibration import calibrate
from ptq4arvg.goals import parse_goal
from ptq4arvg.inspection import inspect_
from ptq4arvg.models import build_model
from ptq4arvg.models.registry import FAMILIES
from ptq4arvg.serialize import plain
from tests.models.tiny import TINY


@pytest.fixture(scope="module")
def rows():
    return calibrate(load_model("var-tiny", stress=30.0), samples=8, keep=4, seed=0)


@pytest.fixture(scope="module")
def case(rows):
    model = load_model("var-tiny", stress=30.0)
    seen = []
    found = inspect_(model, parse_goal("W6A6"), rows, progress=lambda *event: seen.append(event[0]))
    assert {"collect", "fit ptq4arvg"} <= set(seen)
    return model, found


def inputs(model, rows, name):
    """Inputs [B, T, K] of a linear over the rows."""
    kept = []
    linear = model.transformer.get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.inference_mode():
        model.replay(rows.ids, rows.labels)
    handle.remove()
    return kept[0]


def test_channels_are_those_of_the_model_before_and_after(case, rows):
    model, found = case
    channels, plainly = found["channels"], load_model("var-tiny", stress=30.0)
    name = channels["layer"]
    assert channels["spreads"][name] == max(channels["spreads"].values())
    assert channels["spreads"][name] > 0
    for state, which in (("before", plainly), ("after", model)):
        x, weight = inputs(which, rows, name), which.transformer.get_submodule(name).weight
        expected = x.flatten(0, -2).abs().amax(0)
        torch.testing.assert_close(channels[f"activation_{state}"], expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(channels[f"weight_{state}"], weight.abs().amax(0))


def test_positions_are_within_the_grids_but_for_what_is_clipped(case, rows):
    model, found = case
    at = found["positions"]
    x = inputs(model, rows, at["layer"])
    torch.testing.assert_close(at["lo"], x.amin((0, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at["hi"], x.amax((0, 2)), rtol=1e-4, atol=1e-5)
    assert at["sink"] == [0] and len(at["steps"]) == len(at["scale"]) == model.tokens
    # 6 bits: 63 steps between the grid's ends
    torch.testing.assert_close(at["grid_hi"] - at["grid_lo"], 63 * at["scale"])
    assert (at["grid_lo"] <= 0).all() and (at["grid_hi"] >= 0).all()
    inside = (x >= at["grid_lo"][:, None]) & (x <= at["grid_hi"][:, None])
    assert inside.double().mean() > 0.99


def test_selection_is_the_calibrations(case, rows):
    selection = case[1]["selection"]
    assert selection["kept"].sum() == 4 and len(selection["distance"]) == 8
    assert torch.equal(selection["kept"].nonzero().flatten(), rows.chosen)
    farthest = selection["distance"].argmax()
    assert selection["kept"][farthest]


def test_outputs_count_the_sample(case):
    model, found = case
    assert set(found["outputs"]) == {spec.name for spec in model.linears()}
    head = model.transformer.get_submodule("head")
    assert found["outputs"]["head"] % head.out_features == 0


def test_a_budget_gives_every_linear_its_scheme_first():
    model = build_model("rar-test", TINY["rar"], seed=0)
    rows = calibrate(model, samples=4, keep=4, seed=0)
    seen = set()
    goal = parse_goal("8 bits")  # nothing to choose, but for the activations' 8 bits
    found = inspect_(model, goal, rows, progress=lambda phase, *_: seen.add(phase))
    assert found["scheme"] == "8 bits" and "sensitivity" in seen
    at = found["positions"]  # 8 bits: 255 steps between the grid's ends
    torch.testing.assert_close(at["grid_hi"] - at["grid_lo"], 255 * at["scale"])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_looked_into(family):
    model = build_model(f"{family}-test", TINY[family], seed=0)
    rows = calibrate(model, samples=4, keep=4, seed=0)
    found = plain(inspect_(model, parse_goal("W6A6"), rows))
    assert found["selection"] is None
    at = found["positions"]
    lengths = {len(at[k]) for k in ("lo", "hi", "scale", "grid_lo", "grid_hi", "group", "steps")}
    assert len(lengths) == 1 and all(lo <= hi for lo, hi in zip(at["lo"], at["hi"], strict=True))
    assert all(value is not None for value in at["lo"] + at["hi"] + at["scale"])
    assert len(found["channels"]["activation_before"]) == len(found["channels"]["weight_after"])
