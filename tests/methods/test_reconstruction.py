"""The walk over a model's blocks sees what whole replays see."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.methods import get_method, reconstruction
from ptq4arvg.methods.reconstruction import LearnedLinear, _quantized, _Walk
from ptq4arvg.models import build_model
from ptq4arvg.numerics import get_scheme
from ptq4arvg.plan import make_plan
from tests.models.tiny import TINY

DEPTH = {"mar": {"encoder_depth": 2, "decoder_depth": 2}}


def deep(family):
    """A small model of three blocks or four."""
    config = TINY[family]
    transformer = config["transformer"] | DEPTH.get(family, {"depth": 3})
    return build_model(f"{family}-test", config | {"transformer": transformer}, seed=0)


def runs_of(model, block, batches):
    """(positional arguments, outputs) of a block in whole replays."""
    args, outputs = [], []
    handles = [
        block.register_forward_pre_hook(lambda _module, given: args.append(given)),
        block.register_forward_hook(lambda _module, _given, output: outputs.append(output)),
    ]
    for ids, labels in batches:
        model.replay(ids, labels)
    for handle in handles:
        handle.remove()
    return args, outputs


def simulate_(model, name):
    """Replace the linears of a block by simulations; returns those."""
    found = []
    for spec in model.linears():
        if spec.name.startswith(f"{name}."):
            linear = model.transformer.get_submodule(spec.name)
            full = torch.ones(linear.out_features), torch.ones(linear.out_features)
            found.append(LearnedLinear(linear, get_scheme("W4A8"), None, False, full, False))
            model.replace_(spec.name, found[-1])
    return found


@pytest.mark.parametrize("left_out", [None, 0, 1])
@pytest.mark.parametrize("family", list(TINY))
@torch.no_grad()
def test_calls_are_those_of_whole_replays(family, left_out):
    model = deep(family)
    rows = ptq4arvg.calibrate(model, samples=6, keep=6, seed=0)
    batches, names = rows.batches(4), model.block_names()
    batches = list(batches)
    walk, learned = _Walk(model, names, batches), []
    assert len(names) > 2
    for index, name in enumerate(names):
        if index == left_out:  # as a block without planned linears, or one that is kept
            learned += simulate_(model, name)
            continue
        block = model.transformer.get_submodule(name)
        calls = walk.calls(index, learned)
        args, _ = runs_of(model, block, batches)
        with _quantized(learned, False):
            _, targets = runs_of(model, block, batches)
        assert len(calls) == len(args) == len(targets) >= len(batches)
        for call, given, target in zip(calls, args, targets, strict=True):
            assert len(call.args) == len(given)
            for a, b in zip(call.args, given, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert torch.equal(call.target, target)
        learned += simulate_(model, name)
    assert all("forward" not in vars(block) for block in walk.blocks)


def test_blocks_learn_the_outputs_of_the_float_model_on_rows_from_all_over(monkeypatch):
    model, seen = deep("var"), []
    rows = ptq4arvg.calibrate(model, samples=16, keep=8, seed=0)
    some = [(rows.ids[[0, 4]], rows.labels[[0, 4]])]
    names = model.block_names()
    with torch.no_grad():
        exact = [runs_of(model, model.transformer.get_submodule(n), some) for n in names]

    def keep(_block, _linears, calls, *_):
        seen.append(calls)
        return 1.0, 0.5

    monkeypatch.setattr(reconstruction, "_learn", keep)
    get_method("omniquant", rows=2).prepare(model, make_plan(model.linears(), "W4A8"), rows)
    assert len(seen) == len(names)
    for index, (calls, (args, outputs)) in enumerate(zip(seen, exact, strict=True)):
        for call, given, output in zip(calls, args, outputs, strict=True):
            assert torch.equal(call.target, output)
            assert torch.equal(call.args[0], given[0]) == (index == 0)  # behind quantized blocks
