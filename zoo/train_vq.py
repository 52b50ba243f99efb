#!/usr/bin/env python3
"""Train the tokenizer of rar-tiny and par-tiny: a VQ autoencoder with one grid of tokens.

    python zoo/train_vq.py --data DIR --out DIR [--resume]

First a plain autoencoder; then the codebook is filled from one batch and the quantizer joins in.
Writes vq.safetensors. Shapes: B pictures, D = 8 channels and side h = 8 of the latents, V = 1024
codes, T = 64 tokens. Latents and codes have unit length.
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

from ptq4arvg.models.vq16 import VQ16
from zoo.autoencoder import (
    CodeUse,
    draw_vectors,
    plain_steps,
    replaces,
    train_autoencoder,
)
from zoo.common import architecture, export_weights, fresh_weights
from zoo.loop import arguments, run_command

COMMITMENT = 0.25


class Codes:
    """The bottleneck: unit vectors, from some step on the nearest codes in their place."""

    def __init__(self, model: VQ16, steps: int, device: str, generator: torch.Generator) -> None:
        self.model, self.steps, self.plain = model, steps, plain_steps(steps)
        self.generator, self.use = generator, CodeUse(model.config.vocab_size, device)
        self.parts = {"use": self.use}
        self.last: tuple[Tensor, Tensor] | None = None  # unit vectors [B T, D], ids [B, T]

    def features(self, images: Tensor) -> Tensor:
        """Latents [B, D, h, h]."""
        return self.model.latents(images)

    def through(self, done: int, features: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Unit vectors or codes [B, D, h, h], with the gradient of the unit vectors."""
        unit = F.normalize(features, dim=1)
        vectors = unit.detach().flatten(2).transpose(1, 2).flatten(0, 1)  # [B T, D]
        if done < self.plain:
            self.last = None
            return unit, features.new_zeros(()), {}
        quantizer = self.model.quantize
        if done == self.plain:
            count = self.model.config.vocab_size
            with torch.no_grad():
                quantizer.embedding.weight.copy_(draw_vectors(vectors, count, self.generator))
            self.use.start(len(vectors))
        with torch.no_grad():
            ids = quantizer.encode(unit)
        codes = quantizer.decode(ids)
        # Sums over channels: of unit vectors, the square of the chord between the two.
        loss = COMMITMENT * (unit - codes.detach()).square().sum(1).mean()
        loss = loss + (codes - unit.detach()).square().sum(1).mean()
        self.last = vectors, ids
        return unit + (codes - unit).detach(), loss, {"quantizer": loss.item()}

    def images(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents [B, D, h, h]."""
        return self.model.decode_latents(latents)

    @torch.no_grad()
    def after(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Count the codes, and now and then put present vectors in place of rare ones."""
        if self.last is None:
            return
        vectors, ids = self.last
        self.use.count(ids)
        if replaces(done, self.plain, self.steps):
            rare, weight = self.use.rare(), self.model.quantize.embedding.weight
            weight[rare] = draw_vectors(vectors, len(rare), self.generator)
            self.use.forget_(rare, weight, optimizer)


def body(options: argparse.Namespace, display: Any) -> None:
    """Train and export."""
    with fresh_weights(options.seed):
        model = VQ16(architecture("rar-tiny").tokenizer.config)

    def make(generator: torch.Generator) -> Codes:
        return Codes(model, options.steps, options.device, generator)

    train_autoencoder("vq", options, model, model.quantize.embedding.weight, make, display)
    export_weights(options.out, "vq", model.state_dict(), display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__.split("\n")[0], steps=2500, batch=64, float32=True)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
