"""What the adopters share: our modules on the weights of others, and what no weight tells."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..models.base import SamplingDefaults
from ..models.family import Family, materialize
from ..models.loading import load_strict_

__all__ = ["count", "published_sampling", "share", "tokenizer_state"]


def share(make: Any, settings: Any, source: nn.Module, what: str) -> nn.Module:
    """Our module of these sizes on the weights of ``source``, which are not copied."""
    state = source.state_dict()
    dtype = next(v.dtype for v in state.values() if v.is_floating_point())
    ours = materialize(make, settings, dtype)
    load_strict_(ours, state, what, assign=True)
    device = next(iter(state.values())).device  # for buffers that follow from the configuration
    return ours.to(device).eval().requires_grad_(False)


def count(state: dict[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are under ``prefix``, which ends with a dot."""
    return len({n.removeprefix(prefix).split(".")[0] for n in state if n.startswith(prefix)})


def tokenizer_state(
    tokenizer: nn.Module | None, host: str, kind: str, mark: str
) -> dict[str, Tensor]:
    """The state dict of ``tokenizer``. ValueError where none is given, or one without ``mark``."""
    if tokenizer is None:
        raise ValueError(
            f"adopt: a {host} does not know its tokenizer; give its {kind}: "
            f"adopt({host.lower()}, tokenizer=...)"
        )
    state = tokenizer.state_dict()
    if mark not in state:
        raise ValueError(
            f"adopt: the tokenizer of a {host} is a {kind}; {type(tokenizer).__name__} is none: "
            f"its state dict has no {mark!r}"
        )
    return state


def published_sampling(family: Family, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sampling fields of the published model of these sizes; {} if there is no such model.

    The originals are given them with each call, but calibration has to know them.
    """
    for published, _ in family.sizes.values():
        both = published.keys() & sizes.keys()
        if all(published[name] == sizes[name] for name in both):
            rest = {name: value for name, value in published.items() if name not in sizes}
            return rest | {"sampling": SamplingDefaults(**published["sampling"])}
    return {}
