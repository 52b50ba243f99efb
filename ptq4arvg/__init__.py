"""Post-training quantization of autoregressive visual generation models, run in true integers.

Everything public is imported on first use, so that `import ptq4arvg` is immediate and touches
neither torch nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import distributed, evaluation, methods, models, ops
    from .calibration import Calibration, calibrate
    from .checkpoint import load_quantized, save_quantized
    from .models import ARVGModel, list_models, load_model
    from .originals import adopt
    from .pipeline import quantize_
    from .quant_report import QuantReport

# public name -> the module that defines it
_HOME = {
    "ARVGModel": "models",
    "Calibration": "calibration",
    "QuantReport": "quant_report",
    "adopt": "originals",
    "calibrate": "calibration",
    "list_models": "models",
    "load_model": "models",
    "load_quantized": "checkpoint",
    "quantize_": "pipeline",
    "save_quantized": "checkpoint",
}
_MODULES = ("distributed", "evaluation", "methods", "models", "ops")

__all__ = [
    "ARVGModel",
    "Calibration",
    "QuantReport",
    "__version__",
    "adopt",
    "calibrate",
    "distributed",
    "evaluation",
    "list_models",
    "load_model",
    "load_quantized",
    "methods",
    "models",
    "ops",
    "quantize_",
    "save_quantized",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for; AttributeError offers the closest one."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .errors import closest

    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. {closest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
