"""The estimates of harm against the harm itself, and that every family can be measured."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.evaluation import agreement, float_logits
from ptq4arvg.methods import Method, Transform, get_method
from ptq4arvg.models import build_model
from ptq4arvg.models.registry import FAMILIES
from ptq4arvg.numerics import SCHEMES
from ptq4arvg.plan import make_plan
from ptq4arvg.sensitivity import sensitivities
from tests.models.tiny import TINY

CANDIDATES = tuple(SCHEMES.values())


def estimates(model, rows, method="rtn", free=None, **options):
    plan = make_plan(model.linears(), "W6A6")
    free = {p.name for p in plan} if free is None else free
    return sensitivities(
        model, plan, free, CANDIDATES, get_method(method, **options), rows, batch_size=4
    )


def ranks(values):
    return torch.tensor(values, dtype=torch.float64).argsort().argsort().double()


def test_estimates_order_the_linears_as_quantizing_each_alone_does():
    model = ptq4arvg.load_model("rar-tiny")
    rows = ptq4arvg.calibrate(model, samples=16, keep=8, seed=0)
    exact = float_logits(model, rows.ids, rows.labels)
    found, pairs = estimates(model, rows), []
    names = [spec.name for spec in model.linears()]
    for name in names[::5]:
        for scheme in ("W6A6", "W4A8"):
            alone = ptq4arvg.load_model("rar-tiny")
            ptq4arvg.quantize_(
                alone, scheme, "rtn", rows, ignore=[n for n in names if n != name], pack=False
            )
            true = agreement(exact, alone, rows.ids, rows.labels).kl
            pairs.append((found[name][scheme], true))
    estimated, true = (ranks(values) for values in zip(*pairs, strict=True))
    assert torch.corrcoef(torch.stack([estimated, true]))[0, 1] > 0.9
    ratio = sum(e for e, _ in pairs) / sum(t for _, t in pairs)
    assert 1 / 2 < ratio < 2


class Doubling(Method):
    """Some scales, powers of two, which the rounding of a row of weights does not feel."""

    def fit(self, layer, scheme):
        if not layer.foldable or layer.role not in ("fc2", "proj", "qkv"):
            return None
        scale = 2.0 ** (torch.arange(layer.weight.shape[1]).double() % 7)
        return Transform(scale, torch.zeros_like(scale))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_folds_of_later_inputs_do_not_enter_the_measure(family):
    model = build_model(f"{family}-test", TINY[family], seed=0)
    rows = ptq4arvg.calibrate(model, samples=4, keep=4, seed=0)
    names = {s.name for s in model.linears() if s.fold is None or s.role == "fc1"}
    plain, folded = (estimates(model, rows, method, names) for method in (Method(), Doubling()))
    for name in names:
        assert folded[name] == pytest.approx(plain[name], rel=1e-3), name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_measured_and_stays_as_it_is(family):
    model = build_model(f"{family}-test", TINY[family], seed=0)
    rows = ptq4arvg.calibrate(model, samples=4, keep=4, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimates(model, rows, "ptq4arvg", sink="float")
    assert found.keys() == {spec.name for spec in model.linears()}
    for harm in found.values():
        assert 0 <= harm["W8A8"] <= harm["W4A8"] < float("inf")
    assert sum(harm["W4A8"] for harm in found.values()) > 0
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert found == estimates(model, rows, "ptq4arvg", sink="float")


def test_a_branch_in_float_takes_part():
    model = build_model("var-test", TINY["var"], seed=0)
    rows = ptq4arvg.calibrate(model, samples=4, keep=4, seed=0)
    whole = estimates(model, rows, "svdquant", rank=48)
    part = estimates(model, rows, "svdquant", rank=2)
    name = "blocks.0.attn.mat_qkv"
    assert whole[name]["W4A8"] < 0.01 * part[name]["W4A8"]
