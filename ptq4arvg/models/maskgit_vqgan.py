"""The convolutional VQ tokenizer of RAR: MaskGIT's VQGAN (Chang et al. 2022), one grid of tokens.

Names in the state dict are those of the published file. Images are in [0, 1] here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import convolve_normalized, convolve_upsampled

__all__ = ["MaskGITVQGAN", "MaskGITVQGANConfig"]


@dataclass(frozen=True)
class MaskGITVQGANConfig:
    """Sizes of the tokenizer. ``grid`` tokens on a side; each level after the first halves it."""

    vocab_size: int = 1024
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    grid: int = 16

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.grid * 2 ** (len(self.ch_mult) - 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions without bias, norm and SiLU before each, and a shortcut.

    Where the number of channels changes, the 1x1 shortcut reads the *second convolution's output*:
    that is what the published weights were trained with.
    """

    integer_convolutions: ClassVar = ("conv1", "conv2")

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs
        self.nin_shortcut = None if same else nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = convolve_normalized(self.norm1, self.conv1, x)
        if self.nin_shortcut is None:
            return convolve_normalized(self.norm2, self.conv2, h, residual=x)
        h = convolve_normalized(self.norm2, self.conv2, h)
        return h + self.nin_shortcut(h)


class Level(nn.Module):
    """The residual blocks of one resolution, and the convolution after upsampling, if any."""

    integer_convolutions: ClassVar = ("upsample_conv",)

    def __init__(self, inputs: int, outputs: int, blocks: int, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(ResnetBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        )
        self.upsample_conv = nn.Conv2d(outputs, outputs, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.upsample_conv is None:
            return x
        return convolve_upsampled(self.upsample_conv, x)


class Encoder(nn.Module):
    """Images [B, 3, H, W] to latents [B, z, h, w]."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths, blocks = [config.ch * m for m in config.ch_mult], config.num_res_blocks
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(inputs, width, blocks)
            for inputs, width in zip([config.ch, *widths], widths, strict=False)
        )
        self.mid = nn.Sequential(*(ResnetBlock(widths[-1], widths[-1]) for _ in range(blocks)))
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return convolve_normalized(self.norm_out, self.conv_out, self.mid(x))


class Decoder(nn.Module):
    """Latents [B, z, h, w] to images [B, 3, H, W]."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths, blocks = [config.ch * m for m in config.ch_mult], config.num_res_blocks
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = nn.Sequential(*(ResnetBlock(widths[-1], widths[-1]) for _ in range(blocks)))
        self.up = nn.ModuleList(  # stored from the highest resolution down, run the other way
            Level(inputs, width, blocks, upsample=i > 0)
            for i, (inputs, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return convolve_normalized(self.norm_out, self.conv_out, x)


class Codebook(nn.Module):
    """Nearest codes of latents, and back."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)

    def encode(self, z: Tensor) -> Tensor:
        """Latents [B, z, h, w] to ids int64 [B, h * w]."""
        rows = z.flatten(2).transpose(1, 2).reshape(-1, z.shape[1])  # [B * h * w, z]
        codes = self.embedding.weight
        # |row|^2 is the same for all codes
        distance = codes.square().sum(1) - 2 * rows @ codes.T
        return distance.argmin(1).view(len(z), -1)

    def forward(self, ids: Tensor, grid: int) -> Tensor:
        """Ids [B, grid * grid] to latents [B, z, grid, grid]."""
        return self.embedding(ids).transpose(1, 2).unflatten(2, (grid, grid))


class MaskGITVQGAN(nn.Module):
    """Images in [0, 1] to token ids, in raster order, and back."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config)

    def encode(self, images: Tensor) -> Tensor:
        """Token ids int64 [B, T] of images [B, 3, H, W] in [0, 1], of any size."""
        return self.quantize.encode(self.encoder(images))

    def decode_unclamped(self, ids: Tensor) -> Tensor:
        """The decoder's output [B, 3, H, W] for token ids [B, T] of a whole grid."""
        return self.decoder(self.quantize(ids, self.config.grid))

    def decode(self, ids: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of token ids [B, T] of a whole grid."""
        return self.decode_unclamped(ids).clamp(0, 1)

    def images(self, ids: Tensor) -> Tensor:
        """What ``decode`` returns: under the name that every tokenizer of one grid has."""
        return self.decode(ids)
