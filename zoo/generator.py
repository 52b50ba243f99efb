"""What the trainers of the transformers share: tokens of the pictures, drawn again and again."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq4arvg.models.loading import load_strict_, read_state
from ptq4arvg.nn import AttentionCore
from zoo.common import (
    Average,
    Data,
    architecture,
    augment,
    cosine,
    halve,
    load_data,
    rare_weights,
)
from zoo.loop import arguments, save_checkpoint, train

__all__ = [
    "ExplicitAttention",
    "encode_variants",
    "generator_arguments",
    "initialize_linears_",
    "load_tokens",
    "load_training_data",
    "make_optimizer",
    "prepare_",
    "read_tokenizer",
    "train_generator",
]

PEAK_RATE, FLOOR_RATE, WARMUP = 1e-3, 3e-6, 50
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.05, 2.0
DROP_LABEL, AVERAGE_DECAY = 0.1, 0.998
# Variants of a picture: as it is, mirrored where that is fair, and twice mildly changed.
VARIANT_ODDS = (0.55, 0.25, 0.10, 0.10)
MILD = {"mirror": 0.0, "affine": 1.0, "colour": 0.5, "scale": (0.92, 1.03), "shift": 0.05}

Encode = Callable[[Tensor], Tensor]
Loss = Callable[[int, Tensor, Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]


class ExplicitAttention(AttentionCore):
    """The products of AttentionCore, written out: with a mask and at this length faster to train
    on a processor than the fused function."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q (already scaled), k, v [B, H, T, d] -> [B, H, T, d]."""
        score = q @ k.transpose(2, 3)
        if mask is not None:
            score = score.masked_fill(~mask, -torch.inf)
        return score.softmax(-1).to(v.dtype) @ v


def prepare_(model: nn.Module, blocks: Iterable[nn.Module], options: argparse.Namespace) -> None:
    """Move ``model`` to its device and make its blocks as fast as the options allow."""
    model.to(options.device).train()
    for block in blocks:
        for part in list(block.modules()) if options.device == "cpu" else ():
            if isinstance(getattr(part, "core", None), AttentionCore):
                part.core = ExplicitAttention()
        if options.compile:
            block.compile()


def generator_arguments(
    description: str, tokenizer: str, steps: int, batch: int
) -> argparse.ArgumentParser:
    """The options of a transformer's trainer; tokenizer: name of its file."""
    parser = arguments(description, steps, batch, float32=True)
    parser.add_argument(
        "--tokenizer", type=Path, help=f"trained tokenizer (default: <out>/{tokenizer}.safetensors)"
    )
    parser.add_argument("--start", type=Path, help="weights to begin with (default: random ones)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks: a minute, then faster steps"
    )
    return parser


def read_tokenizer(model: str, path: Path, script: str) -> nn.Module:
    """The trained tokenizer of a model, for encoding only; script: what trains it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer {path}. Train it first ({script}), or name it with --tokenizer"
        )
    tokenizer = architecture(model).tokenizer
    load_strict_(tokenizer, read_state(path), str(path))
    return tokenizer


@torch.inference_mode()
def encode_variants(
    encode: Encode, data: Data, seed: int, device: str, display: Any, batch: int = 64
) -> Tensor:
    """Tokens [4, n, ...] of the variants of the n training pictures: int16 ids, or float32.

    encode: images [B, 3, H, W] in [-1, 1] to tokens.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    mirror_only = {"mirror": 1.0, "affine": 0.0, "colour": 0.0}
    variants, total, done = [], len(VARIANT_ODDS) * len(data.train), 0
    for change in (None, mirror_only, MILD, MILD):
        tokens = []
        for rows in data.train.split(batch):
            display("encoding pictures", done, total)
            images = data.unit(rows)
            if change is not None:
                images = augment(images, data.flip_ok[rows], generator, **change)
            made = encode(halve(images).to(device) * 2 - 1).cpu()
            tokens.append(made if made.is_floating_point() else made.short())
            done += len(rows)
        variants.append(torch.cat(tokens))
    display("encoding pictures", total, total)
    return torch.stack(variants)


def load_tokens(
    options: argparse.Namespace, data: Data, encode: Encode, source: Path, display: Any
) -> Tensor:
    """``encode_variants``, from <out>/<source>-tokens.pt if made from the same data and file."""
    pictures = zlib.crc32(data.images[data.train].numpy())
    key = [zlib.crc32(source.read_bytes()), pictures, options.seed]
    path = options.out / f"{source.stem}-tokens.pt"
    if path.is_file():
        try:
            kept = torch.load(path, weights_only=True)
            if kept["key"] == key:
                return kept["tokens"]
        except Exception:  # torch.load has no common public type; a damaged cache is made again
            display.say(f"{path} cannot be read and is made again")
    tokens = encode_variants(encode, data, options.seed, options.device, display)
    save_checkpoint(path, {"key": key, "tokens": tokens})
    return tokens


def load_training_data(
    options: argparse.Namespace, model: str, tokenizer: str, script: str, display: Any,
    encode: Callable[[Any, Tensor], Tensor] = lambda tokenizer, images: tokenizer.encode(images),
) -> tuple[Data, Any, Tensor]:  # fmt: skip
    """The pictures (64 pixels), the trained tokenizer of ``model``, and its tokens of them.

    tokenizer: name of its file in <out>, unless the options name another; script: what trains it;
    encode: (tokenizer, images [B, 3, H, W] in [-1, 1]) to tokens.
    """
    data = load_data(options.data, 64)
    source = options.tokenizer or options.out / f"{tokenizer}.safetensors"
    network = read_tokenizer(model, source, script).to(options.device)
    tokens = load_tokens(options, data, lambda images: encode(network, images), source, display)
    return data, network, tokens


@torch.no_grad()
def initialize_linears_(model: nn.Module, seed: int, std: float) -> torch.Generator:
    """Linears, embeddings and tables of positions truncated normal, biases zero; the generator."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters(recurse=False):
        nn.init.trunc_normal_(parameter, std=std, generator=generator)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=std, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    return generator


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays the matrices of the linears only."""
    linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in linears]
    others = [p for p in model.parameters() if id(p) not in linears]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)


def train_generator(
    name: str,
    options: argparse.Namespace,
    data: Data,
    model: nn.Module,
    tokens: Tensor,
    loss_of: Loss,
    display: Any,
) -> dict[str, Tensor]:
    """Train ``model`` and return the moving average of its weights.

    tokens [4, n, ...]: of the variants of the training pictures. loss_of: (step, tokens [B, ...],
    labels [B], generator) -> (loss, values to show); the label after the last class is no class.
    """
    if options.start:
        load_strict_(model, read_state(options.start), str(options.start))
    labels = data.labels[data.train]
    none = model.config.num_classes
    optimizer, average = make_optimizer(model), Average(model, AVERAGE_DECAY)
    generator = torch.Generator().manual_seed(options.seed)
    weights, odds = rare_weights(labels), torch.tensor(VARIANT_ODDS)
    half = torch.autocast(options.device, torch.bfloat16, enabled=not options.float32)

    def draw(source: Tensor) -> Tensor:
        return torch.multinomial(source, options.batch, replacement=True, generator=generator)

    def step(done: int) -> dict[str, float]:
        rows = draw(weights)
        drawn = tokens[draw(odds), rows].to(options.device)
        drawn = drawn if drawn.is_floating_point() else drawn.long()
        dropped = torch.rand(options.batch, generator=generator) < DROP_LABEL
        of_class = torch.where(dropped, none, labels[rows]).to(options.device)
        with half:
            loss, shown = loss_of(done, drawn, of_class, generator)
        rate = cosine(done, options.steps, PEAK_RATE, WARMUP, FLOOR_RATE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        average.update(model)
        return {"loss": loss.item()} | shown | {"rate": rate}

    parts = {"model": model, "optimizer": optimizer, "average": average}
    train(name, options, parts, generator, step, display)
    return average.values
