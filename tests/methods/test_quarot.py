"""QuaRot: the function stays, heavy tails go, sizes without a rotation are refused."""

import pytest
import torch
from torch import nn

import ptq4arvg
from ptq4arvg.checkpoint.save import describe
from ptq4arvg.hadamard import Rotation, turn_of
from ptq4arvg.methods import get_method
from ptq4arvg.methods.quarot import rotate_
from ptq4arvg.models import build_model
from ptq4arvg.numerics import affine_grid, quantize_weight, round_to_grid
from ptq4arvg.pipeline import quantize_
from ptq4arvg.plan import make_plan
from tests.methods.layers import gaussian
from tests.models.tiny import TINY


def test_a_rotated_linear_computes_the_same_and_observers_see_the_rotated_input():
    linear, seen = nn.Linear(48, 7).double(), []
    x = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, rotation = linear(x), Rotation(48)
    rotate_(linear, rotation)
    linear.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    assert (linear(x) - before).abs().max() < 1e-12
    torch.testing.assert_close(seen[0], rotation(x))


def simulate(x, weight, bits=6):
    """Squared output error of a linear with a per-tensor input grid and per-row weight grids."""
    x = x.flatten(0, 1)
    x_hat = round_to_grid(x, *affine_grid(x.min(), x.max(), bits), bits)
    codes, scale, _ = quantize_weight(weight, bits, search=False)
    return (x_hat @ (codes.float() * scale[:, None]).T - x @ weight.T).square().mean().item()


def test_heavy_tails_are_what_a_rotation_is_for():
    x, weight = gaussian(k=128)
    tails = x.sign() * x.abs().pow(3)  # outliers anywhere: no channel to scale down
    rotation = Rotation(128)
    assert simulate(rotation(tails), rotation(weight)) < 0.3 * simulate(tails, weight)


@pytest.fixture(scope="module")
def rows():
    return ptq4arvg.calibrate(ptq4arvg.load_model("var-tiny"), samples=8, keep=4, seed=0)


def test_the_model_comes_through_outlier_channels(rows):
    sqnr = {}
    for name in ("rtn", "quarot"):
        model = ptq4arvg.load_model("var-tiny", stress=30.0)
        sqnr[name] = quantize_(model, "W6A6", name, rows, activation_range="minmax").worst.sqnr_db
    assert sqnr["quarot"] > sqnr["rtn"] + 6


def test_linears_of_as_many_inputs_share_the_rotation_of_the_seed():
    model = build_model("var-test", TINY["var"], seed=0)
    get_method("quarot", seed=3).prepare(model, make_plan(model.linears(), "W6A6"), None)
    linears = [model.transformer.get_submodule(spec.name) for spec in model.linears()]
    turns = {id(turn_of(linear)): turn_of(linear) for linear in linears}
    assert len(turns) == len({linear.in_features for linear in linears}) == 2
    for turn in turns.values():
        assert torch.equal(turn.signs, Rotation(turn.size, 3).signs)
        assert not torch.equal(turn.signs, Rotation(turn.size).signs)


def test_integers_are_refused_before_anything_happens(rows):
    model = ptq4arvg.load_model("var-tiny")
    with pytest.raises(ValueError, match=r"'quarot' has no integer path \(it rotates all channels"):
        quantize_(model, "W6A6", "quarot", rows, pack=True)
    assert type(model.transformer.head) is nn.Linear and model.recipe is None
    quantize_(model, "W6A6", "quarot", rows, ignore=["re:blocks"])
    with pytest.raises(ValueError, match="quantized in simulation only"):
        describe(model)


def test_a_model_that_was_left_rotated_is_refused(rows):
    model = ptq4arvg.load_model("var-tiny")
    get_method("quarot").prepare(model, make_plan(model.linears(), "W6A6"), rows)
    for name in ("rtn", "quarot"):
        with pytest.raises(ValueError, match="left rotated by a run that did not end; load"):
            quantize_(model, "W6A6", name, rows)


def test_a_size_without_a_rotation_is_refused_with_its_layer():
    sizes = {**TINY["var"], "transformer": {**TINY["var"]["transformer"], "embed_dim": 92}}
    model = build_model("var-test", sizes, seed=0)
    plan = make_plan(model.linears(), "W6A6")
    before = model.transformer.head.weight.clone()
    with pytest.raises(ValueError, match=r"blocks\.0\.ada_lin\.1 has 92 inputs.*keep it in float"):
        get_method("quarot").prepare(model, plan, None)
    assert torch.equal(model.transformer.head.weight, before)
