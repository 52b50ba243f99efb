"""Evaluating a model, or a file of samples, under a protocol."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..distributed import current
from ..models import ARVGModel
from ..models.registry import BUNDLED
from .agreement import agreement, evaluation_rows
from .bootstrap import Progress, bootstrap_interval, share_interval
from .checks import check_files, check_float, check_images, check_resamples, check_space
from .divergence import first_divergence
from .drawing import FLOAT, MODEL, Drawing
from .features import FeatureNetwork
from .figures import Figure, ImageReference
from .protocol import BUNDLED_METRICS, MODEL_METRICS, Protocol, Result
from .samples import SampleFile
from .spaces import FeatureSpace

__all__ = ["SEED", "evaluate", "evaluate_samples", "protocol_labels"]

SEED = 1000  # of an evaluation, unless another is given; calibration begins at 0
CONTINUOUS = "its tokens are continuous; relative_error is of the replayed outputs"


def protocol_labels(protocol: Protocol, classes: int) -> Tensor:
    """Labels int64 [images]: the classes in turn, so that every part of the images has all.

    ValueError if ``per_class`` images of each of ``classes`` are not what the protocol wants.
    """
    if protocol.images < 2:
        raise ValueError(f"{protocol.name}: {protocol.images} images; wanted at least 2")
    if protocol.per_class and protocol.per_class * classes != protocol.images:
        raise ValueError(
            f"{protocol.name} wants {protocol.per_class} images of each of "
            f"{protocol.images // protocol.per_class} classes; the model has {classes}. Use "
            "--protocol smoke, or another number of --images"
        )
    return torch.arange(protocol.images) % classes


def _image_figures(
    drawing: Drawing, protocol: Protocol, reference: ImageReference, float_model: ARVGModel | None,
    samples: Path | None, resamples: int, folder: Path, progress: Progress | None,
) -> dict[str, Figure]:  # fmt: skip
    """Generate and look, all ranks; write and measure, rank 0, whose figures alone are any."""
    seed, space, labels = drawing.seed, drawing.space, drawing.labels
    parts = drawing.draw(folder / MODEL, progress, "generate")
    bundled = isinstance(space.network, FeatureNetwork)
    other = None
    if bundled and reference.features is None and float_model is not None:
        other = Drawing(float_model, protocol, labels, seed + 1, space, drawing.batch_size)
        others = other.draw(folder / FLOAT, progress, "generate float")
    if current().rank:
        return {}
    if samples is not None:
        drawing.write(parts, samples)
    features = drawing.features(parts)
    if other is not None:
        reference = replace(reference, features=torch.cat(other.features(others).pool))
    found = space.measure(features, reference, protocol.metrics, seed, resamples, progress)
    if other is not None:
        for name in {"bundled_precision", "bundled_recall"} & found.keys():
            found[name] = replace(found[name], note="against other images of the float model")
    if bundled and "bundled_accuracy" in protocol.metrics:
        right = torch.cat(features.probabilities).argmax(1) == labels
        interval = share_interval(right, seed, resamples) if resamples else None
        found["bundled_accuracy"] = Figure(right.double().mean().item(), interval)
    return found


def _model_figures(
    model: ARVGModel, float_model: ARVGModel | None, protocol: Protocol, labels: Tensor, seed: int,
    batch_size: int, resamples: int, progress: Progress | None,
) -> dict[str, Figure]:  # fmt: skip
    """Figures of the quantized model against the float one, without any picture."""
    names = [name for name in protocol.metrics if name in MODEL_METRICS]
    if model.report is None:
        return dict.fromkeys(names, Figure(None, note="this is the float model"))
    found = {
        "sqnr_db": Figure(
            model.report.sqnr_db, note="mean over the linears; each is in report.json"
        )
    }
    if float_model is None:
        rest = Figure(None, note="it needs the float model's weights")
        return {name: found.get(name, rest) for name in names}
    part = labels[: protocol.compared]
    rows = [t.to(model.cursor.position.device)
            for t in evaluation_rows(float_model, part, seed=seed)]  # fmt: skip
    close = agreement(float_model, model, *rows, batch_size=batch_size, progress=progress)
    found["relative_error"] = Figure(close.relative_error)
    if model.continuous:
        missing = Figure(None, note=CONTINUOUS)
        found |= dict.fromkeys(("kl", "top1", "first_divergence"), missing)
    else:
        found |= {"kl": Figure(close.kl), "top1": Figure(close.top1)}
    if "first_divergence" in names and not model.continuous:
        options = protocol.sampling()
        leave = first_divergence(float_model, model, part, seed, batch_size=batch_size,
                                 progress=progress, **options)  # fmt: skip
        share = torch.tensor(leave.first, dtype=torch.float64) / leave.tokens
        interval = None
        if resamples and len(part) > 1:
            interval = bootstrap_interval(
                lambda rows: share[rows].mean().item(), len(share), seed, resamples, high=1.0
            )
        note = (f"of {leave.tokens} tokens, the share before the first other one; "
                f"{leave.equal:.0%} of {len(part)} images have none")  # fmt: skip
        found["first_divergence"] = Figure(leave.mean, interval, note)
    return {name: found[name] for name in names}


def _sampling(model: ARVGModel, options: dict[str, float]) -> dict[str, Any]:
    """All sampling settings in effect: the model's own and what the protocol fixes."""
    own = {name: getattr(model.config.sampling, name) for name in ("cfg", "top_k", "top_p")}
    for name in ("temperature", "num_iter", "guidance_power", "cfg_schedule"):
        if hasattr(model.config, name):
            own[name] = getattr(model.config, name)
    return own | options


def _environment(seconds: float, batch_size: int, device: Any) -> dict[str, Any]:
    from .. import __version__

    return {"ptq4arvg": __version__, "torch": torch.__version__, "device": str(device),
            "isa": ops.isa(), "batch_size": batch_size, "processes": current().world,
            "seconds": round(seconds, 1)}  # fmt: skip


@contextlib.contextmanager
def _folder(parts: str | Path | None, samples: Path | None) -> Iterator[Path]:
    """``parts``, or a temporary folder: beside the samples, which are as large as it."""
    if parts is not None:
        yield Path(parts)
        return
    beside = None
    if samples is not None:
        beside = samples.parent
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=beside) as folder:
        yield Path(folder)


def evaluate(
    model: ARVGModel,
    protocol: Protocol,
    space: FeatureSpace,
    reference: ImageReference,
    float_model: ARVGModel | None = None,
    seed: int = SEED,
    samples: str | Path | None = None,
    resamples: int = 200,
    batch_size: int = 16,
    progress: Progress | None = None,
    parts: str | Path | None = None,
) -> Result | None:
    """Everything that ``protocol`` measures of ``model``; within ``joined``, for rank 0 alone.

    seed: of the images and of the rows compared; it should not be the calibration's.
    float_model: what a quantized model is compared with; None leaves those figures open. In the
    bundled space it also draws, from ``seed + 1``, the images that precision and recall are taken
    against, unless the reference has images. samples: file that the images are written to.
    resamples: of the bootstrap intervals, 0 for none. parts: folder for finished batches, which a
    run that ended early goes on from and ``remove_parts`` deletes; several processes need one that
    all of them see. Images in the bundled space say nothing about a model of other pictures, whose
    figures are left open. ValueError, before anything is drawn, if the protocol is not for this
    model or this space, the float model is quantized, there are too few images or resamples, or
    ``samples`` cannot be written; later, if ``parts`` holds batches of other settings.
    """
    check_space(protocol, space)
    check_float(float_model)
    check_resamples(resamples)
    check_files(samples, parts)
    labels = protocol_labels(protocol, model.num_classes)
    drawing = Drawing(model, protocol, labels, seed, space, batch_size, samples is not None)
    foreign = space.name == "bundled" and model.name not in BUNDLED
    if foreign and samples is not None:
        raise ValueError(
            f"{protocol.name} draws no images of {model.name}, so there are none for {samples}; "
            f"use --protocol {model.family}-paper"
        )
    if parts is None and current().world > 1:
        raise ValueError(
            f"evaluate: {current()} has no parts; wanted a folder that all processes see, where "
            "each leaves the images that it drew"
        )
    other = model if model.report is None else float_model
    if not foreign:
        check_images(protocol, reference, space.name == "bundled" and other is not None)
    start = time.perf_counter()
    found = _model_figures(
        model, float_model, protocol, labels, seed, batch_size, resamples, progress
    )
    if foreign:
        note = f"{model.name} makes other pictures than the bundled model's training images"
        found |= {n: Figure(None, note=note) for n in protocol.metrics if n in BUNDLED_METRICS}
    else:
        target = None if samples is None else Path(samples)
        with _folder(parts, target) as folder:
            found |= _image_figures(
                drawing, protocol, reference, other, target, resamples, folder, progress
            )
    if current().rank:
        return None
    report = model.report
    device = model.cursor.position.device
    return Result(
        model.name,
        "float" if report is None else report.scheme,
        "float" if report is None else report.method,
        float(model.stress), seed, protocol, protocol.hash,
        reference.name, reference.hash, space.hash,
        {name: found[name] for name in protocol.metrics},
        _sampling(model, drawing.options),
        environment=_environment(time.perf_counter() - start, batch_size, device),
    )  # fmt: skip


def evaluate_samples(
    path: str | Path,
    protocol: Protocol,
    space: FeatureSpace,
    reference: ImageReference,
    seed: int = SEED,
    resamples: int = 200,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Result:
    """What ``protocol`` measures of images alone, for those in an ``.npz`` of samples.

    The figures of models are left open. seed: of the bootstrap. ValueError for another number of
    images or another size than the protocol's.
    """
    check_space(protocol, space)
    check_resamples(resamples)
    check_images(protocol, reference)
    file = SampleFile(path)
    size = protocol.size or file.shape[1]
    if len(file) != protocol.images or file.shape[1:3] != (size, size):
        raise ValueError(
            f"{path} holds {len(file)} images of {file.shape[1]} x {file.shape[2]} pixels; "
            f"{protocol.name} wants {protocol.images} of {size} x {size}. Another number of images "
            "is another protocol: --images"
        )
    start = time.perf_counter()
    features = space.gather(file.batches(batch_size), len(file), progress)
    found = space.measure(features, reference, protocol.metrics, seed, resamples, progress)
    note = Figure(None, note="these are images without a model")
    return Result(
        Path(path).name, "samples", "samples", 0.0, seed, protocol, protocol.hash,
        reference.name, reference.hash, space.hash,
        {name: found.get(name, note) for name in protocol.metrics},
        environment=_environment(time.perf_counter() - start, batch_size, space.device),
    )  # fmt: skip
