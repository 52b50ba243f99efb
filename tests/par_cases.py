"""Golden PAR cases: found below the golden folder, built by the package.

A case is ``<name>.config.json`` beside ``<name>.weights.safetensors`` and
``<name>.golden.safetensors`` (tests/golden/par/README.md), and ``<name>.vq_keys.json`` where it has
a tokenizer; without one the tokenizer is a small random one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from ptq4arvg.calibration import Calibration, calibrate
from ptq4arvg.models.base import ARVGModel
from ptq4arvg.models.loading import load_strict_, read_state
from ptq4arvg.models.registry import build_model
from tests.golden_cases import ROOT, GoldenCase, ruled_state

# Between two runs of the original code: 5e-6 (tests/golden/par/README.md).
LOGITS = {"atol": 1e-4, "rtol": 0.0}
IMAGES = {"atol": 1e-4, "rtol": 0.0}
SMALL_TOKENIZER = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 8}


def small_model(seed: int = 1, **changes: Any) -> ARVGModel:
    """A PAR model with random weights; by default two blocks, 4 x 4 tokens, one at a time."""
    sizes = {"depth": 2, "num_heads": 2, "embed_dim": 40, "hidden": 64, "num_classes": 5,
             "grid": 4, "parallel": 1, "vocab_size": 24} | changes  # fmt: skip
    tokenizer = {"vocab_size": sizes["vocab_size"], "grid": sizes["grid"], **SMALL_TOKENIZER}
    config = {"family": "par", "transformer": sizes, "tokenizer": tokenizer}
    return build_model("small", config, seed=seed)


@dataclass(frozen=True)
class ParCase(GoldenCase):
    """One configuration with its weights and records."""

    def build(self, dtype: torch.dtype = torch.float32) -> ARVGModel:
        """The model with its recorded weights."""
        c = self.config
        grid = math.isqrt(c["block"])
        transformer = {
            "depth": c["n_layer"], "num_heads": c["n_head"], "embed_dim": c["dim"],
            "hidden": c["ffn_hidden"], "num_classes": c["classes"], "grid": grid,
            "parallel": c["ar"], "vocab_size": c["vocab"], "norm_eps": c["norm_eps"],
            "rope_base": c["rope_base"],
        }  # fmt: skip
        keys = self.beside("vq_keys.json")
        tokenizer = {"vocab_size": c["vocab"], "grid": grid, **SMALL_TOKENIZER}
        if keys.is_file():
            renamed = {"codebook_embed_dim": "code_dim", "codebook_size": "vocab_size",
                       "codebook_l2_norm": "l2_norm"}  # fmt: skip
            sizes = {k: v for k, v in c["vq"].items() if not k.startswith("recipe_")}
            tokenizer = {"grid": grid} | {renamed.get(k, k): v for k, v in sizes.items()}
        config = {"family": "par", "transformer": transformer, "tokenizer": tokenizer}
        model = build_model(self.name, config, seed=0)
        what = f"{self.name} weights"
        load_strict_(model.transformer, read_state(self.beside("weights.safetensors")), what)
        if keys.is_file():
            load_strict_(model.tokenizer, ruled_state(keys), f"{self.name} tokenizer")
        return model.to(dtype)

    def rows(self, model: ARVGModel) -> Calibration:
        """Calibration rows of the model's own."""
        return calibrate(model, samples=32, keep=16)


def find_par_cases() -> list[ParCase]:
    """Every PAR case below ``ROOT``. AssertionError if there is none: nothing would be tested."""
    found = [
        ParCase(path)
        for path in sorted(ROOT.rglob("*.config.json"))
        if {"n_layer", "ar"} <= set(json.loads(path.read_text()))
    ]
    assert found, f"no PAR configuration (*.config.json) below {ROOT}"
    return found
