"""Loading a quantized model, with every part checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import check_attention
from ..devices import usable_device
from ..fuse import fuse_
from ..memory import return_freed_memory
from ..models import build_model
from ..models.convolutions import decoder_convolutions, replace_convolution_
from ..nn import IntAttention, PackedConv2d, PackedLinear, QuantAttention
from ..numerics import LinearQuantization
from ..quant_report import LayerReport, QuantReport
from .architecture import compute_dtype
from .config import FORMAT_VERSION, QUANT_METHOD, attention_settings, layer_settings
from .hashing import content_hash, text_hash
from .layout import linear_names, unpack_linear
from .reading import Section, TensorFile
from .tensors import fill

__all__ = ["load_quantized", "read_config"]


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a checkpoint. ValueError if ``folder`` holds none that this version reads."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder; wanted a checkpoint as `ptq4arvg quantize --out` writes it"
        )
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json")
    try:
        config = json.loads(path.read_text("utf-8"))
        quantization = config["quantization_config"]
        method, version = quantization["quant_method"], quantization["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no config of a quantized model; wanted JSON with a quantization_config"
        ) from None
    if method != QUANT_METHOD:
        raise ValueError(f"{path} was quantized by {method!r}; wanted {QUANT_METHOD!r}")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this ptq4arvg reads versions 1 to "
            f"{FORMAT_VERSION}. Update it: pip install --upgrade ptq4arvg"
        )
    for key, kind in (("hash", str), ("files", dict), ("recipe", dict)):
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{path} has no {key}; the checkpoint is incomplete")
    return config


def _build(config: Mapping[str, Any]) -> Any:
    """The model that ``config`` describes; its memory is not set. ValueError if it cannot be."""
    try:
        dtype = compute_dtype(config)
        model = build_model(config["name"], config["architecture"], dtype=dtype)
        model.stress = float(config["stress"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the architecture in config.json is incomplete: {error}") from None
    except (ArithmeticError, IndexError, RuntimeError) as error:  # sizes that no model can have
        raise ValueError(f"the architecture in config.json cannot be built: {error}") from None
    return model


def _check_files(folder: Path, files: dict[str, str]) -> None:
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; copy the checkpoint again")
        if text_hash(path.read_text("utf-8")) != wanted:
            raise ValueError(
                f"{path} was changed after it was written; copy the checkpoint again, or quantize "
                "again with other settings"
            )


@torch.no_grad()  # not inference_mode: its tensors could not be updated outside of it
def load_quantized(folder: str | Path, device: str | torch.device = "cpu") -> Any:
    """The quantized model in ``folder``, ready to generate on ``device``.

    Its logits are equal, bit by bit, to those of the model that was saved. Hashes, names, shapes
    and dtypes are checked: ValueError says what does not fit. No float copy of a quantized weight
    is made.
    """
    folder, device = Path(folder), usable_device(device)
    config = read_config(folder)
    tensors = TensorFile(folder / "model.safetensors")
    found = content_hash(config, tensors)
    if found != config["hash"]:
        raise ValueError(
            f"{folder}: contents hash to {found[:12]}, config.json says "
            f"{str(config['hash'])[:12]}: a file was changed or belongs to another checkpoint. "
            "Copy the checkpoint again"
        )
    _check_files(folder, config["files"])
    try:
        return _assemble(folder, config, tensors, device)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _assemble(
    folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> Any:
    quantization = config["quantization_config"]
    settings, decoder = layer_settings(quantization), {}
    if "decoder_groups" in quantization:
        decoder = layer_settings(quantization, "decoder_groups")
    model, dtype = _build(config), compute_dtype(config)
    _install_attention(model, quantization, tensors)
    left = set(tensors)
    for name, setting in settings.items():
        left -= _install_linear(model, name, setting, tensors, device, dtype)
        return_freed_memory()
    for name, setting in decoder.items():
        left -= _install_convolution(model, name, setting, tensors, device, dtype)
    parts = {part: Section(tensors, f"{part}.", left) for part in ("transformer", "tokenizer")}
    lost = sorted(n for n in left if n.partition(".")[0] not in parts)
    if lost:
        raise ValueError(f"{lost[0]} belongs to no part of a model")
    fill(model.transformer, parts["transformer"], set(settings), dtype, device)
    fill(model.tokenizer, parts["tokenizer"], set(decoder), dtype, device)
    model.to(device)
    return_freed_memory()
    fuse_(model)
    model.recipe = config["recipe"]
    model.report = _report(json.loads((folder / "report.json").read_text("utf-8")))
    return model.eval().requires_grad_(False)


def _install_linear(
    model: Any,
    name: str,
    setting: dict[str, Any],
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> set[str]:
    """Put the linear's integer module in place; returns the names of the tensors it took."""
    try:
        linear = model.transformer.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{name} is no layer of this architecture") from None
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{name} is a {type(linear).__name__}; wanted a linear layer")
    shape = (linear.out_features, linear.in_features)
    q, taken = _read(f"transformer.{name}", shape, setting, tensors, device)
    model.replace_(name, PackedLinear(q, model.cursor_of(name), dtype))
    return taken


def _install_convolution(
    model: Any,
    name: str,
    setting: dict[str, Any],
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> set[str]:
    """The same for a convolution of the tokenizer's decoder."""
    conv = decoder_convolutions(model.tokenizer).get(name)
    if conv is None:
        raise ValueError(f"tokenizer.{name} is no convolution that can be in integers")
    if (setting["positions"], setting["sink"], setting["rotation"]) != (1, (), 0):
        raise ValueError(
            f"tokenizer.{name} has {setting['positions']} positions, {len(setting['sink'])} of "
            f"them in float, and rotation {setting['rotation']}; wanted one position for all "
            "pixels, and neither"
        )
    shape = (conv.out_channels, conv.weight[0].numel())
    q, taken = _read(f"tokenizer.{name}", shape, setting, tensors, device)
    replace_convolution_(model.tokenizer, name, PackedConv2d(q, conv.in_channels, dtype))
    return taken


def _read(
    name: str,
    shape: tuple[int, int],
    setting: dict[str, Any],
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> tuple[LinearQuantization, set[str]]:
    """Layer ``name`` of ``shape`` (N, K) on ``device``, and the names of the tensors it took."""
    needed, optional = linear_names(setting["w_bits"])
    prefix = f"{name}."
    own = {k: tensors[prefix + k] for k in sorted(needed | optional) if prefix + k in tensors}
    missing = sorted(needed - set(own))
    if missing:
        raise ValueError(f"tensors missing: {', '.join(prefix + m for m in missing)}")
    q = unpack_linear(name.partition(".")[2], own, shape, **setting)
    moved = {
        f.name: getattr(q, f.name).to(device)
        for f in fields(q)
        if isinstance(getattr(q, f.name), Tensor)
    }
    return replace(q, **moved), {prefix + key for key in own}


def _install_attention(model: Any, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put the attention cores of the config in place. ValueError unless they are all, of one kind,
    and their tables there."""
    kind, settings = attention_settings(config)
    if not settings:
        return
    names = check_attention(model, kind)
    if sorted(settings) != sorted(names):
        raise ValueError(
            f"quantization_config has attention {_listed(settings)}; wanted that of all blocks, "
            f"{_listed(names)}"
        )
    make = _integer_attention if kind == "int8" else _simulated_attention
    for name, setting in settings.items():
        try:
            core = make(model, f"transformer.{name}.", setting, tensors)
        except KeyError as error:
            raise ValueError(f"tensors missing: {error.args[0]}") from None
        model.replace_(name, core)


def _listed(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


def _integer_attention(model, prefix: str, _setting, tensors: Mapping[str, Tensor]) -> IntAttention:
    c = model.config
    wanted = c.num_heads, c.embed_dim // c.num_heads
    return IntAttention(*(_table(tensors, prefix + name, wanted) for name in IntAttention.TABLES))


def _simulated_attention(
    model, prefix: str, setting: dict[str, Any], tensors: Mapping[str, Tensor]
) -> QuantAttention:
    c = model.config
    sizes = {"q": model.positions, "k": model.positions, "v": c.embed_dim // c.num_heads}
    grids = {
        operand: (
            _table(tensors, f"{prefix}{operand}_scale", (c.num_heads, size)).float(),
            _table(tensors, f"{prefix}{operand}_zero", (c.num_heads, size)),
        )
        for operand, size in sizes.items()
    }
    return QuantAttention(grids, setting["num_bits"], setting["softmax"], model.cursor)


def _table(tensors: Mapping[str, Tensor], name: str, wanted: tuple[int, int]) -> Tensor:
    """The scales, shifts or zero points of that name. ValueError unless of the wanted shape."""
    table, kind = tensors[name], "int32" if name.endswith("zero") else "floats"
    fits = table.dtype == torch.int32 if kind == "int32" else table.is_floating_point()
    if table.shape != wanted or not fits:
        raise ValueError(
            f"{name} is {table.dtype} {list(table.shape)}; wanted {kind} {list(wanted)}"
        )
    if not table.isfinite().all() or (name.endswith("scale") and not (table > 0).all()):
        raise ValueError(f"{name} has values that no scale or shift can have")
    return table


def _report(data: dict[str, Any]) -> QuantReport:
    known = {f.name: data[f.name] for f in fields(QuantReport) if f.name in data}
    known["layers"] = [LayerReport(**layer) for layer in data["layers"]]
    return QuantReport(**known)
