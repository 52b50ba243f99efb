"""The KL-regularized autoencoder of MAR (KL-16): images to continuous latents and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .vqvae_blocks import Decoder, Encoder

__all__ = ["KLVAE", "KLVAEConfig"]


@dataclass(frozen=True)
class KLVAEConfig:
    """Sizes of the tokenizer. The grid of latents is ``latent_side`` on a side; images are
    ``2 ** (len(ch_mult) - 1)`` times as large.

    scale: what the transformer's tokens are multiples of (about one over the latents' deviation).
    """

    z_channels: int = 16
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_side: int = 16
    scale: float = 0.2325

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.latent_side * 2 ** (len(self.ch_mult) - 1)


class KLVAE(nn.Module):
    """Images in [-1, 1] to a normal distribution of latents, and latents to images."""

    # Published files hold the three maps of an attention apart, and may keep a training loss.
    joined: ClassVar = {
        "qkv.weight": ("q.weight", "k.weight", "v.weight"),
        "qkv.bias": ("q.bias", "k.bias", "v.bias"),
    }
    recomputed = r"^loss\."

    def __init__(self, config: KLVAEConfig) -> None:
        super().__init__()
        self.config = config
        z, sizes = config.z_channels, (config.ch, config.ch_mult, config.num_res_blocks)
        self.encoder = Encoder(*sizes, 2 * z, mid_attention=True, low_attention=True)
        self.decoder = Decoder(*sizes, z, mid_attention=True, low_attention=False)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance) [B, z, h, h] of the latents of images [B, 3, H, W] in [-1, 1]."""
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, 1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1], of latents [B, z, h, h]."""
        return self.decoder(self.post_quant_conv(latents))

    def encode(self, images: Tensor) -> Tensor:
        """The transformer's latents [B, z, h, h]: the scaled mean for images in [-1, 1]."""
        return self.posterior(images)[0] * self.config.scale

    def decode_scaled(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of the transformer's latents [B, z, h, h]."""
        return torch.clamp(self.decode(latents / self.config.scale), -1, 1)
