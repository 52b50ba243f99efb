"""Golden MAR cases: found and built as tests/golden_cases.py does for VAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptq4arvg.models.loading import load_strict_, read_state
from ptq4arvg.models.mar import MARModel
from ptq4arvg.models.registry import build_model, randomize_
from tests.golden_cases import GoldenCase, configurations, ruled_state

# A case without a recorded tokenizer gets the smallest one there is, with random weights.
SMALL = {"ch": 32, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 1}


@dataclass(frozen=True)
class MARCase(GoldenCase):
    """One configuration with its weights and records (tests/golden/mar/README.md)."""

    @property
    def recorded_tokenizer(self) -> bool:
        return self.beside("klvae_keys.json").is_file()

    def architecture(self) -> dict[str, Any]:
        c = self.config
        latents = c["img"] // c["vae_stride"]
        transformer = {
            "embed_dim": c["D"], "encoder_depth": c["ed"], "decoder_depth": c["dd"],
            "num_heads": c["heads"], "diff_width": c["w"], "diff_depth": c["d"],
            "num_classes": c["classes"], "grid": latents // c["patch_size"],
            "patch": c["patch_size"], "z_channels": c["vae"], "buffer": c["buf"],
            "mlp_ratio": c["mlp_ratio"], "norm_eps": c["norm_eps"],
            "diffusion_steps": int(c["steps"]), "num_iter": c["iters"],
            "temperature": c["temp"], "cfg_schedule": c["sched"],
            "sampling": {"cfg": c["cfg"], "top_k": 0, "top_p": 0.0},
        }  # fmt: skip
        vae = c.get("klvae", SMALL)
        tokenizer = {k: vae[k] for k in ("ch", "ch_mult", "num_res_blocks")}
        tokenizer |= {"z_channels": vae.get("embed_dim", c["vae"]), "latent_side": latents}
        return {"family": "mar", "transformer": transformer, "tokenizer": tokenizer}

    def build(self, dtype: torch.dtype = torch.float32) -> MARModel:
        """The model with its recorded weights."""
        model = build_model(self.name, self.architecture())
        what = f"{self.name} weights"
        load_strict_(model.transformer, read_state(self.beside("weights.safetensors")), what)
        if self.recorded_tokenizer:
            state = ruled_state(self.beside("klvae_keys.json"))
            load_strict_(model.tokenizer, state, f"{self.name} tokenizer")
        else:
            randomize_(model.tokenizer, seed=0)
        return model.to(dtype)


def find_mar_cases() -> list[MARCase]:
    """Every MAR case below ``ROOT``; there may be none in a folder of another family."""
    return [MARCase(path) for path in configurations("MAR", {"vae_stride", "buf"})]


class RecordedNoise:
    """The order and the noise that the original code drew."""

    def __init__(self, records: dict[str, Tensor]) -> None:
        self.records, self.iteration = records, 0

    def orders(self, tokens: int) -> Tensor:
        return self.records["sample.orders"]

    def draw(self, steps: int, tokens: int, channels: int) -> Tensor:
        part = f"sample.{self.iteration}"
        self.iteration += 1
        start = self.records[f"{part}.init_noise"][None]
        drawn = torch.cat([start, self.records[f"{part}.step_noise"][:-1]])  # [S, n tokens, C]
        return drawn.view(steps, -1, tokens, channels)
