#!/usr/bin/env python3
"""Train the tokenizer of var-tiny: a multi-scale residual VQ autoencoder.

    python zoo/train_tokenizer.py --data DIR --out DIR [--resume]

First a plain autoencoder; then the codebook is filled from one batch and the quantizer joins in.
Writes tokenizer.safetensors. Shapes: B pictures, z = 16 channels and side h = 8 of the latents,
V = 512 codes, T = 155 tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.models.vqvae import VQVAE, MultiScaleQuantizer
from zoo.autoencoder import (
    CodeUse,
    draw_vectors,
    plain_steps,
    replaces,
    train_autoencoder,
)
from zoo.common import architecture, export_weights, fresh_weights
from zoo.loop import arguments, run_command

COMMITMENT, LATENT_WEIGHT = 0.25, 1e-3
# Where the first codes come from: latents at 8x8, means over 5x5 squares, over 1x1 to 4x4, and
# for the rest of the codebook what 4x4 means leave over.
FILL_FULL, FILL_FIVE, FILL_SMALL = 150, 80, 100


def _vectors(latents: Tensor, side: int) -> Tensor:
    """Latents [B, z, h, h], averaged to ``side``, as vectors [B * side * side, z]."""
    if side != latents.shape[-1]:
        latents = F.interpolate(latents, size=(side, side), mode="area")
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def fill_codebook_(quantizer: MultiScaleQuantizer, f: Tensor, generator: torch.Generator) -> None:
    """Fill the codebook with vectors of the latents f [B, z, h, h]."""
    full = f.shape[-1]
    coarse = F.interpolate(f, size=(4, 4), mode="area")
    rest = f - F.interpolate(coarse, size=(full, full), mode="bicubic")
    small = torch.cat([_vectors(f, side) for side in (1, 2, 3, 4)])
    count = quantizer.embedding.num_embeddings - FILL_FULL - FILL_FIVE - FILL_SMALL
    quantizer.embedding.weight.copy_(
        torch.cat([
            draw_vectors(_vectors(f, full), FILL_FULL, generator),
            draw_vectors(_vectors(f, 5), FILL_FIVE, generator),
            draw_vectors(small, FILL_SMALL, generator),
            draw_vectors(_vectors(rest, full), count, generator),
        ])
    )  # fmt: skip


def quantize(quantizer: MultiScaleQuantizer, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(latents of the codes, with the gradient of f; the quantizer's loss; ids [B, T]).

    The loss is the mean over scales k of ``0.25 |sg(f_k) - f|^2 + |f_k - sg(f)|^2``, f_k the sum
    of the first k scales, sg: without gradient.
    """
    with torch.no_grad():
        ids = quantizer.encode(f)
    f_hat, loss = quantizer.empty(len(f)), f.new_zeros(())
    parts = quantizer.split(ids)
    for scale, part in enumerate(parts):
        f_hat = f_hat + quantizer.contribution(scale, part)
        loss = loss + COMMITMENT * F.mse_loss(f, f_hat.detach()) + F.mse_loss(f_hat, f.detach())
    return f + (f_hat - f).detach(), loss / len(parts), ids


@torch.no_grad()
def replace_rare_(
    quantizer: MultiScaleQuantizer,
    f: Tensor,
    ids: Tensor,
    use: CodeUse,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Put residuals of f [B, z, h, h] at scales from 3x3 up in place of rare codes; how many."""
    rare, rest, sources = use.rare(), f.clone(), []
    for scale, part in enumerate(quantizer.split(ids)):
        if quantizer.patch_nums[scale] >= 3:
            sources.append(_vectors(rest, quantizer.patch_nums[scale]))
        rest = rest - quantizer.contribution(scale, part)
    weight, source = (
        quantizer.embedding.weight,
        torch.randint(len(sources), (len(rare),), generator=generator),
    )
    for i, vectors in enumerate(sources):
        codes = rare[(source == i).to(rare.device)]
        weight[codes] = draw_vectors(vectors, len(codes), generator)
    use.forget_(rare, weight, optimizer)
    return len(rare)


class Codes:
    """The bottleneck: latents, from some step on the codes of all scales in their place."""

    def __init__(self, model: VQVAE, steps: int, device: str, generator: torch.Generator) -> None:
        self.model, self.steps, self.plain = model, steps, plain_steps(steps)
        self.generator, self.use = generator, CodeUse(model.config.vocab_size, device)
        self.parts = {"use": self.use}
        self.last: tuple[Tensor, Tensor] | None = None  # latents [B, z, h, h], ids [B, T]

    def features(self, images: Tensor) -> Tensor:
        """Latents [B, z, h, h]."""
        return self.model.latents(images)

    def through(self, done: int, features: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Latents or sums of codes [B, z, h, h], with the gradient of the latents."""
        if done < self.plain:
            # The quantizer is not used yet; keep the latents at a size that it can start from.
            self.last = None
            return features, LATENT_WEIGHT * features.square().mean(), {}
        if done == self.plain:
            fill_codebook_(self.model.quantize, features, self.generator)
            self.use.start(len(features) * sum(p * p for p in self.model.config.patch_nums))
        f_hat, loss, ids = quantize(self.model.quantize, features)
        self.last = features.detach(), ids
        return f_hat, loss, {"quantizer": loss.item()}

    def images(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents [B, z, h, h]."""
        return self.model.decoder(self.model.post_quant_conv(latents))

    def after(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Count the codes, and now and then replace rare ones."""
        if self.last is None:
            return
        f, ids = self.last
        self.use.count(ids)
        if replaces(done, self.plain, self.steps):
            replace_rare_(self.model.quantize, f, ids, self.use, optimizer, self.generator)


def body(options: argparse.Namespace, display: Any) -> None:
    """Train and export."""
    with fresh_weights(options.seed):
        model = VQVAE(architecture().tokenizer.config)

    def make(generator: torch.Generator) -> Codes:
        return Codes(model, options.steps, options.device, generator)

    codebook = model.quantize.embedding.weight
    train_autoencoder("tokenizer", options, model, codebook, make, display)
    export_weights(options.out, "tokenizer", model.state_dict(), display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__.split("\n")[0], steps=2500, batch=64, float32=True)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
