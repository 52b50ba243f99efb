"""`ptq4arvg evaluate`: what a protocol measures of a checkpoint, a float model or samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..progress import make_progress
from .common import closing, header, load_target, typed

__all__ = ["Request", "run"]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    target: str
    protocol: str
    out: Path
    images: int | None
    samples: Path | None
    parts: Path | None
    inception: Path | None
    reference: Path | None
    weights: Path | None
    tokenizer: Path | None
    device: str
    resamples: int
    batch_size: int
    seed: int
    quiet: bool


def _space(request: Request, protocol: Any, progress: Any) -> tuple[Any, Any]:
    """(feature space, reference). ValueError if a file is missing or one too many."""
    from ..distributed import local_device
    from ..evaluation.spaces import (
        bundled_reference,
        bundled_space,
        inception_space,
        read_reference,
    )

    files = {"--inception": request.inception, "--reference": request.reference}
    if protocol.space == "bundled":
        given = [name for name, path in files.items() if path is not None]
        if given:
            raise ValueError(
                f"evaluate: {given[0]} is for ImageNet figures, {protocol.name} measures in the "
                "bundled feature space; add --protocol var-paper (or rar-, par-, mar-paper)"
            )
        return bundled_space(), bundled_reference()
    missing = [name for name, path in files.items() if path is None]
    if missing:
        raise ValueError(
            f"evaluate: {protocol.name} needs {' and '.join(missing)}: the weights of Inception-v3 "
            "of 2015-12-05 (.pth or .pb), and reference statistics as ADM's .npz"
        )
    space = inception_space(request.inception, local_device(request.device))
    wanted = {"precision", "recall"} & set(protocol.metrics)
    return space, read_reference(request.reference, space, progress, images=bool(wanted))


def _models(request: Request) -> tuple[Any, Any, str]:
    """(model, its float model or None, hash of the checkpoint or "")."""
    from ..checkpoint import read_config
    from ..distributed import local_device
    from ..models import load_model
    from ..models.registry import BUNDLED

    device = local_device(request.device)
    files = {"weights": request.weights, "tokenizer": request.tokenizer}
    model = load_target(request.target, device, **files)
    if model.recipe is None:
        return model, None, ""
    reference = None
    bundled = model.name in BUNDLED and model.recipe.get("weights") != "own"
    if bundled or request.weights is not None:
        reference = load_model(model.name, stress=model.stress, device=device, **files)
    return model, reference, read_config(request.target)["hash"]


def _lines(result: Any) -> list[str]:
    """A line per figure."""
    lines = []
    for name, figure in result.figures.items():
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        if figure.interval is not None:
            value += f"  ({figure.interval[0]:.4g} to {figure.interval[1]:.4g})"
        lines.append(f"{name:20} {value:32} {figure.note}".rstrip())
    return lines


def run(request: Request) -> None:
    """Evaluate, print the figures, and write the result as JSON."""
    header(f"evaluate {request.target} under {request.protocol}", request.seed, request.quiet)
    with make_progress(request.quiet) as progress:
        progress.say("loading torch and the operators")
        from ..distributed import current
        from ..evaluation.drawing import remove_parts
        from ..evaluation.protocol import find_protocol, write_result
        from ..evaluation.run import evaluate, evaluate_samples
        from ..serialize import check_writable

        protocol = find_protocol(request.protocol).with_(images=request.images)
        from_file = request.target.endswith(".npz")
        for option in ("samples", "weights", "tokenizer", "parts") if from_file else ():
            if getattr(request, option) is not None:
                raise ValueError(
                    f"evaluate: --{option} is for a model; {request.target} holds images that are "
                    "drawn already. Leave it out"
                )
        if from_file and current().world > 1:
            raise ValueError("evaluate: there is nothing to share in a file of samples; type the "
                             "same without torchrun")  # fmt: skip
        for file in filter(None, (request.out, request.samples)):
            check_writable(file, folder=False)
        parts = request.parts or request.out.with_suffix(".parts")
        model, reference_model, checkpoint = (None, None, "") if from_file else _models(request)
        space, reference = _space(request, protocol, progress)
        common = {"seed": request.seed, "resamples": request.resamples,
                  "batch_size": request.batch_size, "progress": progress}  # fmt: skip
        if from_file:
            result = evaluate_samples(request.target, protocol, space, reference, **common)
        else:
            result = evaluate(model, protocol, space, reference, reference_model,
                              samples=request.samples, parts=parts, **common)  # fmt: skip
    if result is None:  # another process has it
        return
    write_result(request.out, replace(result, checkpoint=checkpoint))
    remove_parts(parts)  # only now can nothing be lost of them
    print(f"{protocol.name} ({result.protocol_hash[:12]}): {protocol.images} images against "
          f"{result.reference}")  # fmt: skip
    for line in _lines(result):
        print(line)
    if protocol.space == "bundled":
        print("Figures named bundled_* compare runs of this package and nothing else.")
    name, figure = next(
        ((n, f) for n, f in result.figures.items() if f.value is not None), ("none", None)
    )
    written = f"{request.out}" + (f" and {request.samples}" if request.samples else "")
    r = request
    closing(
        written,
        f"{name} {figure.value:.4g}" if figure else "no figure could be measured",
        typed("evaluate", r.target, protocol=r.protocol, images=r.images, inception=r.inception,
              reference=r.reference, weights=r.weights, tokenizer=r.tokenizer, device=r.device,
              seed=r.seed + 1, out=f"{r.out.with_suffix('')}-2.json"),
    )  # fmt: skip
