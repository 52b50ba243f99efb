"""The single-scale tokenizer's training: its bottleneck, resuming, the export."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ptq4arvg.models import load_model
from ptq4arvg.models.registry import DATA
from ptq4arvg.models.vq16 import VQ16
from tests.zoo.helpers import check_like_bundled, check_resume, seeded
from zoo import autoencoder, train_vq
from zoo.common import architecture, fresh_weights

BUNDLED = DATA / "vq-tiny" / "tokenizer.safetensors"


@pytest.fixture
def codes():
    """The bottleneck of a run of 8 steps, of which 2 are without codes."""
    with fresh_weights(0):
        model = VQ16(architecture("rar-tiny").tokenizer.config)
    return train_vq.Codes(model, 8, "cpu", seeded(0))


def test_vq_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "REPLACE_EVERY", 1)  # in the second step with codes
    monkeypatch.setattr(autoencoder, "RARE", 1.0)
    with monkeypatch.context() as patch:
        out = check_resume(train_vq, "vq", ["vq.safetensors"], data, tmp_path, patch)
    check_like_bundled(out / "vq.safetensors", BUNDLED)
    for name in ("rar-tiny", "par-tiny"):
        model = load_model(name, tokenizer=out / "vq.safetensors")
        ids = model.tokenizer.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
        assert ids.shape == (1, 64) and len(ids.unique()) > 5
        assert torch.isfinite(model.decode_ids(ids)).all()


def test_without_codes_the_unit_vectors_pass(codes):
    features = torch.randn(2, 8, 8, 8, generator=seeded(1))
    made, loss, shown = codes.through(1, features)
    torch.testing.assert_close(made, F.normalize(features, dim=1))
    assert loss.item() == 0 and not shown and codes.last is None


def test_codes_stand_in_for_unit_vectors_and_pass_the_gradient(codes):
    features = torch.randn(2, 8, 8, 8, generator=seeded(1)).requires_grad_()
    made, loss, _ = codes.through(2, features)
    quantizer = codes.model.quantize
    ids = quantizer.encode(F.normalize(features.detach(), dim=1))
    torch.testing.assert_close(made, quantizer.decode(ids), atol=1e-6, rtol=0)
    # The codebook was just filled from these very vectors.
    known = F.normalize(features, dim=1).detach().flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.cdist(quantizer.embedding.weight.detach(), known).amin(1).max() < 1e-3
    unit = F.normalize(features.detach(), dim=1)
    chord = (unit - quantizer.decode(ids)).square().sum(1).mean().item()
    assert loss.item() == pytest.approx(1.25 * chord, abs=1e-6)
    direction = torch.randn(made.shape, generator=seeded(2))
    (gradient,) = torch.autograd.grad((made * direction).sum(), features, retain_graph=True)
    (wanted,) = torch.autograd.grad((F.normalize(features, dim=1) * direction).sum(), features)
    torch.testing.assert_close(gradient, wanted)


def test_rare_codes_become_present_vectors(codes, monkeypatch):
    monkeypatch.setattr(autoencoder, "REPLACE_EVERY", 1)
    optimizer = autoencoder.make_optimizer(codes.model, codes.model.quantize.embedding.weight)
    features = torch.randn(16, 8, 8, 8, generator=seeded(1))  # a vector for every code
    codes.through(2, features)
    codes.use.hits[[7, 900]] = 0.0
    weight = codes.model.quantize.embedding.weight
    before = weight.detach().clone()
    codes.after(2, optimizer)
    changed = (weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [7, 900] and codes.use.rare().numel() == 0
    unit = F.normalize(features, dim=1).flatten(2).transpose(1, 2).flatten(0, 1)
    assert all((unit == weight[code]).all(1).any() for code in changed)
