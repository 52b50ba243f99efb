"""Folding: the input of a linear changes as asked, and the float function does not (float64)."""

import pytest
import torch

from ptq4arvg.models import load_model
from tests.golden_cases import RARCase, VARCase, find_cases

BOUND = 1e-10
CASES = {
    f"{kind.__name__}-{case.name}": case for kind in (VARCase, RARCase) for case in find_cases(kind)
}
NAMES = ["var-tiny", *CASES]


def built(name):
    if name == "var-tiny":
        return load_model(name, dtype=torch.float64)
    return CASES[name].build(torch.float64)


def inputs(model, rows=2):
    generator = torch.Generator().manual_seed(3)
    vocabulary = model.tokenizer.config.vocab_size
    ids = torch.randint(vocabulary, (rows, model.tokens), generator=generator)
    return ids, torch.arange(rows) * model.null_label // max(rows - 1, 1)


def transform(k, generator):
    scale = torch.exp(torch.randn(k, generator=generator, dtype=torch.float64))
    return scale, torch.randn(k, generator=generator, dtype=torch.float64)


def fold_and_compensate(model, name, scale, shift):
    """W (u / scale - shift) * scale... : the linear undoes what its input went through."""
    linear = model.transformer.get_submodule(name)
    model.fold_(name, scale, shift)
    weight = linear.weight.data
    linear.bias.data += weight @ (shift * scale)
    linear.weight.data = weight * scale


@pytest.mark.parametrize("name", NAMES)
def test_the_function_stays_whatever_is_folded(name):
    model = built(name)
    ids, labels = inputs(model)
    before = model.replay(ids, labels)
    generator = torch.Generator().manual_seed(0)
    foldable = [spec for spec in model.linears() if spec.fold]
    order = torch.randperm(len(foldable), generator=generator).tolist()
    for i in [*order, *order[:3]]:  # any order, some twice
        linear = model.transformer.get_submodule(foldable[i].name)
        fold_and_compensate(model, foldable[i].name, *transform(linear.in_features, generator))
    after = model.replay(ids, labels)
    assert (after - before).abs().max() < BOUND * before.abs().max().clamp_min(1)
    choose = lambda logits, _scale: logits.argmax(-1)  # noqa: E731
    greedy = model.sample_ids(labels[:1], choose=choose)
    assert torch.equal(greedy, built(name).sample_ids(labels[:1], choose=choose))


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_what_was_asked_for(name):
    model = built(name)
    ids, labels = inputs(model)
    seen = {}
    specs = [spec for spec in model.linears() if spec.fold]

    def record(stage):
        handles = [
            model.transformer.get_submodule(spec.name).register_forward_pre_hook(
                lambda _m, args, key=(stage, spec.name): seen.__setitem__(key, args[0])
            )
            for spec in specs
        ]
        model.replay(ids, labels)
        for handle in handles:
            handle.remove()

    record("before")
    generator = torch.Generator().manual_seed(1)
    transforms = {}
    for spec in specs:
        linear = model.transformer.get_submodule(spec.name)
        transforms[spec.name] = transform(linear.in_features, generator)
        fold_and_compensate(model, spec.name, *transforms[spec.name])
    record("after")
    for spec in specs:
        scale, shift = transforms[spec.name]
        wanted = seen["before", spec.name] / scale - shift
        assert (seen["after", spec.name] - wanted).abs().max() < 1e-9, spec.name


@pytest.mark.parametrize("name", NAMES)
def test_an_absorbed_constant_changes_nothing(name):
    model = built(name)
    ids, labels = inputs(model)
    before = model.replay(ids, labels)
    generator = torch.Generator().manual_seed(2)
    for spec in model.linears():
        if spec.fold and spec.norm and not spec.fold.endswith(".norm"):
            linear = model.transformer.get_submodule(spec.name)
            fold_and_compensate(model, spec.name, *transform(linear.in_features, generator))
            norm = model.transformer.get_submodule(spec.norm)
            assert norm.constant is not None
            model.absorb_constant_(spec.name)
            assert norm.constant is None
    assert (model.replay(ids, labels) - before).abs().max() < 1e-9


def test_what_cannot_be_folded_says_why():
    model = load_model("var-tiny")
    one, zero = torch.ones(1024), torch.zeros(1024)
    with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.fc2.*output of GELU"):
        model.fold_("blocks.0.ffn.fc2", one, zero)
    with pytest.raises(ValueError, match=r"'blocks\.0\.ffn\.fc3'.*not a linear of this model"):
        model.fold_("blocks.0.ffn.fc3", one, zero)
