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
from torch import Tensor, nn
from torch.nn import functional as F

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.models.vqvae import VQVAE, MultiScaleQuantizer
from zoo.common import (
    Data,
    architecture,
    augment,
    cosine,
    epoch_rows,
    export,
    fresh_weights,
    halve,
    load_data,
)
from zoo.loop import arguments, run_command, train

PEAK_RATE, FLOOR_RATE, WARMUP = 8e-4, 1e-5, 100
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.97), 0.005, 1.0
EDGE_WEIGHT, COMMITMENT, LATENT_WEIGHT = 0.5, 0.25, 1e-3
PLAIN_STEPS = 250  # without the quantizer; a quarter of the run where that is less
REPLACE_EVERY, REPLACE_UNTIL = 25, 0.7  # steps; share of the run
USE_DECAY, RARE = 0.98, 1 / 19  # of the hit counts; share of the mean hits below which to replace
# Where the first codes come from: latents at 8x8, means over 5x5 squares, over 1x1 to 4x4, and
# for the rest of the codebook what 4x4 means leave over.
FILL_FULL, FILL_FIVE, FILL_SMALL = 150, 80, 100


def _vectors(latents: Tensor, side: int) -> Tensor:
    """Latents [B, z, h, h], averaged to ``side``, as vectors [B * side * side, z]."""
    if side != latents.shape[-1]:
        latents = F.interpolate(latents, size=(side, side), mode="area")
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def _draw(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the vectors [n, z], without repeats if there are enough."""
    if count <= len(vectors):
        rows = torch.randperm(len(vectors), generator=generator)[:count]
    else:
        rows = torch.randint(len(vectors), (count,), generator=generator)
    return vectors[rows.to(vectors.device)]


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
            _draw(_vectors(f, full), FILL_FULL, generator),
            _draw(_vectors(f, 5), FILL_FIVE, generator),
            _draw(small, FILL_SMALL, generator),
            _draw(_vectors(rest, full), count, generator),
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


class CodeUse:
    """Moving averages of the hits of each code [V] per batch."""

    def __init__(self, codes: int, device: str) -> None:
        self.hits = torch.zeros(codes, device=device)

    def start(self, tokens: int) -> None:
        """Before the first batch of ``tokens`` every code is taken to be used alike."""
        self.hits.fill_(tokens / len(self.hits))

    def count(self, ids: Tensor) -> None:
        new = torch.bincount(ids.flatten(), minlength=len(self.hits))
        self.hits.mul_(USE_DECAY).add_(new, alpha=1 - USE_DECAY)

    def rare(self) -> Tensor:
        """Codes, int64 [n], with far fewer hits than the average one."""
        return (self.hits < RARE * self.hits.mean()).nonzero().flatten()

    def state_dict(self) -> dict[str, Any]:
        return {"hits": self.hits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hits.copy_(state["hits"])


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
        weight[codes] = _draw(vectors, len(codes), generator)
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in optimizer.state[weight]:
            optimizer.state[weight][moment][rare] = 0
    use.hits[rare] = use.hits.mean()  # some time to find their users
    return len(rare)


def picture_loss(made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 + MSE + weighted L1 of the differences of neighbours, L1), images in [-1, 1]."""
    error = made - wanted
    absolute = error.abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return absolute + error.square().mean() + EDGE_WEIGHT * edges, absolute


def make_optimizer(model: VQVAE) -> torch.optim.AdamW:
    """AdamW; the codebook is not decayed, as its rare codes would shrink to nothing."""
    codebook = model.quantize.embedding.weight
    others = [p for p in model.parameters() if p is not codebook]
    groups = [{"params": others}, {"params": [codebook], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)


def body(options: argparse.Namespace, display: Any) -> None:
    """Train and export."""
    data: Data = load_data(options.data, 64).to(options.device)
    with fresh_weights(options.seed):
        model = VQVAE(architecture().tokenizer.config)
    model.to(options.device).train()
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = make_optimizer(model)
    use = CodeUse(model.config.vocab_size, options.device)
    plain = min(PLAIN_STEPS, options.steps // 4)
    half = torch.autocast(options.device, torch.bfloat16, enabled=not options.float32)

    def step(done: int) -> dict[str, float]:
        rows = epoch_rows(data.train, options.batch, done, options.seed)
        images = augment(data.unit(rows), data.flip_ok[rows], generator)
        images = halve(images) * 2 - 1
        with half:
            f = model.latents(images)
        f = f.float()
        if done == plain:
            fill_codebook_(model.quantize, f, generator)
            use.start(len(rows) * sum(p * p for p in model.config.patch_nums))
        ids = None
        if done < plain:
            # The quantizer is not used yet; keep the latents at a size that it can start from.
            f_hat, extra = f, LATENT_WEIGHT * f.square().mean()
        else:
            f_hat, extra, ids = quantize(model.quantize, f)
        with half:
            made = model.decoder(model.post_quant_conv(f_hat))
        loss, absolute = picture_loss(made.float(), images)
        loss = loss + extra
        rate = cosine(done, options.steps, PEAK_RATE, WARMUP, FLOOR_RATE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        shown = {"loss": loss.item(), "L1": absolute.item(), "rate": rate}
        if ids is not None:
            use.count(ids)
            shown["quantizer"] = extra.item()
            if (done - plain + 1) % REPLACE_EVERY == 0 and done < REPLACE_UNTIL * options.steps:
                replace_rare_(model.quantize, f.detach(), ids, use, optimizer, generator)
        return shown

    parts = {"model": model, "optimizer": optimizer, "use": use}
    train("tokenizer", options, parts, generator, step, display)
    path = options.out / "tokenizer.safetensors"
    export(path, model.state_dict())
    display.say(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__.split("\n")[0], steps=2500, batch=64)
    parser.add_argument(
        "--float32", action="store_true", help="no bfloat16; for processors without it"
    )
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
