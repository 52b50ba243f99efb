"""Quantized checkpoints: a folder of safetensors and JSON, checked on the way in.

    config.json         architecture, quantization_config, the recipe, and the hash of it all
    model.safetensors   canonical row-major tensors, never a kernel's layout
    recipe.yaml         what was asked for, with its seed
    report.json         what came of it, layer by layer
    README.md           the model card

Nothing in the folder depends on the time, the machine's paths or the order of execution, so the
same recipe gives the same hash. No pickle is read or written.
"""

from .hashing import content_hash
from .load import load_quantized, read_config
from .save import save_quantized

__all__ = ["content_hash", "load_quantized", "read_config", "save_quantized"]
