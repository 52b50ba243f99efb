#!/usr/bin/env python3
"""Train the transformer of rar-tiny: next-token prediction in random orders, then in raster order.

    python zoo/train_rar.py --data DIR --out DIR [--tokenizer FILE] [--resume]

Writes rar.safetensors: the moving average of the weights. Shapes: B rows, L = 64 tokens, C = 192
channels, V = 1024 codes.
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

from ptq4arvg.models.rar import RAR
from zoo.common import architecture, export_weights, fresh_weights
from zoo.generator import (
    generator_arguments,
    initialize_linears_,
    load_training_data,
    prepare_,
    train_generator,
)
from zoo.loop import run_command

MODEL, TOKENIZER = "rar-tiny", "vq"
STD = 0.02
# Shares of the run: all orders are random until the first, all are raster from the second on.
RANDOM_UNTIL, RASTER_FROM = 0.5, 0.75


@torch.no_grad()
def initialize_(model: RAR, seed: int) -> None:
    """As in the RAR paper's code: small weights, and blocks that begin as identities."""
    initialize_linears_(model, seed, STD)
    for part in (*model.blocks, model.adaln_before_head):
        part.adaLN_modulation[1].weight.zero_()


def draw_orders(rows: int, tokens: int, share: float, generator: torch.Generator) -> Tensor:
    """Orders int64 [rows, tokens]; each is random with probability ``share``, else raster."""
    random = torch.rand(rows, tokens, generator=generator).argsort(1)
    chosen = torch.rand(rows, 1, generator=generator) < share
    return torch.where(chosen, random, torch.arange(tokens))


def random_share(progress: float) -> float:
    """Probability of a random order at this share of the run."""
    return min(max((RASTER_FROM - progress) / (RASTER_FROM - RANDOM_UNTIL), 0.0), 1.0)


def body(options: argparse.Namespace, display: Any) -> None:
    """Encode, train and export."""
    data, _, tokens = load_training_data(options, MODEL, TOKENIZER, "zoo/train_vq.py", display)
    with fresh_weights(options.seed):
        model = RAR(architecture(MODEL).config)
    initialize_(model, options.seed)
    prepare_(model, model.blocks, options)

    def loss_of(
        done: int, ids: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        share = random_share(done / options.steps)
        orders = draw_orders(*ids.shape, share, generator).to(ids.device)
        ids = ids.gather(1, orders)
        logits = model(ids[:, :-1], labels, orders).float()  # [B, L, V]
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        accuracy = (logits.argmax(2) == ids).float().mean().item()
        return loss, {"accuracy": accuracy, "random": share}

    average = train_generator("rar", options, data, model, tokens, loss_of, display)
    export_weights(options.out, "rar", average, display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = generator_arguments(__doc__.split("\n")[0], TOKENIZER, steps=4500, batch=32)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
