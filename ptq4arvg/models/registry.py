"""Models by name: the bundled ones and the published sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import closest
from .base import ARVGModel, SamplingDefaults
from .loading import load_strict_, read_state
from .stress import stress_
from .var import VAR, VARConfig, VARModel
from .vqvae import VQVAE, VQVAEConfig

__all__ = ["ModelInfo", "build_model", "list_models", "load_model", "model_config"]

DATA = Path(__file__).resolve().parent.parent / "data"
BUNDLED = ("var-tiny",)
_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def _published(depth: int) -> dict[str, Any]:
    big = depth == 36
    sides = _512 if big else _256
    return {
        "family": "var",
        "transformer": {"depth": depth, "num_heads": depth, "embed_dim": 64 * depth,
                        "patch_nums": sides, "shared_aln": big},
        "tokenizer": {"patch_nums": sides},
    }  # fmt: skip


PUBLISHED = {f"var-d{depth}": _published(depth) for depth in (16, 20, 24, 30, 36)}


@dataclass(frozen=True)
class ModelInfo:
    """One line of ``list_models``. weights: "bundled", or the names of the published files."""

    name: str
    family: str
    parameters: int
    image_size: int
    tokens: int
    weights: str


def _from_dict(kind: type, values: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{kind.__name__}: unknown field {unknown[0]!r}. {closest(unknown[0], known)}"
        )
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if isinstance(lists.get("sampling"), dict):
        lists["sampling"] = SamplingDefaults(**lists["sampling"])
    return kind(**lists)


def model_config(name: str) -> dict[str, Any]:
    """The configuration of a known name: {"family", "transformer", "tokenizer"}."""
    if name in BUNDLED:
        config = json.loads((DATA / name / "config.json").read_text())
        return {key: config[key] for key in ("family", "transformer", "tokenizer")}
    if name in PUBLISHED:
        return PUBLISHED[name]
    names = [*BUNDLED, *PUBLISHED]
    raise ValueError(f"unknown model {name!r}; wanted one of {', '.join(names)}. "
                     f"{closest(name, names)}")  # fmt: skip


def build_model(
    name: str,
    config: dict[str, Any],
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> ARVGModel:
    """The model of a configuration, in evaluation mode, on the CPU.

    seed: random weights of a plausible size, reproducibly; None: memory left as it is, to be
    loaded into. {"family": "var", "transformer": VARConfig fields, "tokenizer": VQVAEConfig fields}
    """
    if config.get("family") != "var":
        raise ValueError(f"{name}: family {config.get('family')!r}; wanted 'var'")
    settings = _from_dict(VARConfig, config["transformer"])
    with torch.device("meta"):
        transformer, tokenizer = VAR(settings), VQVAE(_from_dict(VQVAEConfig, config["tokenizer"]))
    # Buffers that follow from the configuration are made again where there is memory.
    level = torch.cat([torch.full((p * p,), i) for i, p in enumerate(settings.patch_nums)])
    # Memory that nothing is written to costs nothing, so the dtype is decided before there is any.
    transformer = transformer.to(dtype).to_empty(device="cpu")
    tokenizer = tokenizer.to(dtype).to_empty(device="cpu")
    transformer.level.copy_(level)
    transformer.cursor.position = torch.zeros(1, dtype=torch.int32)
    model = VARModel(name, settings, transformer, tokenizer)
    model.architecture = config
    if seed is not None:
        randomize_(model, seed)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def randomize_(module: nn.Module, seed: int) -> None:
    """Random weights: matrices scaled by their fan-in, norm weights one, biases small."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(module.state_dict().items()):
        if not value.is_floating_point():
            continue
        if value.ndim >= 2:
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise / max(value[0].numel(), 1) ** 0.5)
        elif name.endswith("weight"):
            value.fill_(1.0)
        else:
            value.copy_(0.02 * torch.randn(value.shape, generator=generator))


def _files(name: str, weights: Any, tokenizer: Any) -> dict[str, Any]:
    if name in BUNDLED:
        own = {"transformer": DATA / name / "transformer.safetensors",
               "tokenizer": DATA / name / "tokenizer.safetensors"}  # fmt: skip
        return {"transformer": weights or own["transformer"],
                "tokenizer": tokenizer or own["tokenizer"]}  # fmt: skip
    if weights is None or tokenizer is None:
        missing = "weights" if weights is None else "tokenizer"
        depth = name.removeprefix("var-d")
        raise ValueError(
            f"{name} is not bundled: give {missing}. Type load_model({name!r}, "
            f"weights='var_d{depth}.pth', tokenizer='vae_ch160v4096z32.pth') with the files of the "
            "Hugging Face repository FoundationVision/var, or 'random' for random weights"
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
) -> ARVGModel:
    """A float model by name, ready to generate, calibrate and quantize.

    "var-tiny" is bundled; "var-d16" to "var-d36" need their published files (``weights``,
    ``tokenizer``: .pth or .safetensors; "random" makes random weights). stress: severity of the
    function-preserving stress, 0 for none. ValueError names what is missing or does not fit.
    """
    model = build_model(name, model_config(name))
    for part, source in _files(name, weights, tokenizer).items():
        module = getattr(model, part)
        if source == "random":
            randomize_(module, seed=0)
        else:
            load_strict_(module, read_state(source), f"{name} {part}")
    if stress:
        stress_(model, stress, stress_seed)
    return model.to(device=device, dtype=dtype)


def list_models() -> list[ModelInfo]:
    """All names that ``load_model`` knows, with their sizes."""
    found = []
    for name in (*BUNDLED, *PUBLISHED):
        config = model_config(name)
        settings = _from_dict(VARConfig, config["transformer"])
        tokenizer = _from_dict(VQVAEConfig, config["tokenizer"])
        with torch.device("meta"):
            count = sum(p.numel() for p in VAR(settings).parameters())
        depth = name.removeprefix("var-d")
        files = "bundled" if name in BUNDLED else f"var_d{depth}.pth, vae_ch160v4096z32.pth"
        found.append(
            ModelInfo(name, "var", count, tokenizer.image_size, settings.tokens, files)
        )  # fmt: skip
    return found
