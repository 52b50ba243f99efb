"""The estimates of harm against the harm itself, and that every family can be measured."""

import pytest
import torch

import ptq4arvg
from ptq4arvg import sensitivity
from ptq4arvg.calibration import Calibration
from ptq4arvg.evaluation import agreement, float_logits
from ptq4arvg.methods import Method, Transform, get_method
from ptq4arvg.models import build_model
from ptq4arvg.models.registry import FAMILIES
from ptq4arvg.numerics import SCHEMES, LinearQuantization
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


def test_linears_that_are_not_free_keep_their_scheme():
    fitted = []

    class Noting(Method):
        def fit(self, layer, scheme):
            fitted.append((layer.name, scheme.name))

    model = build_model("var-test", TINY["var"], seed=0)
    rows = ptq4arvg.calibrate(model, samples=4, keep=4, seed=0)
    free, *others = [spec.name for spec in model.linears()]
    assert estimates(model, rows, Noting(), {free}).keys() == {free}
    assert {scheme for name, scheme in fitted if name == free} == set(SCHEMES)
    assert {scheme for name, scheme in fitted if name in others} <= {"W6A6"}


class Placed(torch.nn.Module):
    """One linear whose inputs say where they are: (position, label) of two times four tokens."""

    def __init__(self, continuous):
        super().__init__()
        self.continuous, linear = continuous, torch.nn.Linear(2, 5)
        linear.weight.data = torch.arange(10.0).view(5, 2) / 40
        self.transformer = torch.nn.Sequential(linear)

    def replay(self, ids, labels):
        place = torch.arange(4.0).repeat(2)
        return self.transformer[0](torch.stack([place, labels.expand(8)], 1).view(2, 4, 2))


@pytest.mark.parametrize(("kept", "of_row"), [(256, 2), (32, 1)])
@pytest.mark.parametrize("continuous", [False, True])
def test_gradients_are_of_tokens_from_everywhere(monkeypatch, continuous, kept, of_row):
    """Of 100 rows, 64 are replayed, spread evenly, and the same number of tokens kept of each."""
    monkeypatch.setattr(sensitivity, "SAMPLE", kept)
    model, labels = Placed(continuous), torch.arange(100)
    rows = Calibration(torch.zeros(100, 8, dtype=torch.int64), labels)
    seen = sensitivity._gradients(model, {"0": 2}, rows, None)["0"]
    x, gradient, position = (torch.cat(v) for v in (seen.x, seen.gradient, seen.position))
    replayed = labels[torch.arange(64) * 100 // 64]
    assert torch.equal(x[:, 1].long(), replayed.repeat_interleave(of_row))
    assert torch.equal(x[:, 0].long(), position) and position.unique().numel() == 4
    if continuous:
        out = torch.cat([model.replay(None, label) for label in replayed]).double()
        wanted = 64 * 8 / out.square().sum().item()
    else:
        wanted = 1 / 2
        # What is added to all logits of a token changes nothing.
        assert gradient.abs().max() > 0.01 and gradient.sum(1).abs().max() < 1e-6
    assert seen.weight == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("folded", [False, True])
def test_the_gain_of_a_row_is_what_later_folds_multiplied_it_by(folded):
    before = torch.tensor([[1.0, -2.0], [0.5, 4.0], [0.0, 0.0]])
    transform = Transform(*torch.tensor([[2.0, 0.5], [0.0, 0.0]]).double()) if folded else None
    own = before if transform is None else transform.weight(before.double())
    after = own * torch.tensor([[4.0], [-0.25], [3.0]])
    assert sensitivity._row_gain(before, after, transform).tolist() == [4, -0.25, 1]


def test_sinks_have_the_error_of_their_weights_alone():
    linear = torch.nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, 1.0]])
    group = torch.zeros(4, dtype=torch.int64)
    q = LinearQuantization(
        linear.weight.data.to(torch.int8), torch.ones(2), None, linear.bias.data,
        torch.full((1,), 0.5), torch.full((1,), 32, dtype=torch.int32), group, 6, 6, (1, 3),
    )  # fmt: skip
    x = torch.full((6, 3), 0.2)
    seen = sensitivity._Seen([x], [], [torch.tensor([0, 1, 2, 3, 1, 0])])
    error = seen.error(linear, None, q, None)
    off = error.abs().amax(1) > 0.1  # 0.2 is rounded to 0
    assert off.tolist() == [True, False, True, False, False, True]
    assert error[~off].abs().max() < 1e-6
