#!/usr/bin/env python3
"""Train mar-tiny: masked tokens are drawn by a diffusion head.

    python zoo/train_mar.py --data DIR --out DIR [--tokenizer FILE] [--resume]

Writes mar.safetensors: the moving average of the weights. Shapes: B rows, N = 64 tokens of C = 8
channels, m of them masked, D = 192 channels of the transformer.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.models.diffloss import TRAINED_STEPS, DiffLoss, respaced_schedule
from ptq4arvg.models.klvae import KLVAE
from ptq4arvg.models.mar_net import MAR
from zoo.common import architecture, export_weights, fresh_weights
from zoo.generator import (
    generator_arguments,
    initialize_linears_,
    load_training_data,
    prepare_,
    train_generator,
)
from zoo.loop import run_command

MODEL, TOKENIZER = "mar-tiny", "kl"
STD = 0.02
# The share of masked tokens: a normal distribution with its upper end at its mean.
MASK_MEAN, MASK_DEVIATION, MASK_LEAST = 1.0, 0.25, 0.7
NOISE_LEVELS = 4  # per masked token, as the head is much cheaper than what comes before it


@torch.no_grad()
def initialize_(model: MAR, seed: int) -> None:
    """As in MAR's code: Xavier for the blocks, and a head that begins as zero."""
    generator = initialize_linears_(model, seed, STD)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
    net = model.diffloss.net
    for linear in (net.time_embed.mlp[0], net.time_embed.mlp[2]):
        nn.init.normal_(linear.weight, std=STD, generator=generator)
    for part in (*net.res_blocks, net.final_layer):
        part.adaLN_modulation[1].weight.zero_()
    net.final_layer.linear.weight.zero_()


def raster_tokens(tokenizer: KLVAE, images: Tensor) -> Tensor:
    """Tokens [B, N, C] in raster order of images [B, 3, H, W] in [-1, 1]."""
    return tokenizer.encode(images).flatten(2).transpose(1, 2)


class NoiseLoss(nn.Module):
    """The hybrid loss of a diffusion head (Nichol and Dhariwal 2021): the error of the noise, and
    the variational bound for the variances alone."""

    def __init__(self) -> None:
        super().__init__()
        schedule = respaced_schedule(TRAINED_STEPS)
        for name, values in {
            "kept": schedule.alphas_cumprod,
            "least": schedule.posterior_log_variance,
            "most": torch.as_tensor(schedule.betas).log(),
            "of_start": schedule.mean_of_start,
            "of_state": schedule.mean_of_state,
        }.items():
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    def forward(
        self, head: DiffLoss, tokens: Tensor, z: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(error, bound) of tokens [R, C], conditions z [R, D], steps t [R, s], noise [R, s, C]."""
        at = t[..., None]
        kept = self.kept[at]
        start = tokens[:, None]
        state = kept.sqrt() * start + (1 - kept).sqrt() * noise
        times = head.net.time_embed(t.flatten()).unflatten(0, t.shape)  # [R, s, w]
        y = times + head.net.cond_embed(z)[:, None]
        predicted, logits = head.net(state, y).float().chunk(2, -1)
        error = (predicted - noise).square().mean()
        # In nats per channel: both distributions are normal, the means are taken as they are.
        guess = (state - (1 - kept).sqrt() * predicted.detach()) / kept.sqrt()
        off = self.of_start[at] * (guess - start)
        least, most = self.least[at], self.most[at]
        own = least + (logits + 1) / 2 * (most - least)
        bound = 0.5 * (own - least - 1 + (least - own).exp() + off.square() * (-own).exp())
        return error, bound.mean() / math.log(2)


def draw_mask(rows: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions that are visible [rows, v], ascending, and that are masked [rows, m]."""
    share = torch.empty(1)
    nn.init.trunc_normal_(share, MASK_MEAN, MASK_DEVIATION, MASK_LEAST, 1.0, generator=generator)
    masked = math.ceil(tokens * share.item())
    order = torch.rand(rows, tokens, generator=generator).argsort(1)
    return order[:, masked:].sort(1).values, order[:, :masked]


def masked_loss(
    model: MAR, noise_loss: NoiseLoss, tokens: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(error, bound) of tokens [B, N, C] under a random mask, at random noise levels."""
    visible, masked = draw_mask(*tokens.shape[:2], generator)
    shape = masked.numel(), NOISE_LEVELS
    t = torch.randint(TRAINED_STEPS, shape, generator=generator).to(tokens.device)
    noise = torch.randn(*shape, tokens.shape[2], generator=generator).to(tokens)
    visible, masked = visible.to(tokens.device), masked.to(tokens.device)
    z = model.decode(model.encode(tokens, visible, model.condition(labels)), visible)
    row = torch.arange(len(tokens), device=tokens.device)[:, None]
    wanted = tokens[row, masked].flatten(0, 1)  # [B m, C]
    conditions = z[row, masked].flatten(0, 1)  # [B m, D]
    return noise_loss(model.diffloss, wanted, conditions, t, noise)


def body(options: argparse.Namespace, display: Any) -> None:
    """Encode, train and export."""
    data, _, tokens = load_training_data(
        options, MODEL, TOKENIZER, "zoo/train_kl.py", display, raster_tokens
    )
    with fresh_weights(options.seed):
        model = MAR(architecture(MODEL).config)
    initialize_(model, options.seed)
    blocks = *model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks
    prepare_(model, blocks, options)
    noise_loss = NoiseLoss().to(options.device)

    def loss_of(
        done: int, tokens: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        error, bound = masked_loss(model, noise_loss, tokens, labels, generator)
        return error + bound, {"error": error.item(), "bound": bound.item()}

    average = train_generator("mar", options, data, model, tokens, loss_of, display)
    export_weights(options.out, "mar", average, display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = generator_arguments(__doc__.split("\n")[0], TOKENIZER, steps=5000, batch=32)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
