"""Fusing packed linears with norms and activations, and undoing it."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.calibration import Calibration
from ptq4arvg.fuse import fuse_, unfuse_
from ptq4arvg.models import build_model
from ptq4arvg.pipeline import quantize_
from tests.models.tiny import TINY


def rows(model):
    ids = torch.randint(512, (2, model.tokens), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.tensor([0, model.null_label]), seed=1, select="given")


def quantized(**options):
    model = ptq4arvg.load_model("var-tiny")
    quantize_(model, "W8A8", "rtn", rows(model), **options)
    return model


def state(model):
    """(norms that emit codes, activations that are done in an epilogue)."""
    modules = list(model.transformer.modules())
    norms = [m for m in modules if getattr(m, "quantizer", None) is not None]
    return len(norms), len([m for m in modules if getattr(m, "fused", False)])


def test_every_declared_pair_is_fused_and_can_be_undone():
    model = quantized()
    depth = model.config.depth
    assert state(model) == (2 * depth + 1, depth)
    unfuse_(model)
    assert state(model) == (0, 0)
    assert fuse_(model) == 3 * depth + 1
    assert state(model) == (2 * depth + 1, depth)


def test_a_float_neighbour_is_not_fused_into():
    model = quantized(ignore=["head", "blocks.0.ffn.fc2", "blocks.1.ffn.fc1"])
    depth = model.config.depth
    assert state(model) == (2 * depth - 1, depth - 2)
    assert model.replay(rows(model).ids, rows(model).labels).isfinite().all()


def test_sinks_keep_their_linears_apart():
    assert state(quantized(sink="float")) == (0, 0)


def test_what_is_fused_goes_by_both_linears_and_by_heads():
    model = build_model("small", TINY["var"], seed=0)
    calibration = ptq4arvg.calibrate(model, samples=4, keep=2)
    quantize_(model, "W8A8", "rtn", calibration, attention="int8")
    first, second = model.transformer.blocks
    assert first.attn.core.quantizer and first.attn.core.size == 24
    first.attn.proj.rotation = 16  # of its 48 columns, but not of a head's 24
    second.attn.proj.rotation = 8
    first.ffn.fc2.sink = (0,)
    unfuse_(model)
    fuse_(model)
    assert first.attn.core.quantizer is None and not first.ffn.act.fused
    assert second.attn.core.quantizer and second.ffn.act.fused


def test_rotated_inputs_are_quantized_by_norms_and_by_epilogues():
    model = ptq4arvg.load_model("var-tiny")
    quantize_(model, "W8A8", "rtn", rows(model), rotation="fused")
    depth, calibration = model.config.depth, rows(model)
    assert state(model) == (2 * depth + 1, depth)
    fused = model.replay(calibration.ids, calibration.labels)
    blocks = [block.ffn for block in model.transformer.blocks]
    assert {mlp.fc2.rotation for mlp in blocks} == {0, 16}
    assert 128 in {mlp.fc1.rotation for mlp in blocks}
    assert all(mlp.fc1._next == (mlp.fc2,) for mlp in blocks)
    unfuse_(model)
    separate = model.replay(calibration.ids, calibration.labels)
    exact = ptq4arvg.load_model("var-tiny").replay(calibration.ids, calibration.labels)
    # Codes that rounding moves by one make them differ by less than quantization does.
    error = (separate - exact).square().mean()
    assert (fused - separate).square().mean() < error
    assert (fused - exact).square().mean() < 1.1 * error


def test_wider_blocks_than_an_epilogue_has_are_rotated_apart():
    model = ptq4arvg.load_model("var-tiny")
    quantize_(model, "W8A8", "rtn", rows(model), rotation="measured")
    blocks = [block.ffn for block in model.transformer.blocks]
    assert 128 in {mlp.fc2.rotation for mlp in blocks}
    for mlp in blocks:
        assert mlp.act.fused and bool(mlp.fc1._next) == (mlp.fc2.rotation <= 16)
    assert model.replay(rows(model).ids, rows(model).labels).isfinite().all()


def test_fused_and_separate_results_agree():
    model = quantized()
    calibration = rows(model)
    fused = model.replay(calibration.ids, calibration.labels)
    unfuse_(model)
    separate = model.replay(calibration.ids, calibration.labels)
    assert (fused - separate).square().mean() < 1e-4 * separate.square().mean()


def test_a_float_model_has_nothing_to_fuse():
    model = ptq4arvg.load_model("var-tiny")
    assert fuse_(model) == 0 and state(model) == (0, 0)


def test_gated_products_are_quantized_where_they_are_made():
    model = ptq4arvg.load_model("par-tiny")
    calibration = rows(model)
    exact = model.replay(calibration.ids, calibration.labels)
    quantize_(model, "W8A8", "rtn", calibration)
    gated = [block.feed_forward for block in model.transformer.layers]
    assert all(part.quantizer == part.w2.quantize_gated for part in gated)
    seen = []
    handle = gated[0].w2.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    fused = model.replay(calibration.ids, calibration.labels)
    unfuse_(model)
    assert all(part.quantizer is None for part in gated)
    separate = model.replay(calibration.ids, calibration.labels)
    handle.remove()
    assert seen == [torch.int8, torch.float32]
    # Codes that rounding moves by one make them differ by less than quantization does.
    error = (separate - exact).square().mean()
    assert (fused - separate).square().mean() < error
    assert (fused - exact).square().mean() < 1.1 * error


def test_gated_products_of_sinks_stay_in_float():
    model = ptq4arvg.load_model("par-tiny")
    quantize_(model, "W8A8", "rtn", rows(model), sink="float")
    gated = [block.feed_forward for block in model.transformer.layers]
    assert all(bool(part.w2.sink) == (part.quantizer is None) for part in gated)


def test_factors_of_q_are_computed_once_where_weights_are_fixed():
    model = ptq4arvg.load_model("var-tiny")
    attentions = [block.attn for block in model.transformer.blocks]
    assert all(attention.q_factors is None for attention in attentions)
    ids = rows(model)
    quantize_(model, "W8A8", "rtn", ids)
    assert all(torch.equal(a.q_factors, a._factors()) for a in attentions)
    with torch.inference_mode():
        once = model.sample_ids(torch.tensor([3]), seed=1)
        for attention in attentions:
            attention.fix_constants_(False)
        assert torch.equal(model.sample_ids(torch.tensor([3]), seed=1), once)
    assert not any("q_factors" in name for name in model.state_dict())
    fuse_(model)
    assert all(attention.q_factors is not None for attention in attentions)
    unfuse_(model)
    assert all(attention.q_factors is None for attention in attentions)


@pytest.mark.parametrize("name", ["var-tiny", "rar-tiny", "par-tiny", "mar-tiny"])
def test_attention_in_integers_emits_the_codes_of_its_projection(name):
    """The same codes, so the same images; but where blocks are wider than an epilogue rotates."""
    model = ptq4arvg.load_model(name)
    quantize_(model, "W6A6", "rtn", ptq4arvg.calibrate(model, samples=4, keep=2),
              attention="int8", rotation="measured")  # fmt: skip
    root, seen = model.transformer, []
    cores = [root.get_submodule(core) for core in model.integer_cores()]
    proj = [root.get_submodule(spec.name) for spec in model.linears() if spec.role == "proj"]
    for core, linear in zip(cores, proj, strict=True):
        assert core.quantizer == (linear.quantize_attention if linear.rotation <= 16 else None)
    first = next(linear for linear in proj if linear.rotation <= 16)
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    images = model.generate([3, 5], seed=1)
    assert set(seen) == {torch.int8}
    seen.clear()
    for core in cores:
        core.quantizer = None
    assert torch.equal(model.generate([3, 5], seed=1), images)
    assert set(seen) == {torch.float32}
    handle.remove()
    fuse_(model)
    assert cores[proj.index(first)].quantizer is not None
    unfuse_(model)
    assert not any(core.quantizer for core in cores)


def test_attention_in_floats_emits_floats():
    assert quantized().transformer.blocks[0].attn.core.quantizer is None
