"""Models by name: the bundled ones and the published sizes of every family."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import usable_device
from ..errors import closest
from . import mar, par, rar, switti, var
from .base import ARVGModel
from .family import NO_FILES, Family, materialize
from .loading import load_strict_, read_state, strict_tensors
from .mapped import check_mappable, release_after_use_, write_tensors
from .stress import stress_

__all__ = ["ModelInfo", "build_model", "list_models", "load_model", "model_config", "store_weights"]

DATA = Path(__file__).resolve().parent.parent / "data"
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (var.FAMILY, rar.FAMILY, par.FAMILY, mar.FAMILY, switti.FAMILY)
}
BUNDLED = tuple(sorted(path.parent.name for path in DATA.glob("*/config.json")))
PUBLISHED = {name: family for family in FAMILIES.values() for name in family.sizes}


@dataclass(frozen=True)
class ModelInfo:
    """One line of ``list_models``. weights: "bundled", "not published", or the names of the
    published files, whose ``licence`` is given."""

    name: str
    family: str
    parameters: int
    image_size: int
    tokens: int
    weights: str
    licence: str


def model_config(name: str) -> dict[str, Any]:
    """The configuration of a known name: {"family", "transformer", "tokenizer"}."""
    if name in BUNDLED:
        config = json.loads((DATA / name / "config.json").read_text())
        return {key: config[key] for key in ("family", "transformer", "tokenizer")}
    if name in PUBLISHED:
        return PUBLISHED[name].architecture(name)
    names = [*BUNDLED, *PUBLISHED]
    raise ValueError(f"unknown model {name!r}; wanted one of {', '.join(names)}. "
                     f"{closest(name, names)}")  # fmt: skip


def _family(name: str, config: dict[str, Any]) -> Family:
    family = FAMILIES.get(config.get("family"))
    if family is None:
        wanted = " or ".join(map(repr, FAMILIES))
        raise ValueError(f"{name}: family {config.get('family')!r}; wanted {wanted}")
    return family


def build_model(
    name: str,
    config: dict[str, Any],
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ARVGModel:
    """The model of a configuration, in evaluation mode, on the CPU.

    seed: random weights of a plausible size, reproducibly; None: memory left as it is, to be
    loaded into. config: {"family", "transformer": fields of its configuration, "tokenizer": too}
    """
    family = _family(name, config)
    settings, tokenizer_settings = family.settings(config)
    transformer = materialize(family.transformer, settings, dtype)
    tokenizer = materialize(family.tokenizer_of(tokenizer_settings), tokenizer_settings, dtype)
    model = family.model(name, settings, transformer, tokenizer)
    for cursor in model.cursors:
        cursor.position = torch.zeros(1, dtype=torch.int32)
    model.architecture = config
    if seed is not None:
        randomize_(model, seed)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def randomize_(module: nn.Module, seed: int) -> None:
    """Random weights: matrices scaled by their fan-in, norm weights one, biases small."""
    own = module.state_dict()
    for name, value in random_weights(own, seed):
        own[name].copy_(value)


def random_weights(state: Mapping[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, float32 values) of every floating point tensor like those of ``state``, by name."""
    generator = torch.Generator().manual_seed(seed)
    for name, like in sorted(state.items()):
        if not like.is_floating_point():
            continue
        if like.ndim >= 2:
            noise = torch.randn(like.shape, generator=generator)
            yield name, noise.div_(max(like[0].numel(), 1) ** 0.5)
        elif name.endswith("weight"):
            yield name, torch.ones(like.shape)
        else:
            yield name, torch.randn(like.shape, generator=generator).mul_(0.02)


def store_weights(
    name: str, path: str | Path, weights: str | Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write the transformer's weights of model ``name`` as ``load_model(mmap=True)`` reads them.

    weights: a published file, or "random" for those that ``load_model`` makes. They are written in
    ``dtype``, one tensor after the other, and never all in memory if ``weights`` can be mapped.
    """
    config = model_config(name)
    family = _family(name, config)
    with torch.device("meta"):
        module = family.transformer(family.settings(config)[0])
    own = module.state_dict()
    if weights == "random":
        tensors = random_weights(own, seed=0)
    else:
        state = read_state(weights, getattr(module, "published_under", ()), mmap=True)
        tensors = strict_tensors(module, state, f"{name} transformer")
    write_tensors(path, {n: v.shape for n, v in own.items()}, dtype, tensors)


def _files(name: str, weights: Any, tokenizer: Any) -> dict[str, Any]:
    if name in BUNDLED:
        # Models that share a tokenizer name the folder that it is in.
        config = json.loads((DATA / name / "config.json").read_text())
        folder = DATA / config.get("tokenizer_from", name)
        if weights is None:
            weights = DATA / name / "transformer.safetensors"
        if tokenizer is None:
            tokenizer = folder / "tokenizer.safetensors"
        return {"transformer": weights, "tokenizer": tokenizer}
    if weights is None or tokenizer is None:
        missing = "weights" if weights is None else "tokenizer"
        files = PUBLISHED[name].files.get(name, NO_FILES)
        raise ValueError(
            f"{name} is not bundled: give {missing}. Type load_model({name!r}, "
            f"weights={files.weights!r}, tokenizer={files.tokenizer!r}) with the files of "
            f"{files.where}, or 'random' for random weights; on the command line these are "
            "--weights and --tokenizer"
        )
    return {"transformer": weights, "tokenizer": tokenizer}


def load_model(
    name: str,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    stress: float = 0,
    stress_seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mmap: bool = False,
) -> ARVGModel:
    """A float model by name, ready to generate, calibrate and quantize.

    The tiny ones are bundled; the published sizes (``list_models``) need their files (``weights``,
    ``tokenizer``: as published, or .safetensors; "random" makes random weights). stress: severity
    of the function-preserving stress, 0 for none. ValueError names what is missing or does not fit.

    mmap: leave the transformer's weights in their file, which must hold them in ``dtype`` under our
    names (``store_weights`` writes such files). A large layer is in memory only while it runs;
    what quantize_ has packed needs the file no more.
    """
    if mmap and stress:
        raise ValueError(
            f"{name}: stress changes the weights, and mmap=True leaves them in their file; wanted "
            "only one of the two"
        )
    device = usable_device(device)
    # Stress is computed before anything is rounded.
    model = build_model(name, model_config(name), dtype=dtype if mmap else torch.float32)
    for part, source in _files(name, weights, tokenizer).items():
        module, what = getattr(model, part), f"{name} {part}"
        if str(source) == "random":
            randomize_(module, seed=0)
            continue
        mapped = mmap and part == "transformer"
        state = read_state(source, getattr(module, "published_under", ()), mmap=mapped)
        if mapped:
            check_mappable(module, state, dtype, what)
        load_strict_(module, state, what, assign=mapped)
        if mapped:
            release_after_use_(module)
    model.own_weights = name in BUNDLED and (weights, tokenizer) != (None, None)
    if stress:
        stress_(model, stress, stress_seed)
    return model.to(device=device, dtype=dtype)


def list_models() -> list[ModelInfo]:
    """All names that ``load_model`` knows, with their sizes."""
    found = []
    for name in (*BUNDLED, *PUBLISHED):
        config = model_config(name)
        family = _family(name, config)
        settings, tokenizer = family.settings(config)
        with torch.device("meta"):
            count = sum(p.numel() for p in family.transformer(settings).parameters())
        files = family.files.get(name, NO_FILES)
        weights, licence = f"{files.weights}, {files.tokenizer}", files.licence
        if name in BUNDLED:
            weights, licence = "bundled", "Apache-2.0"
        elif name not in family.files:
            weights = "not published"
        found.append(ModelInfo(name, family.name, count, tokenizer.image_size, settings.tokens,
                               weights, licence))  # fmt: skip
    return found
