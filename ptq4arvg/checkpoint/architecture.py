"""The float architecture in a checkpoint's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..serialize import plain

__all__ = ["architecture", "compute_dtype"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def architecture(model: Any) -> dict[str, Any]:
    """The fields of config.json that say what ``model`` is apart from its quantization."""
    dtypes = {p.dtype for p in model.transformer.parameters()}
    name = next((n for n, dtype in _DTYPES.items() if dtypes == {dtype}), None)
    if name is None:
        raise ValueError(
            f"save: the transformer's parameters are {sorted(map(str, dtypes))}; wanted all of one "
            f"of {', '.join(_DTYPES)}"
        )
    return {
        "model_type": model.family,
        "name": model.name,
        "stress": float(model.stress),
        "dtype": name,
        "architecture": plain(model.architecture),
    }


def compute_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype in which the model computes what is not quantized."""
    if config.get("dtype") not in _DTYPES:
        raise ValueError(f"dtype is {config.get('dtype')!r}; wanted one of {', '.join(_DTYPES)}")
    return _DTYPES[config["dtype"]]
