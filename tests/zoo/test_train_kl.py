"""The continuous tokenizer's training: its divergence, the scale of its latents, the export."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ptq4arvg.models import load_model
from ptq4arvg.models.klvae import KLVAE
from ptq4arvg.models.registry import DATA
from tests.zoo.helpers import check_like_bundled, check_resume, seeded
from zoo import common, train_kl

BUNDLED = DATA / "kl-tiny" / "tokenizer.safetensors"


@pytest.fixture
def model():
    """An untrained tokenizer."""
    with common.fresh_weights(0):
        return KLVAE(common.architecture("mar-tiny").tokenizer.config)


def test_kl_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    out = check_resume(train_kl, "kl", ["kl.safetensors"], data, tmp_path, monkeypatch)
    check_like_bundled(out / "kl.safetensors", BUNDLED)
    tokenizer = load_model("mar-tiny", tokenizer=out / "kl.safetensors").tokenizer
    pictures = common.load_data(data, 32)
    latents = tokenizer.encode(pictures.unit(pictures.train) * 2 - 1)
    assert latents.shape == (18, 8, 8, 8)
    assert latents.std().item() == pytest.approx(1, abs=0.01)  # half precision


def test_the_divergence_is_that_from_a_standard_normal(model):
    features = torch.randn(2, 16, 8, 8, generator=seeded(0))
    made, loss, shown = train_kl.Posterior(model, seeded(1)).through(0, features)
    mean, log_variance = features.chunk(2, 1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    wanted = kl_divergence(posterior, Normal(0.0, 1.0)).mean()
    assert shown["KL"] == pytest.approx(wanted.item(), rel=1e-5)
    assert loss.item() == pytest.approx(train_kl.KL_WEIGHT * wanted.item(), rel=1e-5)
    drawn = (made - mean) / posterior.scale
    torch.testing.assert_close(drawn, torch.randn(mean.shape, generator=seeded(1)),
                               atol=1e-4, rtol=1e-4)  # fmt: skip


def test_scaling_the_latents_changes_no_picture_and_no_relative_spread(data, model):
    pictures = common.load_data(data, 32)
    images = pictures.unit(pictures.train) * 2 - 1
    with torch.no_grad():
        mean, log_variance = model.posterior(images)
        made = model.decode(mean)
        train_kl.to_unit_deviation_(model, pictures, batch=5)
        scaled, scaled_log_variance = model.posterior(images)
        deviation = mean.std()
        torch.testing.assert_close(scaled, mean / deviation, atol=1e-5, rtol=1e-5)
        assert scaled.std().item() == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(
            scaled_log_variance, log_variance - 2 * deviation.log(), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(model.decode(scaled), made, atol=1e-5, rtol=1e-4)
