"""The hash of a checkpoint: over what it means, not over how its files happen to be laid out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..serialize import canonical_json

__all__ = ["content_hash", "model_hash", "text_hash"]

# Parts of config.json that the hash does not cover: itself, and the hashes of the readable files.
UNHASHED = ("hash", "files")


def content_hash(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the config as canonical JSON and, sorted by name, every tensor's name, dtype,
    shape and bytes."""
    digest = hashlib.sha256()
    digest.update(canonical_json({k: v for k, v in config.items() if k not in UNHASHED}).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def model_hash(model: Any) -> str:
    """SHA-256 of all that an ``ARVGModel`` computes with: its weights and its configurations."""
    config = {"model": model.config, "tokenizer": model.tokenizer.config}
    return content_hash(config, model.state_dict())
