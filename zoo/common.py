"""What the three trainers share: the data, augmentation, schedules, averages, and exports."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ptq4arvg.models import ARVGModel, build_model, model_config
from zoo.classes import CLASSES

__all__ = [
    "Average",
    "Data",
    "architecture",
    "augment",
    "cosine",
    "epoch_rows",
    "export",
    "export_weights",
    "fresh_weights",
    "halve",
    "load_data",
    "rare_weights",
    "uniform",
]

MODEL = "var-tiny"


@dataclass(frozen=True)
class Data:
    """Pictures uint8 [N, 3, S, S], labels int64 [N], flip_ok bool [N] (a mirrored one is as good),
    and the rows for training and those held out, int64."""

    images: Tensor
    labels: Tensor
    flip_ok: Tensor
    train: Tensor
    heldout: Tensor

    def unit(self, rows: Tensor) -> Tensor:
        """Pictures ``rows`` as float32 [n, 3, S, S] in [0, 1], on the device of the data."""
        return self.images[rows.to(self.images.device)].float() / 255

    def to(self, device: str) -> Data:
        """The same with the pictures on ``device``; what batches are drawn by stays."""
        return Data(self.images.to(device), self.labels, self.flip_ok, self.train, self.heldout)


def load_data(folder: str | Path, size: int) -> Data:
    """The pictures of ``size`` pixels that prepare_data.py wrote into ``folder``."""
    path = Path(folder) / f"emoji{size}.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {str(folder)!r}. Make it with: "
            f"python zoo/prepare_data.py --out {folder}"
        )
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        heldout = torch.from_numpy(arrays["heldout"])
        flip_ok, classes = torch.from_numpy(arrays["flip_ok"]), tuple(arrays["classes"].tolist())
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no data set: {error}. Make it anew") from None
    n = len(labels)
    if images.dtype != torch.uint8 or list(images.shape) != [n, size, size, 3] or not n:
        raise ValueError(
            f"{path}: images are {images.dtype} {list(images.shape)}; wanted uint8 "
            f"[{n}, {size}, {size}, 3]"
        )
    if classes != CLASSES or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"{path} has other classes than zoo/classes.py. Make it anew")
    if heldout.all() or not heldout.any():
        raise ValueError(f"{path}: {int(heldout.sum())} of {n} pictures held out; wanted some")
    return Data(
        images.permute(0, 3, 1, 2).contiguous(),
        labels,
        flip_ok[labels],
        (~heldout).nonzero().flatten(),
        heldout.nonzero().flatten(),
    )


def architecture(name: str = MODEL) -> ARVGModel:
    """A bundled model, for the sizes of its parts; its weights are whatever was in memory."""
    return build_model(name, model_config(name))


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """PyTorch's default initialization inside depends on ``seed`` only, and disturbs nobody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# Batches. All random numbers are drawn on the CPU, so that they are the same on every device.


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 in [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def epoch_rows(rows: Tensor, batch: int, step: int, seed: int) -> Tensor:
    """The batch of ``rows`` [n] for a step: shuffled anew, from the seed, every pass over them."""
    batch = min(batch, len(rows))
    epoch, position = divmod(step, len(rows) // batch)
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(rows), generator=generator)
    return rows[order[position * batch : (position + 1) * batch]]


def rare_weights(labels: Tensor) -> Tensor:
    """A drawing weight for each of labels [n]: 1 / sqrt(size of its class)."""
    return labels.bincount()[labels].float().rsqrt()


def halve(images: Tensor) -> Tensor:
    """Means over 2x2 pixels: [n, 3, 2 S, 2 S] -> [n, 3, S, S]."""
    return F.avg_pool2d(images, 2)


def augment(
    images: Tensor,
    flip_ok: Tensor,
    generator: torch.Generator,
    mirror: float = 0.5,
    affine: float = 0.6,
    colour: float = 0.6,
    scale: tuple[float, float] = (0.85, 1.06),
    shift: float = 0.08,
) -> Tensor:
    """Images [n, 3, S, S] in [0, 1], each changed at random; white stays white and fills gaps.

    mirror, affine, colour: probabilities of each change, of mirroring only where flip_ok [n].
    scale: of what is seen; shift: at most, in units of half the width.
    """
    n, device = len(images), images.device

    def chosen(probability: float) -> Tensor:
        return torch.rand(n, generator=generator) < probability

    sign = torch.where(chosen(mirror) & flip_ok, -1.0, 1.0)
    moved = chosen(affine)
    zoom = torch.where(moved, 1 / uniform(*scale, (n,), generator), 1.0)
    offset = uniform(-shift, shift, (2, n), generator) * moved
    zero = torch.zeros(n)
    theta = torch.stack([sign * zoom, zero, offset[0], zero, zoom, offset[1]], 1).view(n, 2, 3)
    grid = F.affine_grid(theta.to(device), list(images.shape), align_corners=False)
    # Outside the picture grid_sample takes 0: the inverse of white.
    images = 1 - F.grid_sample(1 - images, grid, align_corners=False)

    saturation = uniform(0.75, 1.15, (n, 1, 1), generator)
    mix = uniform(-0.06, 0.06, (n, 3, 3), generator)
    gamma = uniform(0.85, 1.15, (n, 1, 1, 1), generator)
    # Rows that sum to one leave greys, and so white, as they are.
    matrix = saturation * torch.eye(3) + (1 - saturation) / 3 + mix - mix.mean(2, keepdim=True)
    new = torch.einsum("nij,njhw->nihw", matrix.to(device), images)
    new = new.clamp(0, 1).pow(gamma.to(device))
    return torch.where(chosen(colour).to(device)[:, None, None, None], new, images)


# Optimization.


def cosine(step: int, steps: int, peak: float, warmup: int, floor: float = 0.0) -> float:
    """Learning rate of a step: a line up to ``peak``, then a cosine down to ``floor``."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(steps - 1 - warmup, 1)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))


class Average:
    """Exponential moving average of the parameters of a module.

    Early on the decay is lower, so that the random first weights do not linger.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the present parameters."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "values": dict(self.values)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.updates = int(state["updates"])
        for name, value in self.values.items():
            value.copy_(state["values"][name])


def export_weights(folder: Path, name: str, state: dict[str, Tensor], display: Any) -> None:
    """Write <folder>/<name>.safetensors (see ``export``) and say so."""
    path = folder / f"{name}.safetensors"
    export(path, state)
    display.say(f"wrote {path}")


def export(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors as half-precision safetensors (integers and float64 as they are)."""
    out = {}
    for name, value in state.items():
        value = value.detach().cpu()
        if value.dtype == torch.float32:
            value = value.half()
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} does not fit half precision; {path.name} was not written")
        out[name] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(save(out))
    part.replace(path)
