"""What the trainers of the image tokenizers share: the loop around encoder, bottleneck, decoder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.common import Data, augment, cosine, epoch_rows, halve, load_data
from zoo.loop import Stateful, train

__all__ = ["CodeUse", "Bottleneck", "draw_vectors", "picture_loss", "train_autoencoder"]

PEAK_RATE, FLOOR_RATE, WARMUP = 8e-4, 1e-5, 100
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.97), 0.005, 1.0
EDGE_WEIGHT = 0.5
PLAIN_STEPS = 250  # without codes; a quarter of the run where that is less
REPLACE_EVERY, REPLACE_UNTIL = 25, 0.7  # steps; share of the run
USE_DECAY, RARE = 0.98, 1 / 19  # of the hit counts; share of the mean hits below which to replace


def plain_steps(steps: int) -> int:
    """How many of ``steps`` train a plain autoencoder, before there are codes."""
    return min(PLAIN_STEPS, steps // 4)


def replaces(done: int, plain: int, steps: int) -> bool:
    """Whether rare codes are replaced after step ``done``."""
    return (done - plain + 1) % REPLACE_EVERY == 0 and done < REPLACE_UNTIL * steps


def draw_vectors(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the vectors [n, z], without repeats if there are enough."""
    if count <= len(vectors):
        rows = torch.randperm(len(vectors), generator=generator)[:count]
    else:
        rows = torch.randint(len(vectors), (count,), generator=generator)
    return vectors[rows.to(vectors.device)]


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

    def forget_(self, codes: Tensor, weight: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Codes have new vectors in ``weight``: no moments, and some time to find their users."""
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimizer.state[weight]:
                optimizer.state[weight][moment][codes] = 0
        self.hits[codes] = self.hits.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"hits": self.hits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hits.copy_(state["hits"])


def picture_loss(made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 + MSE + weighted L1 of the differences of neighbours, L1), images in [-1, 1]."""
    error = made - wanted
    absolute = error.abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return absolute + error.square().mean() + EDGE_WEIGHT * edges, absolute


def make_optimizer(model: nn.Module, codebook: Tensor | None = None) -> torch.optim.AdamW:
    """AdamW; the codebook is not decayed, as its rare codes would shrink to nothing."""
    others = [p for p in model.parameters() if p is not codebook]
    groups: list[dict[str, Any]] = [{"params": others}]
    if codebook is not None:
        groups.append({"params": [codebook], "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)


class Bottleneck(Protocol):
    """What is between encoder and decoder. parts: what of it a checkpoint has to hold."""

    parts: dict[str, Stateful]

    def features(self, images: Tensor) -> Tensor:
        """What the encoder makes of images [B, 3, H, W] in [-1, 1]."""

    def through(self, done: int, features: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """(what the decoder reads, an additional loss, values to show) in step ``done``."""

    def images(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of what ``through`` returned."""

    def after(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Called when the optimizer has made step ``done``."""


def train_autoencoder(
    name: str,
    options: argparse.Namespace,
    model: nn.Module,
    codebook: Tensor | None,
    make: Callable[[torch.Generator], Bottleneck],
    display: Any,
) -> None:
    """Train ``model`` on augmented pictures; make: its bottleneck, which draws from the generator.

    codebook: the parameter with the codes, if there are any.
    """
    data: Data = load_data(options.data, 64).to(options.device)
    model.to(options.device).train()
    generator = torch.Generator().manual_seed(options.seed)
    bottleneck, optimizer = make(generator), make_optimizer(model, codebook)
    half = torch.autocast(options.device, torch.bfloat16, enabled=not options.float32)

    def step(done: int) -> dict[str, float]:
        rows = epoch_rows(data.train, options.batch, done, options.seed)
        images = augment(data.unit(rows), data.flip_ok[rows], generator)
        images = halve(images) * 2 - 1
        with half:
            features = bottleneck.features(images)
        latents, extra, shown = bottleneck.through(done, features.float())
        with half:
            made = bottleneck.images(latents)
        loss, absolute = picture_loss(made.float(), images)
        loss = loss + extra
        rate = cosine(done, options.steps, PEAK_RATE, WARMUP, FLOOR_RATE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        bottleneck.after(done, optimizer)
        return {"loss": loss.item(), "L1": absolute.item(), "rate": rate} | shown

    parts = {"model": model, "optimizer": optimizer, **bottleneck.parts}
    train(name, options, parts, generator, step, display)
