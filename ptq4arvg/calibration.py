"""Calibration rows: the model's own samples, decoded as at inference, and the choice among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .dgc import farthest_rows, mahalanobis, research_ratio
from .distributed import current, spread
from .errors import closest
from .sampling import whole

__all__ = ["Calibration", "calibrate", "check_rows", "check_selection"]

SELECTIONS = ("dgc", "random", "first", "research_code")


@dataclass(frozen=True)
class Calibration:
    """Rows to calibrate on.

    ids: the tokens of every row as ``model.sample_rows`` gives them: ids int64 [n, T], or
    continuous tokens float32 [n, T, C]; labels int64 [n]: its class, ``null_label`` for
    unconditional rows; seed, select: how they came about (empty for rows given by the caller), and
    samples: of how many they were chosen (0 if that is not known); model: whose they are, by name.
    For reports, where rows were left out by their distance: distance float64 [samples] of all that
    were drawn, conditional ones first, and chosen int64 [n], which of them these rows are.
    """

    ids: Tensor
    labels: Tensor
    seed: int = 0
    select: str = ""
    distance: Tensor | None = field(default=None, repr=False)
    chosen: Tensor | None = field(default=None, repr=False)
    samples: int = 0
    model: str = ""

    def __post_init__(self) -> None:
        axes = 3 if self.ids.is_floating_point() else 2
        shape = self.ids.shape
        if len(shape) != axes or self.labels.shape != shape[:1] or not len(self.labels):
            raise ValueError(
                f"Calibration: ids {list(shape)} and labels {list(self.labels.shape)}; wanted ids "
                "[rows, positions], or continuous tokens [rows, positions, channels], and labels "
                "[rows] with at least one row"
            )

    @property
    def hash(self) -> str:
        """SHA-256 of the rows: the same rows give the same hash on every machine."""
        digest = hashlib.sha256()
        for tensor in (self.ids, self.labels):
            data = canonical(tensor.detach()).contiguous()
            digest.update(repr(list(data.shape)).encode())
            digest.update(data.numpy().tobytes())
        return digest.hexdigest()

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """The rows as (ids, labels) pairs of at most ``size`` rows."""
        return list(zip(self.ids.split(size), self.labels.split(size), strict=True))


def check_rows(model: torch.nn.Module, rows: Calibration) -> None:
    """ValueError unless ``model`` can have drawn the rows, for the labels that it knows."""
    if not isinstance(rows, Calibration):
        raise ValueError(
            f"{model.name}: the calibration is a {type(rows).__name__}; wanted rows of "
            "`calibrate`, or Calibration(ids, labels)"
        )
    ids, labels, continuous = rows.ids, rows.labels, model.continuous
    vocabulary = 0 if continuous else model.config.vocab_size
    fits = ids.is_floating_point() == continuous and ids.shape[1] == model.tokens
    if fits and not continuous:
        fits = ids.min() >= 0 and ids.max() < vocabulary
    if not fits:
        kind = f"ids below {vocabulary}" if vocabulary else "continuous tokens"
        came = f"up to {ids.max().item()}" if ids.dtype == torch.int64 else str(ids.dtype)
        raise ValueError(
            f"{model.name}: calibration rows {list(ids.shape)}, {came}; wanted [rows, "
            f"{model.tokens}] of {kind}. Rows of another model? `calibrate` draws this one's"
        )
    if continuous and not ids.isfinite().all():
        raise ValueError(
            f"{model.name}: calibration rows with infinite numbers, or such that are none; wanted "
            "finite ones"
        )
    lowest, highest = labels.min().item(), labels.max().item()
    if labels.is_floating_point() or lowest < 0 or highest > model.null_label:
        raise ValueError(
            f"{model.name}: calibration labels {lowest} to {highest}, {labels.dtype}; wanted whole "
            f"numbers from 0 to {model.null_label}, which is no class"
        )


def canonical(ids: Tensor) -> Tensor:
    """Token ids as int64, continuous tokens as float32, on the CPU."""
    return ids.cpu().to(torch.float32 if ids.is_floating_point() else torch.int64)


def check_selection(samples: int, keep: int, select: str) -> None:
    """ValueError unless ``calibrate`` can keep so many of so many samples in that way."""
    if select not in SELECTIONS:
        raise ValueError(
            f"calibrate: unknown select {select!r}; wanted one of {', '.join(SELECTIONS)}. "
            f"{closest(select, SELECTIONS)}"
        )
    if samples < 2 or samples % 2 or not 0 < keep <= samples:
        raise ValueError(
            f"calibrate: samples {samples}, keep {keep}; wanted an even number of samples "
            "(conditional and unconditional rows) and 1 <= keep <= samples"
        )


@torch.inference_mode()
def calibrate(
    model: torch.nn.Module,
    samples: int = 256,
    keep: int = 128,
    seed: int = 0,
    select: str = "dgc",
    batch_size: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:
    """Sample ``samples`` rows from ``model`` itself and keep ``keep`` of them.

    Half of the rows are conditional, half unconditional: each image that the model draws (its own
    decoding loop with its default guidance) gives one row of each kind with the same tokens, as
    guidance does at inference. ``select``: "dgc" (default), "random", "first", or "research_code"
    (the ratio rule of the authors' code). The result depends on the arguments only. Within
    ``joined`` every rank draws its share, and all have the same result.
    """
    check_selection(samples, keep, select)
    images, seed = samples // 2, whole("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    rounds = [
        torch.randperm(model.num_classes, generator=generator)
        for _ in range(-(-images // model.num_classes))
    ]
    labels = torch.cat(rounds)[:images]
    group, batches, drawn = current(), spread(images, batch_size), {}
    for number, batch in enumerate(batches):
        if not group.owns(number):
            continue
        drawn[number] = canonical(model.sample_rows(labels[batch], seed=seed, index=batch))
        if progress:
            progress("sample", sum(map(len, batches[: number + 1])), images)
    ids = torch.cat(group.gather_batches(drawn))[torch.cat(batches).argsort()]
    ids = torch.cat([ids, ids])  # [conditional | unconditional]
    labels = torch.cat([labels, torch.full_like(labels, model.null_label)])
    chosen, distance = _choose(model, ids, labels, keep, select, generator, batch_size, progress)
    return Calibration(
        ids[chosen], labels[chosen], seed, select, distance, chosen, samples, model.name
    )


def _choose(
    model, ids, labels, keep, select, generator, batch_size, progress
) -> tuple[Tensor, Tensor | None]:
    """Indices of the rows to keep, and the distances of all where they decided."""
    rows = len(labels)
    conditional = labels != model.null_label
    if select == "random":
        return torch.sort(torch.randperm(rows, generator=generator)[:keep]).values, None
    if keep == rows:
        return torch.arange(rows), None
    images = rows // 2
    ratio = 0.5
    if select != "first":
        pooled, first = _features(model, ids, labels, batch_size, progress)
        if select == "dgc":
            distance = mahalanobis(pooled)
            return farthest_rows(distance, conditional, keep), distance
        ratio = research_ratio(first[:images], first[images:], keep)
    cond = min(round(ratio * keep), images)
    kept = torch.cat([torch.arange(cond), images + torch.arange(min(keep - cond, images))])
    return kept, None


def _features(model, ids, labels, batch_size, progress) -> tuple[Tensor, Tensor]:
    """Output of the last block: (mean over positions, first position), each [rows, D].

    Both averaged over the passes through the block, where a replay makes several.
    """
    group, pooled, first, captured = current(), {}, {}, []
    block = model.transformer.get_submodule(model.block_names()[-1])

    def keep(_module, _args, output: Tensor) -> None:  # output [B, T, D]
        captured.append((output.mean(1).double().cpu(), output[:, 0].float().cpu()))

    handle = block.register_forward_hook(keep)
    try:
        for number, start in enumerate(range(0, len(labels), batch_size)):
            if not group.owns(number):
                continue
            stop = start + batch_size
            model.replay(ids[start:stop], labels[start:stop])
            for kept, passes in zip((pooled, first), zip(*captured, strict=True), strict=True):
                kept[number] = torch.stack(passes).mean(0)
            captured.clear()
            if progress:
                progress("select", min(stop, len(labels)), len(labels))
    finally:
        handle.remove()
    return torch.cat(group.gather_batches(pooled)), torch.cat(group.gather_batches(first))
