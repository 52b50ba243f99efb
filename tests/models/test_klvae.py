"""The autoencoder of MAR beyond the records: its bounds, and the scale of the latents."""

import pytest
import torch

from ptq4arvg.models.klvae import KLVAE, KLVAEConfig

Z = 2


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = KLVAEConfig(z_channels=Z, ch=32, ch_mult=(1, 2), num_res_blocks=1, latent_side=3,
                         scale=0.25)  # fmt: skip
    made = KLVAE(config).eval().requires_grad_(False)
    made.decoder.conv_out.weight.mul_(10)  # pixels far beyond the bounds
    return made


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_published_sizes():
    assert (KLVAEConfig().image_size, KLVAEConfig().scale) == (256, 0.2325)


def test_the_logarithm_of_the_variance_is_bounded(tokenizer):
    made = KLVAE(tokenizer.config).requires_grad_(False)
    made.quant_conv.weight.zero_()
    made.quant_conv.bias.copy_(torch.tensor([70.0, -70, 21, -31]))
    mean, log_variance = made.posterior(normal(1, 3, 6, 6))
    assert mean.shape == log_variance.shape == (1, Z, 3, 3)
    assert mean[0, :, 1, 1].tolist() == [70, -70]
    assert log_variance[0, :, 1, 1].tolist() == [20, -30]


def test_tokens_are_scaled_latents(tokenizer):
    images, latents = normal(2, 3, 6, 6), normal(2, Z, 3, 3)
    side = tokenizer.config.image_size
    assert torch.equal(tokenizer.encode(images), tokenizer.posterior(images)[0] * 0.25)
    decoded = tokenizer.decode(9 * latents)
    assert decoded.shape == (2, 3, side, side) and side == 6
    assert decoded.min() < -1 and decoded.max() > 1
    assert torch.equal(tokenizer.decode_scaled(9 * latents * 0.25), decoded.clamp(-1, 1))
