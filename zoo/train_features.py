#!/usr/bin/env python3
"""Train the feature network behind the Frechet distance of var-tiny: a small classifier.

    python zoo/train_features.py --data DIR --out DIR [--resume]

Writes features.safetensors, its batch norms folded into the convolutions, and
fd_stats.safetensors: mean [128] and covariance [128, 128] (float64) of the features of the
training pictures, unaugmented at 32x32 pixels, and their number n [1].
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

from ptq4arvg.evaluation import FeatureNetwork, FeatureStatistics, load_features
from zoo.classes import CLASSES
from zoo.common import (
    Data,
    augment,
    cosine,
    export,
    fresh_weights,
    halve,
    load_data,
    rare_weights,
)
from zoo.loop import arguments, run_command, train

PEAK_RATE, WARMUP, WEIGHT_DECAY = 3e-3, 50, 0.05
DROPOUT, SMOOTHING, AFFINE = 0.2, 0.05, 0.7


class TrainingNetwork(nn.Module):
    """The feature network with a batch norm behind each convolution."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.out_channels) for conv in network.convs)
        for conv in network.convs:
            # The norm takes any bias out again; fold() puts the norm's own in its place.
            nn.init.zeros_(conv.bias)
            conv.bias.requires_grad_(False)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits [B, classes] of images [B, 3, H, W] in [0, 1]; generator: drop features by it."""
        x = images * 2 - 1
        for conv, norm in zip(self.network.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = x.mean((2, 3))
        if generator is not None:
            # Not nn.Dropout: its draws would come from the global generator, which is not saved.
            kept = torch.rand(x.shape, generator=generator) >= DROPOUT
            x = x * kept.to(x) / (1 - DROPOUT)
        return self.network.fc(x)

    def fold(self) -> dict[str, Tensor]:
        """The state of a FeatureNetwork that gives the same logits without the norms."""
        state = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        for i, norm in enumerate(self.norms):
            gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
            state[f"convs.{i}.weight"] *= gain[:, None, None, None]
            state[f"convs.{i}.bias"] = norm.bias.detach() + gain * (
                state[f"convs.{i}.bias"] - norm.running_mean
            )
        return state


def statistics(network: FeatureNetwork, data: Data, rows: Tensor) -> FeatureStatistics:
    """Mean and covariance of the features of pictures ``rows`` as they are."""
    found = FeatureStatistics()
    with torch.inference_mode():
        for part in rows.split(256):
            found.update(network.features(data.unit(part)))
    return found


def body(options: argparse.Namespace, display: Any) -> None:
    """Train and export."""
    data = load_data(options.data, 64).to(options.device)
    plain = load_data(options.data, 32)  # missing data should be noticed before training
    with fresh_weights(options.seed):
        model = TrainingNetwork(FeatureNetwork(len(CLASSES)))
    model.to(options.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(options.seed)
    weights = rare_weights(data.labels[data.train])

    def step(done: int) -> dict[str, float]:
        drawn = torch.multinomial(weights, options.batch, replacement=True, generator=generator)
        rows = data.train[drawn]
        images = augment(data.unit(rows), data.flip_ok[rows], generator, affine=AFFINE)
        labels = data.labels[rows].to(options.device)
        logits = model(halve(images), generator)
        loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        rate = cosine(done, options.steps, PEAK_RATE, WARMUP)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return {"loss": loss.item(), "accuracy": accuracy, "rate": rate}

    parts = {"model": model, "optimizer": optimizer}
    train("features", options, parts, generator, step, display)
    export(options.out / "features.safetensors", model.fold())
    # The statistics are those of the network as it will be read: from half precision.
    found = statistics(load_features(options.out), plain, plain.train)
    count = torch.tensor([found.count])
    export(
        options.out / "fd_stats.safetensors",
        {"mean": found.mean, "cov": found.covariance, "n": count},
    )
    display.say(f"wrote features.safetensors and fd_stats.safetensors to {options.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = arguments(__doc__.split("\n")[0], steps=1216, batch=64)
    return run_command(parser, argv, body)


if __name__ == "__main__":
    sys.exit(main())
