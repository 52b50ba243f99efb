#!/usr/bin/env python3
"""Train the tokenizer of mar-tiny: an autoencoder with continuous, nearly normal latents.

    python zoo/train_kl.py --data DIR --out DIR [--resume]

Writes kl.safetensors, its latents scaled to unit deviation over the training pictures. Shapes: B
pictures, z = 8 channels and side h = 8 of the latents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.models.klvae import KLVAE
from zoo.autoencoder import train_autoencoder
from zoo.common import Data, architecture, export_weights, fresh_weights, load_data
from zoo.loop import Stateful, arguments, run_command

KL_WEIGHT = 2e-3  # of the mean over latents


class Posterior:
    """The bottleneck: latents drawn from the encoder's normal distribution."""

    parts: ClassVar[dict[str, Stateful]] = {}

    def __init__(self, model: KLVAE, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator

    def features(self, images: Tensor) -> Tensor:
        """Mean and log variance [B, 2 z, h, h]."""
        return torch.cat(self.model.posterior(images), 1)

    def through(self, done: int, features: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Latents [B, z, h, h] and the divergence from a standard normal distribution."""
        mean, log_variance = features.chunk(2, 1)
        noise = torch.randn(mean.shape, generator=self.generator).to(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return mean + (0.5 * log_variance).exp() * noise, KL_WEIGHT * kl, {"KL": kl.item()}

    def images(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents [B, z, h, h]."""
        return self.model.decode(latents)

    def after(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing to do."""


@torch.no_grad()
def to_unit_deviation_(model: KLVAE, data: Data, batch: int = 256) -> None:
    """Scale the latents, so that their deviation over the training pictures (32 pixels) is one."""
    means = [
        model.posterior(data.unit(rows) * 2 - 1)[0].flatten() for rows in data.train.split(batch)
    ]
    deviation = torch.cat(means).std()
    z = model.config.z_channels
    # The rows of the means: latent / deviation; the variances follow.
    model.quant_conv.weight[:z] /= deviation
    model.quant_conv.bias[:z] /= deviation
    model.quant_conv.bias[z:] -= 2 * deviation.log()
    model.post_quant_conv.weight *= deviation


def body(options: argparse.Namespace, display: Any) -> None:
    """Train and export."""
    plain = load_data(options.data, 32)  # missing data should be noticed before training
    with fresh_weights(options.seed):
        model = KLVAE(architecture("mar-tiny").tokenizer.config)
    train_autoencoder(
        "kl", options, model, None, lambda generator: Posterior(model, generator), display
    )
    to_unit_deviation_(model.eval(), plain.to(options.device))
    export_weights(options.out, "kl", model.state_dict(), display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__.split("\n")[0], steps=2500, batch=64, float32=True)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
