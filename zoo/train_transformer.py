#!/usr/bin/env python3
"""Train the transformer of var-tiny: next-scale prediction of the tokens of the pictures.

    python zoo/train_transformer.py --data DIR --out DIR [--tokenizer FILE] [--resume]

Encodes every training picture in four variants with the tokenizer (kept in <out>/tokens.pt), then
trains on these tokens. Writes transformer.safetensors: the moving average of the weights.
Shapes: B rows, T = 155 tokens, C = 256 channels, V = 512 codes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.models.var import VAR
from zoo.common import MODEL, architecture, export_weights, fresh_weights
from zoo.generator import (
    generator_arguments,
    initialize_linears_,
    load_training_data,
    prepare_,
    train_generator,
)
from zoo.loop import run_command

TOKENIZER = "tokenizer"
ADALN_GAIN, GATE_GAIN, HEAD_GAIN = 0.5, 1e-5, 0.02


@torch.no_grad()
def initialize_(model: VAR, seed: int) -> None:
    """The initial weights of the VAR paper's code: linears and embeddings truncated normal, small
    gates, so that the blocks begin as near-identities, and a small head."""
    width, depth = model.config.embed_dim, model.config.depth
    initialize_linears_(model, seed, math.sqrt(1 / width / 3))
    model.head.weight.mul_(HEAD_GAIN)
    model.head_nm.ada_lin[1].weight.mul_(ADALN_GAIN)
    for block in model.blocks:
        for linear in (block.attn.proj, block.ffn.fc2):
            linear.weight.div_(math.sqrt(2 * depth))
        # Rows: two gates, then scales and shifts.
        block.ada_lin[1].weight[: 2 * width].mul_(GATE_GAIN)
        block.ada_lin[1].weight[2 * width :].mul_(ADALN_GAIN)


def hold_key_bias_(model: VAR) -> None:
    """Keep the bias of k at zero: the published files have none."""

    def without_key(gradient: Tensor) -> Tensor:
        q, k, v = gradient.chunk(3)
        return torch.cat([q, torch.zeros_like(k), v])

    for block in model.blocks:
        block.attn.mat_qkv.bias.register_hook(without_key)


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of our VAR under the names of the published files."""
    out = {}
    for name, value in state.items():
        if name.endswith("attn.mat_qkv.bias"):
            stem = name.removesuffix("mat_qkv.bias")
            out[f"{stem}q_bias"], _, out[f"{stem}v_bias"] = value.chunk(3)
        else:
            out[name] = value
    return out


def body(options: argparse.Namespace, display: Any) -> None:
    """Encode, train and export."""
    data, tokenizer, tokens = load_training_data(
        options, MODEL, TOKENIZER, "zoo/train_tokenizer.py", display
    )
    with fresh_weights(options.seed):
        model = VAR(architecture().config)
    initialize_(model, options.seed)
    hold_key_bias_(model)
    prepare_(model, model.blocks, options)

    def loss_of(
        done: int, ids: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad(), torch.autocast(options.device, enabled=False):
            _, inputs = tokenizer.quantize.latents_and_inputs(ids)
        logits = model(labels, inputs).float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        accuracy = (logits.argmax(2) == ids).float().mean().item()
        return loss, {"accuracy": accuracy}

    average = train_generator("transformer", options, data, model, tokens, loss_of, display)
    export_weights(options.out, "transformer", published(average), display)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = generator_arguments(__doc__.split("\n")[0], TOKENIZER, steps=3500, batch=32)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
