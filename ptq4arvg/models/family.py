"""What a family tells the registry: how it is built, its published sizes and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from ..errors import closest
from .base import ARVGModel, SamplingDefaults

__all__ = ["NO_FILES", "Family", "PublishedFiles", "from_dict", "materialize"]


@dataclass(frozen=True)
class PublishedFiles:
    """The files of one published size.

    weights, tokenizer: file names; where: where they are offered; licence: of the weights.
    """

    weights: str
    tokenizer: str
    where: str
    licence: str


# Of a size that nobody published.
NO_FILES = PublishedFiles("WEIGHTS", "TOKENIZER", "its two parts", "licence not known")


@dataclass(frozen=True)
class Family:
    """One family of models.

    config, tokenizer_config: frozen dataclasses of the two parts' sizes. transformer, tokenizer:
    modules made from them; a module with memory of its own that follows from the configuration
    makes it again in ``reset_buffers()``. model: the ``ARVGModel`` made of (name, config,
    transformer, tokenizer). sizes: name -> (fields of config, fields of tokenizer_config);
    files: name -> its files, of those sizes that have any. other_tokenizers: kind ->
    (configuration, module) of tokenizers that can stand in for the family's own, for a
    configuration that names its "kind".
    """

    name: str
    config: type
    tokenizer_config: type
    transformer: Callable[[Any], nn.Module]
    tokenizer: Callable[[Any], nn.Module]
    model: Callable[[str, Any, nn.Module, nn.Module], ARVGModel]
    sizes: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    files: Mapping[str, PublishedFiles] = field(default_factory=dict)
    other_tokenizers: Mapping[str, tuple[type, Callable[[Any], nn.Module]]] = field(
        default_factory=dict
    )

    def architecture(self, name: str) -> dict[str, Any]:
        """{"family", "transformer", "tokenizer"} of a published size."""
        transformer, tokenizer = self.sizes[name]
        return {"family": self.name, "transformer": transformer, "tokenizer": tokenizer}

    def settings(self, config: Mapping[str, Any]) -> tuple[Any, Any]:
        """The two configurations. ValueError for a field or a tokenizer that does not exist."""
        tokenizer = dict(config["tokenizer"])
        kind, known = tokenizer.pop("kind", ""), {"": self.tokenizer_config}
        known |= {name: settings for name, (settings, _) in self.other_tokenizers.items()}
        if kind not in known:
            wanted = ", ".join(map(repr, self.other_tokenizers)) or "no kind at all"
            raise ValueError(
                f"{self.name}: tokenizer of kind {kind!r}; wanted {wanted} (without a kind it is "
                "the family's own)"
            )
        return (
            from_dict(self.config, config["transformer"]),
            from_dict(known[kind], tokenizer),
        )

    def tokenizer_of(self, settings: Any) -> Callable[[Any], nn.Module]:
        """The module that a tokenizer's configuration is for."""
        modules = dict(self.other_tokenizers.values())
        return modules.get(type(settings), self.tokenizer)


def from_dict(kind: type, values: Mapping[str, Any]) -> Any:
    """The dataclass ``kind`` from plain data, lists as tuples."""
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{kind.__name__}: unknown field {unknown[0]!r}. {closest(unknown[0], known)}"
        )
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if isinstance(lists.get("sampling"), Mapping):
        lists["sampling"] = SamplingDefaults(**lists["sampling"])
    return kind(**lists)


def materialize(make: Callable[[Any], nn.Module], settings: Any, dtype: torch.dtype) -> nn.Module:
    """``make(settings)`` in ``dtype`` on the CPU, its weights being memory that nobody set.

    What is never written to costs nothing, so the dtype is decided before there is any memory.
    """
    with torch.device("meta"):
        module = make(settings)
    module = module.to(dtype).to_empty(device="cpu")
    for part in module.modules():
        if hasattr(part, "reset_buffers"):
            part.reset_buffers()
    return module
