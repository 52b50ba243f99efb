"""Golden cases: found in a folder, built by the package, with nothing about them assumed.

A case is ``<name>.config.json`` beside ``<name>.weights.safetensors`` and
``<name>.golden.safetensors`` (tests/golden/*/README.md), in the terms of the family's original
code. Each family has a class here, which tells its own configurations and translates them.
``PTQ4ARVG_GOLDEN`` names another folder than tests/golden; folders below it are searched too.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ptq4arvg.models.base import ARVGModel
from ptq4arvg.models.loading import load_strict_, read_state
from ptq4arvg.models.registry import build_model
from ptq4arvg.sampling import Choose

ROOT = Path(os.environ.get("PTQ4ARVG_GOLDEN") or Path(__file__).parent / "golden")
# Between two runs of the original code: 7e-5 (tests/golden/var/README.md).
LOGITS = {"atol": 5e-4, "rtol": 1e-4}
IMAGES = {"atol": 1e-4, "rtol": 0.0}
# Of a quantization's squared error, what may come on top where the same codes are found on another
# way (norms fused or not, casts in between): a code that moves by a step has twelve times the mean
# squared error of rounding, so this is one code in 400. How many do differs between processors.
OTHER_ROUNDING = 0.03
Case = TypeVar("Case", bound="GoldenCase")


def ruled_tensor(tag: str, name: str, shape: list[int], gain: float) -> np.ndarray:
    """A tokenizer weight that the records describe by a rule instead of holding it."""
    count = math.prod(shape)
    stream = np.random.RandomState(zlib.crc32(f"{tag}:{name}".encode()))
    u = stream.random_sample(count) * 2 - 1
    if name.endswith(("codebook_used", "ema_vocab_hit_SV")):
        value = np.zeros(count)
    elif name.endswith("embedding.weight"):
        value = u
    elif len(shape) >= 2:
        value = gain * math.sqrt(3.0 / math.prod(shape[1:])) * u
    elif name.endswith("weight"):
        value = 1 + 0.3 * u
    else:
        value = 0.1 * u
    return value.reshape(shape).astype(np.float32)


def ruled_state(keys: Path) -> dict[str, Tensor]:
    """All tokenizer weights of a ``*_keys.json``, each checked against its recorded sum."""
    rule = json.loads(keys.read_text())
    state = {}
    for name, (shape, total) in rule["tensors"].items():
        value = ruled_tensor(rule["recipe_tag"], name, shape, rule.get("gain", 1.0))
        assert math.isclose(value.sum(dtype=np.float64), total, rel_tol=1e-5, abs_tol=1e-4), name
        state[name] = torch.from_numpy(value)
    return state


@dataclass(frozen=True)
class GoldenCase:
    """One configuration with its weights and records. Base class of the families' cases.

    marks: fields that only configurations of this family have; tokenizer_keys: ending of the file
    that describes the tokenizer's weights by a rule.
    """

    path: Path  # of the config.json
    marks: ClassVar[set[str]] = set()
    tokenizer_keys: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".config.json")

    def beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.name}.{ending}")

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @cached_property
    def records(self) -> dict[str, Tensor]:
        return load_file(self.beside("golden.safetensors"))

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.records)

    def architecture(self) -> dict[str, Any]:
        """The configuration as the package has it."""
        raise NotImplementedError

    def tokenizer_state(self) -> dict[str, Tensor]:
        """The tokenizer's weights."""
        return ruled_state(self.beside(self.tokenizer_keys))

    def build(self, dtype: torch.dtype = torch.float32) -> ARVGModel:
        """The model with its recorded weights."""
        model = build_model(self.name, self.architecture())
        what = f"{self.name} weights"
        load_strict_(model.transformer, read_state(self.beside("weights.safetensors")), what)
        load_strict_(model.tokenizer, self.tokenizer_state(), f"{self.name} tokenizer")
        return model.to(dtype)


class VARCase(GoldenCase):
    """A VAR configuration (tests/golden/var)."""

    marks: ClassVar[set[str]] = {"patch_nums", "width"}
    tokenizer_keys = "vqvae_keys.json"

    def scales(self, prefix: str) -> Tensor:
        """Records ``prefix.0``, ``prefix.1``, ... of all scales, joined along the positions."""
        return torch.cat(
            [self.records[f"{prefix}.{i}"] for i in range(len(self.config["patch_nums"]))], 1
        )

    def architecture(self) -> dict[str, Any]:
        c = self.config
        transformer = {
            "depth": c["depth"], "num_heads": c["heads"], "embed_dim": c["width"],
            "num_classes": c["num_classes"], "patch_nums": c["patch_nums"], "vocab_size": c["V"],
            "z_channels": c["Cvae"], "mlp_ratio": c.get("mlp_ratio", 4.0),
            "norm_eps": c.get("norm_eps", 1e-6), "shared_aln": c.get("shared_aln", False),
            "attn_l2_norm": c.get("attn_l2_norm", True),
        }  # fmt: skip
        vq = c.get("vqvae", {})
        renamed = {"v_patch_nums": "patch_nums"}
        dropped = ("recipe_tag", "recipe_gain")
        tokenizer = {renamed.get(k, k): v for k, v in vq.items() if k not in dropped}
        return {"family": "var", "transformer": transformer, "tokenizer": tokenizer}

    def tokenizer_state(self) -> dict[str, Tensor]:
        state, stored = super().tokenizer_state(), self.beside("vqvae_quantize.safetensors")
        return state | (load_file(stored) if stored.is_file() else {})


class RARCase(GoldenCase):
    """A RAR configuration (tests/golden/rar)."""

    marks: ClassVar[set[str]] = {"image_seq_len", "condition_num_classes"}
    tokenizer_keys = "vqgan_keys.json"

    def labels(self, prefix: str) -> Tensor:
        """Labels of the record ``prefix.condition_ids``, which counts in the embedding table."""
        return self.records[f"{prefix}.condition_ids"] - self.config["codebook_size"] - 1

    def architecture(self) -> dict[str, Any]:
        c, vq = self.config, self.config["maskgit_vqgan"]
        transformer = {
            "depth": c["num_hidden_layers"], "num_heads": c["num_attention_heads"],
            "embed_dim": c["hidden_size"], "ffn_dim": c["intermediate_size"],
            "num_classes": c["condition_num_classes"], "tokens": c["image_seq_len"],
            "vocab_size": c["codebook_size"], "norm_eps": c["norm_eps"],
            "sampling": {"cfg": c["guidance_scale"], "top_k": 0, "top_p": 0.0},
            "guidance_power": c["guidance_scale_pow"], "temperature": c["randomize_temperature"],
        }  # fmt: skip
        tokenizer = {
            "vocab_size": vq["codebook_size"], "z_channels": vq["z_channels"],
            "ch": vq["hidden_channels"], "ch_mult": vq["channel_mult"],
            "num_res_blocks": vq["num_res_blocks"], "grid": math.isqrt(c["image_seq_len"]),
        }  # fmt: skip
        return {"family": "rar", "transformer": transformer, "tokenizer": tokenizer}


def configurations(family: str, fields: set[str]) -> list[Path]:
    """Every configuration below ``ROOT`` that has these fields.

    AssertionError if there is none, where nothing would be tested; another folder than
    tests/golden may hold other families alone.
    """
    everything = sorted(ROOT.rglob("*.config.json"))
    found = [path for path in everything if fields <= set(json.loads(path.read_text()))]
    own = not os.environ.get("PTQ4ARVG_GOLDEN")
    assert found if own else everything, f"no {family} configuration (*.config.json) below {ROOT}"
    return found


def find_cases(kind: type[Case] = VARCase) -> list[Case]:
    """Every case of a family below ``ROOT``."""
    return [kind(path) for path in configurations(kind.__name__, kind.marks)]


def greedy(seen: list[Tensor]) -> Choose:
    """A choice of the most likely tokens that keeps the logits it was shown."""

    def choose(logits: Tensor, _step: int) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    return choose


def forced(seen: list[Tensor], parts: Iterable[Tensor]) -> Choose:
    """A choice of the given tokens, step after step, that keeps the logits it was shown."""
    parts = iter(parts)

    def choose(logits: Tensor, _step: int) -> Tensor:
        seen.append(logits)
        return next(parts)

    return choose


def sub_sampled(image: Tensor, like: Tensor) -> Tensor:
    """Every n-th pixel of both axes, so that ``image`` has the size of the record ``like``."""
    return image[..., :: image.shape[-2] // like.shape[-2], :: image.shape[-1] // like.shape[-1]]


def relative_error(logits: Tensor, exact: Tensor) -> float:
    """sum (logits - exact)^2 / sum exact^2, as the records measure it."""
    return ((logits - exact).double().square().sum() / exact.double().square().sum()).item()
