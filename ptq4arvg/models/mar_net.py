"""The networks of MAR: encoder, decoder and diffusion head (Li et al. 2024, "Autoregressive image
generation without vector quantization").

Names in the state dict are those of the published checkpoints. Shapes: B rows, N image tokens, b
buffer tokens, v visible tokens, D width, C channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..nn import AttentionCore, Cursor, Prologue
from .base import SamplingDefaults
from .diffloss import DiffLoss, respaced_schedule
from .layers import FeedForward, ModulatedNorm, add_gated, head_size

__all__ = ["MAR", "MARConfig"]

GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class MARConfig:
    """Sizes of the transformer. ``grid``: side of the token grid; ``patch``: latents on a side of
    a token; ``diff_width``, ``diff_depth``, ``diffusion_steps``: of the diffusion head, whose
    sampling begins at the training step ``noisiest_step``.

    num_iter: iterations of the mask schedule; cfg_schedule: guidance grows with the share of
    tokens that are there ("linear") or is "constant".
    """

    embed_dim: int
    encoder_depth: int
    decoder_depth: int
    num_heads: int
    diff_width: int
    diff_depth: int
    num_classes: int = 1000
    grid: int = 16
    patch: int = 1
    z_channels: int = 16
    buffer: int = 64
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    diffusion_steps: int = 100
    noisiest_step: int = 999
    num_iter: int = 64
    temperature: float = 1.0
    cfg_schedule: str = "linear"
    sampling: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(2.9, 0, 0.0))
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.cfg_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"MARConfig: cfg_schedule is {self.cfg_schedule!r}; wanted one of "
                f"{', '.join(GUIDANCE_SCHEDULES)}"
            )

    @property
    def tokens(self) -> int:
        """Image tokens N."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """Channels C of a token."""
        return self.z_channels * self.patch**2


class Attention(nn.Module):
    """Attention of all tokens to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, head_size(width, heads)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.core = AttentionCore()

    def attend(self, x: Tensor) -> Tensor:
        """Everything but the projection: x [B, t, D] -> [B, t, D]."""
        b, t, _ = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.heads, self.size)
        return self.core.attend(qkv, Prologue(q_factor=self.size**-0.5))


class Block(nn.Module):
    """Attention and feed-forward behind affine norms."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm1, self.norm2 = (ModulatedNorm(c, config.norm_eps, affine=True) for _ in range(2))
        self.attn = Attention(c, config.num_heads)
        self.mlp = FeedForward(c, round(c * config.mlp_ratio), "gelu")

    def forward(self, x: Tensor, sampling: bool = False) -> Tensor:
        """x [B, t, D]; sampling: nothing looks at a linear's own output, so it may be fused."""
        if sampling:
            x = add_gated(self.attn.proj, self.attn.attend(self.norm1(x)), x, None)
            return add_gated(self.mlp.fc2, self.mlp.hidden(self.norm2(x)), x, None)
        x = x + self.attn.proj(self.attn.attend(self.norm1(x)))
        return x + self.mlp.fc2(self.mlp.hidden(self.norm2(x)))


class MAR(nn.Module):
    """The encoder, the decoder and the diffusion head."""

    published_under: ClassVar = ("model_ema",)  # the published results are of the averaged weights

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config, self.cursor = config, Cursor()
        c, slots, eps = config.embed_dim, config.buffer + config.tokens, config.norm_eps
        self.class_emb = nn.Embedding(config.num_classes, c)
        self.fake_latent = nn.Parameter(torch.zeros(1, c))
        self.z_proj, self.z_proj_ln = nn.Linear(config.channels, c), nn.LayerNorm(c, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, c))
        self.encoder_blocks = nn.ModuleList(Block(config) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(c, eps=eps)
        self.decoder_embed = nn.Linear(c, c)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, c))
        self.decoder_blocks = nn.ModuleList(Block(config) for _ in range(config.decoder_depth))
        self.decoder_norm = ModulatedNorm(c, eps, affine=True)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.tokens, c))
        self.diffloss = DiffLoss(
            config.channels, config.diff_width, config.diff_depth, c,
            respaced_schedule(config.diffusion_steps, config.noisiest_step),
        )  # fmt: skip

    def condition(self, labels: Tensor) -> Tensor:
        """What stands for labels [B] in the buffer, [B, D]; ``num_classes`` is no class."""
        none = self.config.num_classes
        embedding = self.class_emb(labels.clamp_max(none - 1))
        return torch.where((labels == none)[:, None], self.fake_latent, embedding)

    def encode(
        self, tokens: Tensor, visible: Tensor, condition: Tensor, sampling: bool = False
    ) -> Tensor:
        """Buffer and visible tokens [B, b + v, D] of tokens [B, N, C] and condition [B, D].

        visible int64 [B, v]: positions of the tokens that are there, ascending.
        """
        b, rows = self.config.buffer, torch.arange(len(tokens), device=tokens.device)[:, None]
        position = self.encoder_pos_embed_learned[0]
        x = torch.cat([condition[:, None] + position[:b],
                       self.z_proj(tokens[rows, visible]) + position[b + visible]], 1)  # fmt: skip
        x = self.z_proj_ln(x)
        self.cursor.set(0, x.shape[1])
        for block in self.encoder_blocks:
            x = block(x, sampling)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, visible: Tensor, sampling: bool = False) -> Tensor:
        """Conditions of the diffusion head [B, N, D] from the output of ``encode``."""
        b, rows = self.config.buffer, torch.arange(len(encoded), device=encoded.device)[:, None]
        known = self.decoder_embed(encoded)
        image = self.mask_token.repeat(len(encoded), self.config.tokens, 1).to(known.dtype)
        image[rows, visible] = known[:, b:]
        x = torch.cat([known[:, :b], image], 1) + self.decoder_pos_embed_learned
        self.cursor.set(0, x.shape[1])
        for block in self.decoder_blocks:
            x = block(x, sampling)
        return self.decoder_norm(x)[:, b:] + self.diffusion_pos_embed_learned
