"""Encoder and decoder of the convolutional image tokenizer, with the published key names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import convolve_normalized, convolve_upsampled

__all__ = ["Decoder", "Encoder"]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with norm and SiLU before each, and a shortcut."""

    integer_convolutions: ClassVar = ("conv1", "conv2")

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = convolve_normalized(self.norm1, self.conv1, x)
        return convolve_normalized(self.norm2, self.conv2, h, residual=self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head attention over all pixels. Files may hold q, k and v apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        self._register_load_state_dict_pre_hook(self._join_qkv)

    @staticmethod
    def _join_qkv(state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{prefix}{part}.{kind}", None) for part in "qkv"]
            if all(part is not None for part in parts):
                state[f"{prefix}qkv.{kind}"] = torch.cat(parts)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, c, h * w).transpose(2, 3).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)  # [B, HW, C]
        return x + self.proj_out(y.transpose(1, 2).reshape(b, c, h, w))


class Downsample(nn.Module):
    """Halve both sides: a stride-2 convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a convolution."""

    integer_convolutions: ClassVar = ("conv",)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve_upsampled(self.conv, x)


class Level(nn.Module):
    """One resolution: residual blocks, attention after each at the lowest, a resampler or none."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)
        )
        attentions = blocks if attention else 0
        self.attn = nn.ModuleList(AttentionBlock(outputs) for _ in range(attentions))
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images [B, 3, H, W] to features [B, z, h, w]; each level after the first halves the side."""

    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int, mid_attention: bool,
                 low_attention: bool) -> None:  # fmt: skip
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(inputs, width, blocks, low_attention and i == last,
                  None if i == last else Downsample(width))
            for i, (inputs, width) in enumerate(zip([ch, *widths], widths, strict=False))
        )  # fmt: skip
        self.mid = Middle(widths[-1], mid_attention)
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return convolve_normalized(self.norm_out, self.conv_out, self.mid(x))


class Decoder(nn.Module):
    """Features [B, z, h, w] to images [B, 3, H, W]; one block more per level than the encoder."""

    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int, mid_attention: bool,
                 low_attention: bool) -> None:  # fmt: skip
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(z, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], mid_attention)
        self.up = nn.ModuleList(  # stored from the highest resolution down, run the other way
            Level((widths + widths[-1:])[i + 1], width, blocks + 1, low_attention and i == last,
                  Upsample(width) if i else None)
            for i, width in enumerate(widths)
        )  # fmt: skip
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            # Faster there; on a GPU every norm would copy to channels-first and stay there.
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return convolve_normalized(self.norm_out, self.conv_out, x)
