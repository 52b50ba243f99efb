"""The stressed twin: the same function, outlier channels as the published models have them."""

import pytest
import torch

from ptq4arvg.models import load_model
from ptq4arvg.models.stress import channel_factors, stress_

SEVERITY = 30


def rows(model):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(512, (4, model.tokens), generator=generator), torch.tensor([0, 9, 31, 32])


def channel_ratio(model, role):
    """Largest channel maximum over the median one, mean over the linears of a role."""
    ratios, handles = [], []

    def record(_module, args):
        channels = args[0].abs().amax((0, 1))
        ratios.append((channels.max() / channels.median()).item())

    for spec in model.linears():
        if spec.role == role:
            linear = model.transformer.get_submodule(spec.name)
            handles.append(linear.register_forward_pre_hook(record))
    model.replay(*rows(model))
    for handle in handles:
        handle.remove()
    return sum(ratios) / len(ratios), max(ratios)


def test_the_function_is_the_same():
    plain = load_model("var-tiny", dtype=torch.float64)
    stressed = load_model("var-tiny", dtype=torch.float64)
    stress_(stressed, SEVERITY)
    a, b = plain.replay(*rows(plain)), stressed.replay(*rows(stressed))
    assert (a - b).abs().max() < 1e-10 * a.abs().max()


@pytest.mark.parametrize("role", ["qkv", "fc1"])
def test_outlier_channels_appear(role):
    before, _ = channel_ratio(load_model("var-tiny"), role)
    after, most = channel_ratio(load_model("var-tiny", stress=SEVERITY), role)
    assert before < 4
    assert 10 < after < 100 and most < 200


def test_an_ordinary_state_dict_is_left():
    stressed, plain = load_model("var-tiny", stress=SEVERITY), load_model("var-tiny")
    assert stressed.transformer.state_dict().keys() == plain.transformer.state_dict().keys()
    assert stressed.stress == SEVERITY and plain.stress == 0


def test_the_seed_decides():
    weight = "blocks.0.ffn.fc1.weight"
    first, again, other = (
        load_model("var-tiny", stress=SEVERITY, stress_seed=seed).transformer.get_parameter(weight)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_factors_are_heavy_tailed():
    factors = channel_factors(1024, SEVERITY, torch.Generator().manual_seed(0))
    assert (factors > 0).all()
    assert (factors > 10 * factors.median()).sum() == 1024 // 64


def test_severity_below_one_is_refused():
    with pytest.raises(ValueError, match=r"severity is 0.5; wanted at least 1"):
        stress_(load_model("var-tiny"), 0.5)
