"""VQ-16, the image tokenizer of LlamaGen (Sun et al. 2024, sec. 3.1), with the published key names.

The residual blocks and resamplers are those of ``vqvae_blocks``; only how they are arranged and
named differs. Codes have unit length whenever they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import convolve_normalized
from .vqvae_blocks import Downsample, ResnetBlock, Upsample

__all__ = ["VQ16", "VQ16Config"]


@dataclass(frozen=True)
class VQ16Config:
    """Sizes of the tokenizer. Latents are ``grid`` on a side; images are
    ``2 ** (len(ch_mult) - 1)`` times as large.

    l2_norm: latents and codes are compared and used at unit length, as published.
    """

    vocab_size: int = 16384
    code_dim: int = 8
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    grid: int = 24
    l2_norm: bool = True

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.grid * 2 ** (len(self.ch_mult) - 1)


class AttentionBlock(nn.Module):
    """Single-head attention over all pixels; q, k and v from convolutions of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # [B, C, H, W] -> [B, HW, C]
        q, k, v = (part(y).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """One resolution: residual blocks, attention after each at the lowest, a resampler or none."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(outputs) for _ in range(blocks * attention))
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResnetBlock(channels, channels), AttentionBlock(channels), ResnetBlock(channels, channels)
    )


class _Coder(nn.Module):
    """What encoder and decoder end with: norm, SiLU, convolution."""

    def _end(self, channels: int, outputs: int) -> None:
        self.norm_out = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, outputs, 3, padding=1)

    def _out(self, x: Tensor) -> Tensor:
        return convolve_normalized(self.norm_out, self.conv_out, x)


class Encoder(_Coder):
    """Images [B, 3, H, W] to features [B, z, h, w]; each level after the first halves the side."""

    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(inputs, width, blocks, i == last, None if i == last else Downsample(width))
            for i, (inputs, width) in enumerate(zip([ch, *widths], widths, strict=False))
        )
        self.mid = _middle(widths[-1])
        self._end(widths[-1], z)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
        return self._out(self.mid(x))


class Decoder(_Coder):
    """Features [B, z, h, w] to images [B, 3, H, W]; one block more per level than the encoder."""

    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int) -> None:
        super().__init__()
        widths = [ch * m for m in reversed(ch_mult)]  # stored from the lowest resolution up
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(z, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList(
            Level(inputs, width, blocks + 1, i == 0, None if i == last else Upsample(width))
            for i, (inputs, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self._end(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.conv_blocks:
            x = level(x)
        return self._out(x)


class Codebook(nn.Module):
    """Latents [B, D, h, w] as one code id per pixel, in raster order, and back."""

    def __init__(self, config: VQ16Config) -> None:
        super().__init__()
        self.grid, self.l2_norm = config.grid, config.l2_norm
        self.embedding = nn.Embedding(config.vocab_size, config.code_dim)

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.l2_norm else x

    def encode(self, latents: Tensor) -> Tensor:
        """Nearest codes of latents [B, D, h, w]: ids int64 [B, h * w]."""
        z = self._unit(latents.flatten(2).transpose(1, 2))  # [B, D, h, w] -> [B, hw, D]
        codes = self._unit(self.embedding.weight)
        distance = z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * z @ codes.T
        return distance.argmin(-1)

    def decode(self, ids: Tensor) -> Tensor:
        """Latents [B, D, grid, grid] of ids [B, grid * grid]."""
        codes = self._unit(self.embedding(ids))
        return codes.transpose(1, 2).reshape(len(ids), -1, self.grid, self.grid)


class VQ16(nn.Module):
    """Images in [-1, 1] to token ids in raster order, and back."""

    recomputed = r"(^|\.)codebook_used$"  # bookkeeping of the published files

    def __init__(self, config: VQ16Config) -> None:
        super().__init__()
        self.config = config
        sizes = config.ch, config.ch_mult, config.num_res_blocks, config.z_channels
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def latents(self, images: Tensor) -> Tensor:
        """Continuous latents [B, D, h, w] of images [B, 3, H, W] in [-1, 1]."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Token ids int64 [B, h * w] of images [B, 3, H, W] in [-1, 1]."""
        return self.quantize.encode(self.latents(images))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents [B, D, h, w]; values slightly outside [-1, 1] occur."""
        return self.decoder(self.post_quant_conv(latents))

    def decode(self, ids: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of token ids [B, h * w]."""
        return self.decode_latents(self.quantize.decode(ids)).clamp(-1, 1)

    def images(self, ids: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of token ids [B, h * w]."""
        return self.decode(ids).add(1).mul(0.5)
