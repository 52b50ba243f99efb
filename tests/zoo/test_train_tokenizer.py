"""The tokenizer's training: its parts against what they stand for, resuming, the export."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ptq4arvg.models import load_model
from ptq4arvg.models.vqvae import VQVAE
from tests.zoo.helpers import check_like_bundled, check_resume, seeded
from zoo import autoencoder, train_tokenizer


def test_tokenizer_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch, bundled):
    monkeypatch.setattr(autoencoder, "REPLACE_EVERY", 1)  # in the second step with codes
    monkeypatch.setattr(autoencoder, "RARE", 1.0)
    replaced = []
    original = train_tokenizer.replace_rare_

    def counting(*arguments):
        replaced.append(original(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(train_tokenizer, "replace_rare_", counting)
        out = check_resume(train_tokenizer, "tokenizer", ["tokenizer.safetensors"], data, tmp_path,
                           patch)  # fmt: skip
    assert replaced and min(replaced) > 0
    check_like_bundled(out / "tokenizer.safetensors")
    model = load_model("var-tiny", tokenizer=out / "tokenizer.safetensors")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    ids = model.tokenizer.encode(images)
    assert ids.shape == (1, 155) and len(ids.unique()) > 5
    assert torch.isfinite(model.tokenizer.decode(ids)).all()
    assert not torch.equal(ids, bundled.tokenizer.encode(images))


def test_quantizing_gives_the_codes_of_the_tokenizer_and_passes_the_gradient(bundled):
    quantizer = bundled.tokenizer.quantize
    f = torch.randn(2, 16, 8, 8, generator=seeded(0)).requires_grad_()
    f_hat, loss, ids = train_tokenizer.quantize(quantizer, f)
    assert torch.equal(ids, quantizer.encode(f.detach()))
    torch.testing.assert_close(f_hat, quantizer.latents_and_inputs(ids)[0], atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(f_hat.sum(), f)
    assert torch.equal(gradient, torch.ones_like(f))
    # Each scale: 1.25 times the mean square error of what is known so far.
    total, known = 0.0, torch.zeros_like(f)
    for scale, part in enumerate(quantizer.split(ids)):
        known = known + quantizer.contribution(scale, part)
        total += 1.25 * F.mse_loss(known, f).item() / 7
    _, loss, _ = train_tokenizer.quantize(quantizer, f)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_the_codebook_is_filled_from_the_latents(bundled):
    quantizer = VQVAE(bundled.tokenizer.config).quantize
    f = torch.randn(16, 16, 8, 8, generator=seeded(0))
    train_tokenizer.fill_codebook_(quantizer, f, seeded(0))
    codes = quantizer.embedding.weight.detach()
    assert len(codes.unique(dim=0)) > 500  # the corners of 4x4 and 5x5 means are the same
    vectors = f.permute(0, 2, 3, 1).reshape(-1, 16)

    def nearest(a, b):
        # Exactly, not by matrix products, which leave a rest of 1e-3 between equal vectors.
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").amin(1)

    assert nearest(codes[:150], vectors).max() < 1e-5
    means = F.adaptive_avg_pool2d(f, 1).flatten(1)
    assert nearest(means, codes[230:330]).min() < 1e-5
    assert nearest(codes[330:], vectors).min() > 1e-3  # residuals


def test_rare_codes_are_replaced_and_forgotten_by_the_optimizer(bundled):
    model = VQVAE(bundled.tokenizer.config)
    quantizer = model.quantize
    weight = quantizer.embedding.weight
    optimizer = autoencoder.make_optimizer(model, quantizer.embedding.weight)
    f = torch.randn(2, 16, 8, 8, generator=seeded(0))
    train_tokenizer.quantize(quantizer, f)[1].backward()
    optimizer.step()
    use = autoencoder.CodeUse(512, "cpu")
    use.start(512 * 20)
    use.hits[[3, 400]] = 0.5
    before, moments = weight.detach().clone(), optimizer.state[weight]
    moments["exp_avg"].fill_(1)
    ids = quantizer.encode(f)
    count = train_tokenizer.replace_rare_(quantizer, f, ids, use, optimizer, seeded(0))
    changed = (weight != before).any(1).nonzero().flatten().tolist()
    assert count == 2 and changed == [3, 400]
    assert moments["exp_avg"][[3, 400]].eq(0).all() and moments["exp_avg"].sum() == 510 * 16
    assert use.rare().numel() == 0


def test_hits_are_averaged_over_batches():
    use = autoencoder.CodeUse(4, "cpu")
    use.start(8)
    use.count(torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1]]))
    assert use.hits.tolist() == pytest.approx([2 * 0.98 + 6 * 0.02, 2.0, 1.96, 1.96])
    for _ in range(400):
        use.count(torch.tensor([0, 0, 1, 2]))
    assert use.rare().tolist() == [3]


def test_the_picture_loss_counts_errors_and_edges():
    wanted = torch.zeros(1, 3, 4, 4)
    loss, absolute = autoencoder.picture_loss(wanted + 0.5, wanted)
    assert absolute.item() == 0.5 and loss.item() == pytest.approx(0.75)  # an even error: no edges
    striped = wanted.clone()
    striped[..., ::2] = 1.0
    assert autoencoder.picture_loss(striped, wanted)[0].item() == pytest.approx(1 + 0.5)
