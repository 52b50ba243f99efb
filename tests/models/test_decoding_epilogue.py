"""Decoding adds the residual in the GEMM's epilogue: in float32 to the bits of separate operations,
in narrower types rounded once."""

import pytest
import torch

import ptq4arvg
from ptq4arvg.calibration import Calibration
from ptq4arvg.models import layers, var
from ptq4arvg.nn import PackedLinear
from ptq4arvg.pipeline import quantize_


@pytest.fixture(scope="module")
def model():
    model = ptq4arvg.load_model("var-tiny")
    ids = torch.randint(512, (2, model.tokens), generator=torch.Generator().manual_seed(1))
    rows = Calibration(ids, torch.tensor([0, model.null_label]), seed=1, select="given")
    quantize_(model, "W8A8", "rtn", rows)
    return model


def logits_of_decoding(model):
    seen = []
    hook = model.transformer.head.register_forward_hook(lambda _m, _a, y: seen.append(y.clone()))
    model.sample_ids(torch.arange(3), seed=2)
    hook.remove()
    return torch.cat(seen, 1)


def test_residual_and_gate_in_the_epilogue(model):
    linear = model.transformer.blocks[0].attn.proj
    assert isinstance(linear, PackedLinear)
    model.cursor.set(5, 9)
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, 9, 256, generator=generator) for _ in range(2))
    gate = torch.randn(2, 6, 256, generator=generator)[:, 1]  # strided, as a modulation is
    assert torch.equal(linear(x, residual, gate), residual + linear(x) * gate[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [False, True])
def test_narrow_types_are_rounded_once(model, dtype, gated):
    linear = model.transformer.blocks[0].attn.proj
    model.cursor.set(5, 9)
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, 9, 256, generator=generator).to(dtype) for _ in range(2))
    gate = torch.randn(2, 1, 256, generator=generator).to(dtype) if gated else None
    y = layers.add_gated(linear, x, residual, gate)
    wide = None if gate is None else gate.float()
    exact = layers.add_gated(linear, x.float(), residual.float(), wide)
    assert torch.equal(y, exact.to(dtype))
    apart = residual + linear(x) * (1 if gate is None else gate)
    assert (y - exact).norm() < (apart - exact).norm()


def test_decoding_is_equal_bit_by_bit(model, monkeypatch):
    fused = logits_of_decoding(model)
    monkeypatch.setattr(var, "add_gated", lambda linear, x, y, gate: y + linear(x) * gate)
    assert torch.equal(fused, logits_of_decoding(model))


def test_decoding_of_the_float_model_agrees_with_teacher_forcing():
    model = ptq4arvg.load_model("var-tiny")
    seen = []
    hook = model.transformer.head.register_forward_hook(lambda _m, _a, y: seen.append(y.clone()))
    labels = torch.arange(2)
    ids = model.sample_ids(labels, seed=2)
    decoded = torch.cat(seen, 1)[:2]
    replayed = model.replay(ids, labels)
    hook.remove()
    torch.testing.assert_close(decoded, replayed, rtol=1e-4, atol=1e-4)
