#!/usr/bin/env python3
"""Train the transformer of par-tiny: four far-apart tokens of a picture at a time.

    python zoo/train_par.py --data DIR --out DIR [--tokenizer FILE] [--resume]

Writes par.safetensors: the moving average of the weights. Shapes: B rows, N = 64 tokens, C = 192
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

from ptq4arvg.models.par import PAR
from zoo.common import architecture, export_weights, fresh_weights
from zoo.generator import (
    generator_arguments,
    initialize_linears_,
    load_training_data,
    prepare_,
    train_generator,
)
from zoo.loop import run_command

MODEL, TOKENIZER = "par-tiny", "vq"
STD = 0.02
WRONG_TOKENS = 0.25  # of a row's context at most are replaced by random ones


@torch.no_grad()
def initialize_(model: PAR, seed: int) -> None:
    """As in LlamaGen's code: small weights, and an output that begins at zero."""
    initialize_linears_(model, seed, STD)
    model.output.weight.zero_()


def disturb(ids: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Context ids [B, t] with a share of random tokens that is drawn for every row.

    Tokens drawn at the same time do not know of each other and so do not always fit; a model that
    has only seen pictures as they are does not recover from that.
    """
    share = WRONG_TOKENS * torch.rand(len(ids), 1, generator=generator)
    wrong = torch.rand(ids.shape, generator=generator) < share
    random = torch.randint(vocab_size, ids.shape, generator=generator)
    return torch.where(wrong.to(ids.device), random.to(ids.device), ids)


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of our PAR under the names of the published files."""
    out = {}
    for name, value in state.items():
        stem = name.removesuffix("w13.weight")
        if stem != name:
            out[f"{stem}w1.weight"], out[f"{stem}w3.weight"] = value.chunk(2)
        else:
            out[name] = value
    return out


def body(options: argparse.Namespace, display: Any) -> None:
    """Encode, train and export."""
    data, _, tokens = load_training_data(options, MODEL, TOKENIZER, "zoo/train_vq.py", display)
    with fresh_weights(options.seed):
        model = PAR(architecture(MODEL).config)
    initialize_(model, options.seed)
    prepare_(model, model.layers, options)
    config = model.config
    raster = config.order.raster(torch.device(options.device))

    def loss_of(
        done: int, ids: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        ids = ids[:, raster]  # in the order of the sequence
        context = ids[:, : config.tokens - config.parallel]
        context = disturb(context, config.vocab_size, generator)
        logits = model(labels, context).float()  # [B, N, V]
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        accuracy = (logits.argmax(2) == ids).float().mean().item()
        return loss, {"accuracy": accuracy}

    average = train_generator("par", options, data, model, tokens, loss_of, display)
    export_weights(options.out, "par", published(average), display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = generator_arguments(__doc__.split("\n")[0], TOKENIZER, steps=4500, batch=32)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
