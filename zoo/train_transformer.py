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
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.models.loading import load_strict_, read_state
from ptq4arvg.models.var import VAR
from ptq4arvg.models.vqvae import VQVAE
from zoo.common import (
    Average,
    Data,
    architecture,
    augment,
    cosine,
    export,
    fresh_weights,
    halve,
    load_data,
    rare_weights,
)
from zoo.loop import arguments, run_command, save_checkpoint, train

PEAK_RATE, FLOOR_RATE, WARMUP = 1e-3, 3e-6, 50
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.05, 2.0
DROP_LABEL, AVERAGE_DECAY = 0.1, 0.998
# Variants of a picture: as it is, mirrored where that is fair, and twice mildly changed.
VARIANT_ODDS = (0.55, 0.25, 0.10, 0.10)
MILD = {"mirror": 0.0, "affine": 1.0, "colour": 0.5, "scale": (0.92, 1.03), "shift": 0.05}
ADALN_GAIN, GATE_GAIN, HEAD_GAIN = 0.5, 1e-5, 0.02


class ExplicitAttention(nn.Module):
    """The products of AttentionCore, written out: with a mask and at this length faster to train
    on a processor than the fused function."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q (already scaled), k, v [B, H, T, d] -> [B, H, T, d]."""
        score = q @ k.transpose(2, 3)
        if mask is not None:
            score = score.masked_fill(~mask, -torch.inf)
        return score.softmax(-1).to(v.dtype) @ v


def read_tokenizer(path: Path) -> VQVAE:
    """The trained tokenizer, for encoding only."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer {path}. Train it first (zoo/train_tokenizer.py), or name it with "
            "--tokenizer"
        )
    tokenizer = architecture().tokenizer
    load_strict_(tokenizer, read_state(path), str(path))
    return tokenizer


@torch.inference_mode()
def encode_variants(
    tokenizer: VQVAE, data: Data, seed: int, device: str, display: Any, batch: int = 64
) -> Tensor:
    """Token ids int16 [4, n, T] of the variants of the n training pictures."""
    generator = torch.Generator().manual_seed(seed + 1)
    mirror_only = {"mirror": 1.0, "affine": 0.0, "colour": 0.0}
    variants, total, done = [], len(VARIANT_ODDS) * len(data.train), 0
    for change in (None, mirror_only, MILD, MILD):
        ids = []
        for rows in data.train.split(batch):
            display("encoding pictures", done, total)
            images = data.unit(rows)
            if change is not None:
                images = augment(images, data.flip_ok[rows], generator, **change)
            ids.append(tokenizer.encode(halve(images).to(device) * 2 - 1).short().cpu())
            done += len(rows)
        variants.append(torch.cat(ids))
    display("encoding pictures", total, total)
    return torch.stack(variants)


def cached_variants(
    options: argparse.Namespace, data: Data, tokenizer: VQVAE, source: Path, display: Any
) -> Tensor:
    """``encode_variants``, from <out>/tokens.pt if made from the same data and tokenizer file."""
    pictures = zlib.crc32(data.images[data.train].numpy())
    key = [zlib.crc32(source.read_bytes()), pictures, options.seed]
    path = options.out / "tokens.pt"
    if path.is_file():
        try:
            kept = torch.load(path, weights_only=True)
            if kept["key"] == key:
                return kept["ids"]
        except Exception:  # torch.load has no common public type; a damaged cache is made again
            display.say(f"{path} cannot be read and is made again")
    ids = encode_variants(tokenizer, data, options.seed, options.device, display)
    save_checkpoint(path, {"key": key, "ids": ids})
    return ids


@torch.no_grad()
def initialize_(model: VAR, seed: int) -> None:
    """The initial weights of the VAR paper's code: linears and embeddings truncated normal, small
    gates, so that the blocks begin as near-identities, and a small head."""
    generator = torch.Generator().manual_seed(seed)
    width, depth = model.config.embed_dim, model.config.depth

    def normal_(weight: Tensor) -> None:
        std = math.sqrt(1 / width / 3)
        nn.init.trunc_normal_(weight, std=std, generator=generator)

    for parameter in (model.pos_start, model.pos_1LC):
        normal_(parameter)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            normal_(module.weight)
        if isinstance(module, nn.Linear):
            module.bias.zero_()
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


def make_optimizer(model: VAR) -> torch.optim.AdamW:
    """AdamW that decays the matrices of the linears only."""
    linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in linears]
    others = [p for p in model.parameters() if id(p) not in linears]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)


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
    data = load_data(options.data, 64)
    source = options.tokenizer or options.out / "tokenizer.safetensors"
    tokenizer = read_tokenizer(source).to(options.device)
    tokens = cached_variants(options, data, tokenizer, source, display)
    quantizer, labels = tokenizer.quantize, data.labels[data.train]
    with fresh_weights(options.seed):
        model = VAR(architecture().config)
    initialize_(model, options.seed)
    model.to(options.device).train()
    hold_key_bias_(model)
    if options.device == "cpu":
        for block in model.blocks:
            block.attn.core = ExplicitAttention()
    optimizer, average = make_optimizer(model), Average(model, AVERAGE_DECAY)
    generator = torch.Generator().manual_seed(options.seed)
    weights, odds = rare_weights(labels), torch.tensor(VARIANT_ODDS)
    half = torch.autocast(options.device, torch.bfloat16, enabled=not options.float32)

    def draw(source: Tensor) -> Tensor:
        return torch.multinomial(source, options.batch, replacement=True, generator=generator)

    def step(done: int) -> dict[str, float]:
        rows = draw(weights)
        ids = tokens[draw(odds), rows].long().to(options.device)
        dropped = torch.rand(options.batch, generator=generator) < DROP_LABEL
        of_class = torch.where(dropped, model.config.num_classes, labels[rows])
        with torch.no_grad():
            _, inputs = quantizer.latents_and_inputs(ids)
        with half:
            logits = model(of_class.to(options.device), inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        rate = cosine(done, options.steps, PEAK_RATE, WARMUP, FLOOR_RATE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        average.update(model)
        accuracy = (logits.argmax(2) == ids).float().mean().item()
        return {"loss": loss.item(), "accuracy": accuracy, "rate": rate}

    parts = {"model": model, "optimizer": optimizer, "average": average}
    train("transformer", options, parts, generator, step, display)
    path = options.out / "transformer.safetensors"
    export(path, published(average.values))
    display.say(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__.split("\n")[0], steps=3500, batch=32)
    parser.add_argument(
        "--tokenizer", type=Path, help="trained tokenizer (default: <out>/tokenizer.safetensors)"
    )
    parser.add_argument(
        "--float32", action="store_true", help="no bfloat16; for processors without it"
    )
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
