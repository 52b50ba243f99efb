"""`ptq4arvg generate`: images from a checkpoint or from a float model."""

from __future__ import annotations

import time
from pathlib import Path

from ..progress import make_progress
from .common import closing, header, parse_classes

__all__ = ["run"]


def run(
    folder: str,
    classes: str,
    out: Path,
    seed: int,
    options: dict[str, float | None],
    quiet: bool,
) -> None:
    """Write one PNG per image; options: of the sampling, None for the model's own."""
    header(f"generate {folder}", seed, quiet)
    from ..checkpoint import load_quantized
    from ..report import save_png, to_picture

    if Path(folder).exists():
        model = load_quantized(folder)
    else:
        from ..models import load_model

        model = load_model(folder)
    labels = parse_classes(classes, model.num_classes)
    start = time.perf_counter()
    with make_progress(quiet) as progress:
        images = model.generate(labels, seed=seed, progress=progress, **options)
    seconds = (time.perf_counter() - start) / len(labels)
    for number, (label, image) in enumerate(zip(labels, images, strict=True)):
        save_png(to_picture(image), out / f"{number:03d}_class{label}.png")
    closing(
        f"{len(labels)} images in {out}",
        f"{seconds * 1000:.0f} ms per image in this run",
        f"ptq4arvg generate {folder} --classes {classes} --seed {seed + 1} --out {out}",
    )
