"""Scales stay float32 when a model changes its dtype."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["keeping_dtype"]


def keeping_dtype(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a module applies to its tensors in place of ``function``: it moves them, and leaves
    their numbers alone."""

    def kept(table: Tensor) -> Tensor:
        made = function(table)
        return made if made.dtype == table.dtype else table.to(made.device)

    return kept
