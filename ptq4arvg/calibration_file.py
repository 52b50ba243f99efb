"""Calibration rows in a file, so that several runs share them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .calibration import Calibration, canonical
from .serialize import write_file

__all__ = ["load_calibration", "save_calibration"]


def save_calibration(calibration: Calibration, path: str | Path) -> Path:
    """Write rows as safetensors: ids int32 [n, T] or float32 [n, T, C], labels int32 [n]; metadata
    with their hash."""
    ids = calibration.ids
    tensors = {
        "ids": ids.to(torch.float32 if ids.is_floating_point() else torch.int32).contiguous(),
        "labels": calibration.labels.to(torch.int32).contiguous(),
    }
    metadata = {
        "format": "ptq4arvg calibration 1",
        "seed": str(calibration.seed),
        "select": calibration.select,
        "samples": str(calibration.samples),
        "model": calibration.model,
        "hash": calibration.hash,
    }
    return write_file(path, save(tensors, metadata))


def load_calibration(path: str | Path) -> Calibration:
    """Read what `save_calibration` wrote. ValueError if it is something else or was changed."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; wanted a file that `ptq4arvg calibrate` writes")
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no file {str(path)!r}; wanted one that `ptq4arvg calibrate` writes"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "ptq4arvg calibration 1":
                raise ValueError(
                    f"{path} is no calibration file; wanted what `ptq4arvg calibrate` writes"
                )
            ids, labels = file.get_tensor("ids"), file.get_tensor("labels")
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({error}); run `ptq4arvg calibrate` again"
        ) from None
    rows = Calibration(
        canonical(ids), canonical(labels), int(metadata["seed"]), metadata["select"],
        samples=int(metadata.get("samples", 0)), model=metadata.get("model", ""),
    )  # fmt: skip
    if rows.hash != metadata["hash"]:
        raise ValueError(f"{path} was changed after it was written; run `ptq4arvg calibrate` again")
    return rows
