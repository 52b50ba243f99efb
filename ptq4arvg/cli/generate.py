"""`ptq4arvg generate`: images from a checkpoint or from a float model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..progress import make_progress
from .common import closing, header, load_target, parse_classes, typed

__all__ = ["run"]

TEXT = "ptq4arvg"  # name of the text in a PNG that says what made it


def _made_by(path: Path) -> str | None:
    """The text in the PNG at ``path``; None where there is none, or no PNG."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get(TEXT)
    except OSError:
        return None


def _sources(model: Any, labels: list[int], seed: int, options: dict[str, Any]) -> list[str]:
    """For each image a hash of all that it depends on."""
    import torch

    from .. import __version__
    from ..checkpoint.hashing import model_hash, text_hash
    from ..serialize import canonical_json

    common = {"model": model_hash(model), "seed": seed, "options": options,
              "version": __version__, "torch": torch.__version__}  # fmt: skip
    return [
        text_hash(canonical_json(common | {"index": index, "label": label}))
        for index, label in enumerate(labels)
    ]


def run(
    folder: str,
    classes: str,
    out: Path,
    seed: int,
    options: dict[str, float | None],
    batch_size: int,
    quiet: bool,
    **files: Path | None,
) -> None:
    """Write one PNG per image, batch by batch, but those that are there already; options: of the
    sampling, None for the model's own; files: of a float model (weights, tokenizer)."""
    header(f"generate {folder}", seed, quiet)
    from ..distributed import current, spread
    from ..report import save_png, to_picture
    from ..serialize import check_writable

    check_writable(out)
    given = [name for name, path in files.items() if path is not None]
    if given and Path(folder).exists():
        raise ValueError(
            f"generate: --{given[0]} is for the name of a float model; the checkpoint {folder} has "
            "its own weights. Leave it out"
        )
    model = load_target(folder, **files)
    labels = parse_classes(classes, model.num_classes)
    sources = _sources(model, labels, seed, options)
    paths = [out / f"{number:03d}_class{label}.png" for number, label in enumerate(labels)]
    group, drawn, start = current(), 0, time.perf_counter()
    batches = [b for n, b in enumerate(spread(len(labels), batch_size)) if group.owns(n)]
    left = [b for b in batches if any(_made_by(paths[i]) != sources[i] for i in b.tolist())]
    total = sum(map(len, left))
    with make_progress(quiet) as progress:
        for batch in left:
            part = [labels[i] for i in batch.tolist()]
            images = model.generate(part, seed, index=batch, batch_size=len(batch), **options)
            for i, image in zip(batch.tolist(), images, strict=True):
                save_png(to_picture(image), paths[i], **{TEXT: sources[i]})
            drawn += len(batch)
            progress("generate", drawn, total)
    seconds = time.perf_counter() - start
    group.barrier()
    figure = f"{seconds / max(drawn, 1) * 1000:.0f} ms per image in this run"
    closing(
        f"{len(labels)} images in {out}",
        figure if drawn else "nothing was left to draw",
        typed("generate", folder, classes=classes, **files, **options, seed=seed + 1,
              out=f"{out}-{seed + 1}"),
    )  # fmt: skip
