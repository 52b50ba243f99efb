"""Fitting leaves the model as it is; parts follow the folds between linears."""

from types import SimpleNamespace

import pytest
import torch

import ptq4arvg
from ptq4arvg.folding import fit, fold_stage_, stages
from ptq4arvg.methods import get_method
from ptq4arvg.models import build_model
from ptq4arvg.models.registry import FAMILIES
from ptq4arvg.numerics import get_scheme
from ptq4arvg.plan import make_plan
from ptq4arvg.statistics import collect_inputs
from ptq4arvg.token_scales import position_groups
from tests.models.tiny import TINY


def planned(*linears):
    """(name, block, fold) -> what ``stages`` reads of a plan."""
    return [SimpleNamespace(name=n, spec=SimpleNamespace(block=b, fold=f)) for n, b, f in linears]


def named(parts):
    return [[p.name for p in part] for part in parts]


def test_a_part_is_a_block_unless_folds_join_several():
    alone = planned(("a", 0, "norm"), ("b", 0, "a"), ("c", 1, None), ("d", 2, "c2"))
    assert named(stages(alone)) == [["a", "b"], ["c"], ["d"]]
    back = planned(("a", 0, None), ("b", 1, None), ("c", 2, "a"), ("d", 3, None))
    assert named(stages(back)) == [["a", "b", "c"], ["d"]]
    ahead = planned(("a", 0, None), ("b", 1, "c"), ("c", 2, None), ("d", 3, "e"), ("e", 3, None))
    assert named(stages(ahead)) == [["a"], ["b", "c"], ["d", "e"]]
    far = planned(("a", 0, "c"), ("b", 0, None), ("c", 2, None), ("d", 1, None), ("e", 3, None))
    assert named(stages(far)) == [["a", "b", "d", "c"], ["e"]]
    assert stages([]) == []


class Recording(type(get_method("ptq4arvg"))):
    """Keeps the weights that transforms are fitted for."""

    def transform_of(self, layer, scheme):
        self.seen[layer.name] = layer.weight.clone()
        return super().transform_of(layer, scheme)


SHARED = {**TINY["var"], "transformer": {**TINY["var"]["transformer"], "shared_aln": True}}


@pytest.mark.parametrize("config", [*(TINY[f] for f in sorted(FAMILIES)), SHARED],
                         ids=[*sorted(FAMILIES), "var-shared-aln"])  # fmt: skip
def test_fitting_changes_nothing_and_folding_what_was_fitted(config):
    model = build_model("test", config, seed=0)
    rows = ptq4arvg.calibrate(model, samples=4, keep=2)
    plan = make_plan(model.linears(), get_scheme("W6A6"), (), None)
    parts = stages(plan)
    assert len(parts) > 1 and sorted(n for part in named(parts) for n in part) == sorted(
        p.name for p in plan
    )
    stats = collect_inputs(model, rows, {p.name: position_groups(p.spec, "step") for p in plan},
                           {p.name: model.visits(p.name) for p in plan})  # fmt: skip
    objects = {name: (value, value.clone()) for name, value in model.named_parameters()}
    buffers = set(model.state_dict())
    method, seen = Recording(), {}
    object.__setattr__(method, "seen", seen)
    transforms, columns = fit(model, parts, stats, method, None)
    assert transforms and columns.keys() == {p.name for p in plan}
    now = dict(model.named_parameters())
    assert now.keys() == objects.keys() and set(model.state_dict()) == buffers
    for name, (value, copy) in objects.items():
        assert now[name] is value and torch.equal(value, copy), name
    before = model.replay(rows.ids, rows.labels)
    for part in parts:
        fold_stage_(model, part, transforms)
    after = model.replay(rows.ids, rows.labels)
    assert (after - before).abs().max() < 1e-3 * before.abs().max()
    for p in plan:
        weight = model.transformer.get_submodule(p.name).weight
        torch.testing.assert_close(weight.square().sum(0), columns[p.name])
        # No later fold changes the rows that a transform of what folds was fitted for.
        if p.spec.fold is not None:
            weight_of = transforms[p.name].weight if p.name in transforms else torch.Tensor.clone
            torch.testing.assert_close(weight, weight_of(seen[p.name]))
