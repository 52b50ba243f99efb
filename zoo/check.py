#!/usr/bin/env python3
"""Measure trained weights: the bundled ones, or those of a folder.

    python zoo/check.py --data DIR [--model var-tiny] [--weights DIR] [--samples 512] [--json FILE]

Prints a table. Distances are Frechet distances in the feature space of the weights to their
statistics of the training pictures; they fall with the number of pictures, so compare equal ones.
For mar-tiny the loss is the squared error of the noise that its head predicts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

if not __package__:  # run as a file: the folder that holds zoo/ is not on the path
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from ptq4arvg.evaluation import FeatureStatistics, load_features, load_reference
from ptq4arvg.models import ARVGModel, load_model
from ptq4arvg.progress import make_progress
from zoo.common import MODEL, Data, load_data
from zoo.loop import positive
from zoo.train_mar import NoiseLoss, masked_loss, raster_tokens

BATCH = 32
FEATURES = ("features.safetensors", "fd_stats.safetensors")
# What the trainers call the weights of a model: transformer, tokenizer, and the features where
# they are trained along with it; those of the other models are the bundled ones.
FILES = {
    MODEL: ("transformer.safetensors", "tokenizer.safetensors", *FEATURES),
    "rar-tiny": ("rar.safetensors", "vq.safetensors"),
    "par-tiny": ("par.safetensors", "vq.safetensors"),
    "mar-tiny": ("mar.safetensors", "kl.safetensors"),
}

Progress = Callable[[int, int], None]


def tokens_of(model: ARVGModel, images: Tensor) -> Tensor:
    """Tokens, as ``decode_ids`` takes them, of images [n, 3, H, W] in [-1, 1]."""
    if model.continuous:
        return raster_tokens(model.tokenizer, images)
    return model.tokenizer.encode(images)


@torch.inference_mode()
def reconstruction(model: ARVGModel, images: Tensor, progress: Progress) -> tuple[float, float]:
    """(L1, mean PSNR in dB) of images [n, 3, H, W] in [-1, 1], encoded and decoded."""
    absolute, psnr = [], []
    for start in range(0, len(images), BATCH):
        progress(start, len(images))
        part = images[start : start + BATCH]
        error = model.decode_ids(tokens_of(model, part)) * 2 - 1 - part
        absolute.append(error.abs().mean((1, 2, 3)))
        # The range of [-1, 1] is 2; without a floor a perfect picture would make all infinite.
        psnr.append(10 * torch.log10(4 / error.square().mean((1, 2, 3)).clamp_min(1e-10)))
    progress(len(images), len(images))
    return torch.cat(absolute).mean().item(), torch.cat(psnr).mean().item()


@torch.inference_mode()
def next_token(
    model: ARVGModel, images: Tensor, labels: Tensor, progress: Progress
) -> tuple[float, float]:
    """(loss in nats, accuracy) of the tokens of images [n, 3, H, W] in [-1, 1], labels [n]."""
    loss = hits = 0.0
    for start in range(0, len(images), BATCH):
        progress(start, len(images))
        ids = model.tokenizer.encode(images[start : start + BATCH])
        of_class = labels[start : start + BATCH].to(ids.device)
        logits = model.replay(ids, of_class).float()
        loss += F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum").item()
        hits += (logits.argmax(2) == ids).sum().item()
    progress(len(images), len(images))
    count = len(images) * model.tokens
    return loss / count, hits / count


@torch.inference_mode()
def noise_error(
    model: ARVGModel, images: Tensor, labels: Tensor, seed: int, progress: Progress
) -> float:
    """Mean squared error of the predicted noise of images [n, 3, H, W] in [-1, 1], labels [n]."""
    generator, loss, total = torch.Generator().manual_seed(seed), NoiseLoss().to(images.device), 0.0
    for start in range(0, len(images), BATCH):
        progress(start, len(images))
        tokens = tokens_of(model, images[start : start + BATCH])
        of_class = labels[start : start + BATCH].to(tokens.device)
        error, _ = masked_loss(model.transformer, loss, tokens, of_class, generator)
        total += error.item() * len(tokens)
    progress(len(images), len(images))
    return total / len(images)


def losses(
    model: ARVGModel, images: Tensor, labels: Tensor, seed: int, progress: Progress
) -> dict[str, float]:
    """What training lowers, by name."""
    if model.continuous:
        return {"noise_error": noise_error(model, images, labels, seed, progress)}
    loss, accuracy = next_token(model, images, labels, progress)
    return {"next_token_loss": loss, "next_token_accuracy": accuracy}


def draw_labels(data: Data, count: int, seed: int) -> Tensor:
    """Labels int64 [count] with the frequencies of the training pictures."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(data.train), (count,), generator=generator)
    return data.labels[data.train[drawn]]


def features_of(network: Any, images: Tensor, labels: Tensor) -> tuple[FeatureStatistics, float]:
    """(feature statistics, share put in their class) of images [n, 3, H, W] in [0, 1]."""
    found, hits = FeatureStatistics(), 0
    with torch.inference_mode():
        for part, of_class in zip(images.split(256), labels.split(256), strict=True):
            features = network.features(part)
            found.update(features)
            hits += (network.fc(features).argmax(1).cpu() == of_class).sum().item()
    return found, hits / len(labels)


def measure(options: argparse.Namespace, display: Any) -> dict[str, Any]:
    """All figures, by name."""
    data = load_data(options.data, 32).to(options.device)
    folder, files = options.weights, FILES[options.model]
    for name in files if folder else ():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {str(folder)!r}; wanted {', '.join(files)}")
    model = load_model(
        options.model,
        weights=folder and folder / files[0],
        tokenizer=folder and folder / files[1],
        device=options.device,
    )
    own = folder if files[2:] else None
    network, reference = load_features(own).to(options.device), load_reference(own)

    # As many training pictures as are held out.
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[: len(data.heldout)]
    result: dict[str, Any] = {
        "model": options.model, "weights": str(folder or "bundled"), "seed": options.seed,
    }  # fmt: skip
    for part, rows in (("heldout", data.heldout), ("train", data.train[chosen])):
        images, labels = data.unit(rows), data.labels[rows]

        def tell(what: str, part: str = part) -> Progress:
            return lambda done, total: display(f"{part} {what}", done, total)

        l1, psnr = reconstruction(model, images * 2 - 1, tell("reconstruction"))
        loss = losses(model, images * 2 - 1, labels, options.seed, tell("loss"))
        found, classified = features_of(network, images, labels)
        result[part] = {
            "pictures": len(rows),
            "reconstruction_l1": l1,
            "reconstruction_psnr": psnr,
            **loss,
            "class_accuracy": classified,
            "distance": found.distance(*reference),
        }
    labels = draw_labels(data, options.samples, options.seed)
    images = model.generate(labels, seed=options.seed, batch_size=BATCH, progress=display)
    found, classified = features_of(network, images, labels)
    result["samples"] = {
        "pictures": options.samples,
        "class_accuracy": classified,
        "distance": found.distance(*reference),
    }
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as text, one column per set of pictures."""
    lines = [f"{'':24}{'held out':>10}{'training':>10}{'samples':>10}"]
    for key, value in result["heldout"].items():
        cells = [result[part].get(key) for part in ("heldout", "train", "samples")]
        shape = "10d" if isinstance(value, int) else "10.4f"
        row = "".join(" " * 10 if cell is None else f"{cell:{shape}}" for cell in cells)
        lines.append(f"{key.replace('_', ' '):24}{row}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare_data.py")
    parser.add_argument("--model", choices=FILES, default=MODEL, help="what the weights are of")
    parser.add_argument("--weights", type=Path, help="folder of trained weights; default: bundled")
    parser.add_argument("--samples", type=positive, default=512, help="pictures to generate")
    parser.add_argument("--seed", type=int, default=0, help="of labels and samples")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(argv)
    if options.samples < 2:
        parser.error("argument --samples: a covariance needs at least 2 pictures")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: this PyTorch sees no CUDA device")
    try:
        with make_progress() as display:
            result = measure(options, display)
        print(table(result))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
