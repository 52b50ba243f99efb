"""Devices by the names that users type."""

from __future__ import annotations

import torch

__all__ = ["computing_device", "usable_device"]


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name. ValueError for a name that is none, or a GPU that torch has not."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}; wanted cpu, cuda or cuda:NUMBER") from None
    if found.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= there:
            raise ValueError(
                f"device is {str(device)!r}, and torch {torch.__version__} sees {there} CUDA "
                "devices here; wanted cpu, or a torch with CUDA and a device"
            )
    return found


def computing_device(device: str | torch.device) -> torch.device:
    """The device of that name, which is a processor or a GPU: ValueError for others, such as meta,
    which has no numbers."""
    found = usable_device(device)
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(device)!r}; wanted cpu, cuda or cuda:NUMBER")
    return found
