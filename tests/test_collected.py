"""Statistics kept between quantizations: the same bits, without the pass."""

import pytest
import torch

import ptq4arvg
from ptq4arvg import collected as module
from ptq4arvg.collected import Collected
from ptq4arvg.models import build_model
from ptq4arvg.plan import make_plan
from tests.models.tiny import TINY


def tiny(seed=0):
    return build_model("var-test", TINY["var"], seed=seed)


@pytest.fixture(scope="module")
def rows():
    return ptq4arvg.calibrate(tiny(), samples=8, keep=4, seed=0)


@pytest.fixture
def passes(monkeypatch):
    """The models that were replayed for statistics."""
    seen, plain = [], module.collect_steps

    def collect_steps(model, *args, **kwargs):
        seen.append(model)
        return plain(model, *args, **kwargs)

    monkeypatch.setattr(module, "collect_steps", collect_steps)
    return seen


@pytest.mark.parametrize("method", ["rtn", "smoothquant", "ptq4arvg", "omniquant", "quarot"])
def test_a_model_quantized_with_kept_statistics_is_the_same(rows, method):
    kept = Collected()
    options = {"steps": 1} if method == "omniquant" else {}
    made = []
    for collected in (None, kept, kept):
        model = tiny()
        ptq4arvg.quantize_(model, "W6A6", method, rows, collected=collected, **options)
        made.append(model.transformer.state_dict())
    for other in made[1:]:
        assert made[0].keys() == other.keys()
        assert all(torch.equal(made[0][name], other[name]) for name in other)


def test_methods_and_schemes_share_one_pass(rows, passes):
    kept = Collected()
    for method, scheme in (("rtn", "W6A6"), ("smoothquant", "W4A8"), ("repq", "W8A8")):
        ptq4arvg.quantize_(tiny(), scheme, method, rows, collected=kept)
    assert len(passes) == 1
    ptq4arvg.quantize_(tiny(), "W6A6", "rtn", rows, collected=kept, batch_size=2)
    ptq4arvg.quantize_(tiny(), "W6A6", "ptq4arvg", rows, collected=kept)  # a larger sample
    assert len(passes) == 3


def test_a_method_that_turns_inputs_has_passes_of_its_own(rows, passes):
    kept = Collected()
    ptq4arvg.quantize_(tiny(), "W6A6", "quarot", rows, collected=kept)
    assert not passes
    model = tiny()
    ptq4arvg.quantize_(model, "W6A6", "rtn", rows, collected=kept)
    assert passes == [model]


def test_other_rows_stress_and_linears_are_told_apart(rows, passes):
    kept = Collected()
    model = tiny()
    plan = make_plan(model.linears(), "W6A6")
    first = kept.steps(model, plan[:2], rows)
    assert list(first) == [p.name for p in plan[:2]]
    assert kept.steps(model, plan[:1], rows)[plan[0].name] is first[plan[0].name]
    assert len(passes) == 1
    assert set(kept.steps(model, plan, rows)) == {p.name for p in plan}
    other = ptq4arvg.calibrate(model, samples=8, keep=4, seed=1)
    kept.steps(model, plan, other)
    model.stress = 30.0
    kept.steps(model, plan, rows)
    assert len(passes) == 4
