"""Model families: architecture, published files, sampling, and what of them can be quantized."""

from .base import ARVGModel, LinearSpec, SamplingDefaults
from .registry import (
    BUNDLED,
    ModelInfo,
    build_model,
    list_models,
    load_model,
    model_config,
    store_weights,
)
from .stress import stress_

__all__ = [
    "BUNDLED",
    "ARVGModel",
    "LinearSpec",
    "ModelInfo",
    "SamplingDefaults",
    "build_model",
    "list_models",
    "load_model",
    "model_config",
    "store_weights",
    "stress_",
]
