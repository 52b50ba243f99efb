"""Saving a quantized model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..models.convolutions import packed_convolutions
from ..nn import IntAttention, PackedLinear, QuantAttention, QuantLinear
from ..serialize import check_writable, plain, pretty_json
from .architecture import architecture
from .card import model_card
from .config import QUANT_METHOD, quantization_config
from .folder import replaceable, write_folder
from .hashing import content_hash, text_hash
from .layout import pack_linear
from .tensors import check_fit, kept_tensors, shrink, some

__all__ = ["check_target", "describe", "save_quantized"]

FILES = ("config.json", "model.safetensors", "recipe.yaml", "report.json", "README.md")


def check_target(folder: str | Path, overwrite: bool = False) -> None:
    """ValueError unless a checkpoint may be written to ``folder``: free, empty, or (overwrite)
    holding a checkpoint of this package and nothing else."""
    folder = Path(folder)
    check_writable(replaceable(folder))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not _holds_checkpoint(folder):
        raise ValueError(
            f"{folder} exists and is not a checkpoint of ptq4arvg; it is left as it is. "
            "Give another folder"
        )
    if not overwrite:
        raise ValueError(
            f"{folder} holds a checkpoint already; give another folder, or --overwrite "
            "(overwrite=True) to replace it"
        )
    others = sorted(p.name for p in folder.iterdir() if p.name not in FILES or p.is_dir())
    if others:
        raise ValueError(
            f"{folder} holds more than its checkpoint, and is left as it is: {some(others)}. "
            "Move that elsewhere, or give another folder"
        )


def _holds_checkpoint(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return config["quantization_config"]["quant_method"] == QUANT_METHOD
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _modules(model: Any, *kinds: type) -> dict[str, Any]:
    found = model.transformer.named_modules()
    return {name: module for name, module in found if isinstance(module, kinds)}


def describe(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config without its hashes, tensors) of a quantized model: all that its hash covers.

    ValueError if the model was not quantized to integers.
    """
    if not getattr(model, "recipe", None):
        raise ValueError("save: this model is not quantized; call ptq4arvg.quantize_ on it first")
    if _modules(model, QuantLinear):
        raise ValueError(
            "save: this model was quantized in simulation only; quantize it with pack=True and "
            "without compat"
        )
    linears = _modules(model, PackedLinear)
    attention = _modules(model, QuantAttention, IntAttention)
    decoder = packed_convolutions(model.tokenizer)
    tensors = {}
    for part, layers in (("transformer", linears), ("tokenizer", decoder)):
        for name, module in layers.items():
            for key, tensor in pack_linear(module.canonical()).items():
                tensors[f"{part}.{name}.{key}"] = tensor
    kept = kept_tensors(model.transformer, skip=set(linears))
    tensors |= {f"transformer.{name}": shrink(t) for name, t in kept.items()}
    kept = kept_tensors(model.tokenizer, skip=set(decoder))
    tensors |= {f"tokenizer.{name}": shrink(t) for name, t in kept.items()}
    recipe = plain(model.recipe)
    ignore = [s.name for s in model.linears() if s.name not in linears]
    config = architecture(model) | {
        "quantization_config": plain(
            quantization_config(linears, attention, decoder, recipe, ignore)
        ),
        "recipe": recipe,
    }
    return config, tensors


def _check_loadable(model: Any) -> None:
    """ValueError where a part has other tensors than its class makes of its configuration."""
    replaced = set(_modules(model, PackedLinear, QuantAttention, IntAttention))
    decoder = set(packed_convolutions(model.tokenizer))
    for part, config, skip in ((model.transformer, model.config, replaced),
                               (model.tokenizer, model.tokenizer.config, decoder)):  # fmt: skip
        with torch.device("meta"):
            twin = type(part)(config)
        try:
            check_fit(twin, kept_tensors(part, skip), skip)
        except ValueError as error:
            raise ValueError(
                f"save: a checkpoint of this model could not be loaded: {error}"
            ) from None


@torch.inference_mode()
def save_quantized(model: Any, folder: str | Path, overwrite: bool = False) -> str:
    """Write ``model`` to ``folder`` and return the hash of its contents.

    The folder appears complete or not at all. An existing checkpoint is replaced only with
    ``overwrite``, anything else never: ValueError says what is there. Nor is anything written that
    could not be loaded. OSError where the disk is full.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    config, tensors = describe(model)
    _check_loadable(model)
    recipe = yaml.safe_dump(config["recipe"], sort_keys=False)
    report = pretty_json(model.report.to_dict())
    config["hash"] = content_hash(config, tensors)
    config["files"] = {"recipe.yaml": text_hash(recipe), "report.json": text_hash(report)}
    size = sum(t.nbytes for t in tensors.values())

    def write(path: Path) -> None:
        try:
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # what the disk says is in its text alone
            raise OSError(f"{folder} cannot be written ({size / 1e6:.1f} MB): {error}") from None
        (path / "recipe.yaml").write_text(recipe, "utf-8")
        (path / "report.json").write_text(report, "utf-8")
        card = model_card(config, model.report, size, model.sampling_note)
        (path / "README.md").write_text(card, "utf-8")
        (path / "config.json").write_text(pretty_json(config), "utf-8")
        # safetensors makes its file readable by its owner only.
        mode = (path / "config.json").stat().st_mode
        (path / "model.safetensors").chmod(mode)

    write_folder(folder, write, replace=overwrite)
    return config["hash"]
