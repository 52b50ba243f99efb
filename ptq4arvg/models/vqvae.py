"""The multi-scale residual VQ autoencoder of VAR (Tian et al. 2024, sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vqvae_blocks import Decoder, Encoder

__all__ = ["VQVAE", "MultiScaleQuantizer", "VQVAEConfig"]


@dataclass(frozen=True)
class VQVAEConfig:
    """Sizes of the tokenizer. The grid of latents is ``patch_nums[-1]`` on a side; images are
    ``2 ** (len(ch_mult) - 1)`` times as large.

    quant_resi: share of the convolution behind each upsampling (0: there are none);
    share_quant_resi: how many convolutions the scales share (0: each its own). using_znorm: nearest
    codes by cosine instead of distance.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    quant_conv_ks: int = 3
    quant_resi: float = 0.5
    share_quant_resi: int = 4
    using_znorm: bool = False
    using_sa: bool = True
    using_mid_sa: bool = True

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.patch_nums[-1] * 2 ** (len(self.ch_mult) - 1)


class _Shared(nn.Module):
    """One convolution for all scales."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.qresi = convolution

    def of(self, index: int) -> nn.Module:
        return self.qresi


class _PartlyShared(nn.Module):
    """A few convolutions, each for neighbouring scales."""

    def __init__(self, convolutions: list[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(convolutions)

    def of(self, index: int) -> nn.Module:
        return self.qresi_ls[index]


class _Own(nn.ModuleList):
    """A convolution for every scale."""

    def of(self, index: int) -> nn.Module:
        return self[index]


class MultiScaleQuantizer(nn.Module):
    """Latents [B, z, h, h] as token ids per scale, and back: every scale codes what is left."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.patch_nums, self.ratio = config.patch_nums, abs(config.quant_resi)
        self.znorm = config.using_znorm
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)
        scales, z = len(self.patch_nums), config.z_channels
        k = config.share_quant_resi or scales
        # The original drops convolutions whose share is next to nothing.
        convolutions = [
            nn.Conv2d(z, z, 3, padding=1) if self.ratio > 1e-6 else nn.Identity() for _ in range(k)
        ]
        if config.share_quant_resi == 0:
            self.quant_resi = _Own(convolutions)
        else:
            self.quant_resi = _Shared(convolutions[0]) if k == 1 else _PartlyShared(convolutions)
        # Which convolution serves which scale: float64 as in the original, where ties decide.
        last = max(scales - 1, 1)
        edge = 1 / 3 / k if k == 4 else 1 / 2 / k
        ticks = np.linspace(edge, 1 - edge, k)
        self.phi_of_scale = [int(np.argmin(np.abs(ticks - i / last))) for i in range(scales)]

    def _phi(self, scale: int, h: Tensor) -> Tensor:
        convolution = self.quant_resi.of(self.phi_of_scale[scale])
        if isinstance(convolution, nn.Identity):
            return h
        return h * (1 - self.ratio) + convolution(h) * self.ratio

    def contribution(self, scale: int, ids: Tensor) -> Tensor:
        """What the ids [B, p * p] of one scale add to the latents, [B, z, h, h]."""
        side, full = self.patch_nums[scale], self.patch_nums[-1]
        h = self.embedding(ids).transpose(1, 2)  # [B, z, p * p]
        h = h.reshape(ids.shape[0], -1, side, side)
        if side != full:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        return self._phi(scale, h)

    def step(self, scale: int, f_hat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add one scale: (new latents, input of the next scale [B, p' * p', z] or None)."""
        f_hat = f_hat + self.contribution(scale, ids)
        if scale + 1 == len(self.patch_nums):
            return f_hat, None
        side = self.patch_nums[scale + 1]
        following = F.interpolate(f_hat, size=(side, side), mode="area")
        return f_hat, following.flatten(2).transpose(1, 2)  # [B, z, p', p'] -> [B, p' * p', z]

    def empty(self, images: int, like: Tensor | None = None) -> Tensor:
        """Zero latents [B, z, h, h]."""
        weight = self.embedding.weight if like is None else like
        side = self.patch_nums[-1]
        return weight.new_zeros(images, self.embedding.embedding_dim, side, side)

    def split(self, ids: Tensor) -> list[Tensor]:
        """Ids [B, T] of all scales in order as one tensor [B, p * p] per scale."""
        return list(ids.split([p * p for p in self.patch_nums], dim=1))

    def latents_and_inputs(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, T] to (latents [B, z, h, h], teacher-forcing input [B, T - 1, z])."""
        f_hat, inputs = self.empty(ids.shape[0]), []
        for scale, part in enumerate(self.split(ids)):
            f_hat, following = self.step(scale, f_hat, part)
            if following is not None:
                inputs.append(following)
        if not inputs:
            return f_hat, f_hat.new_zeros(ids.shape[0], 0, f_hat.shape[1])
        return f_hat, torch.cat(inputs, 1)

    def encode(self, f: Tensor) -> Tensor:
        """Nearest codes of latents f [B, z, h, h], scale after scale: ids int64 [B, T]."""
        rest, ids = f.clone(), []
        codes = self.embedding.weight
        for scale, side in enumerate(self.patch_nums):
            z = rest if side == f.shape[-1] else F.interpolate(rest, size=(side, side), mode="area")
            z = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # [B * p * p, z]
            if self.znorm:
                distance = -F.normalize(z, dim=1) @ F.normalize(codes, dim=1).T
            else:
                distance = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
            part = distance.argmin(1).view(f.shape[0], side * side)
            ids.append(part)
            rest = rest - self.contribution(scale, part)
        return torch.cat(ids, 1)


class VQVAE(nn.Module):
    """Images in [-1, 1] to token ids and back."""

    recomputed = r"(^|\.)ema_vocab_hit_SV$"  # bookkeeping of the published files

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels,
                 config.using_mid_sa, config.using_sa)  # fmt: skip
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.quantize = MultiScaleQuantizer(config)
        z, k = config.z_channels, config.quant_conv_ks
        self.quant_conv = nn.Conv2d(z, z, k, padding=k // 2)
        self.post_quant_conv = nn.Conv2d(z, z, k, padding=k // 2)

    def latents(self, images: Tensor) -> Tensor:
        """Continuous latents [B, z, h, h] of images [B, 3, H, W] in [-1, 1]."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Token ids int64 [B, T], all scales in order, of images [B, 3, H, W] in [-1, 1]."""
        return self.quantize.encode(self.latents(images))

    def decode_latents(self, f_hat: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of latents [B, z, h, h]."""
        return self.decoder(self.post_quant_conv(f_hat)).clamp(-1, 1)

    def decode(self, ids: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of token ids [B, T]."""
        return self.decode_latents(self.quantize.latents_and_inputs(ids)[0])
