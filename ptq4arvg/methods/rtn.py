"""Round to nearest: the plain baseline. Minimum-maximum ranges, one input grid per tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Method, register

__all__ = ["RoundToNearest"]


@register
@dataclass(frozen=True)
class RoundToNearest(Method):
    """Weights per output channel, inputs per tensor, all ranges from minimum and maximum."""

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round to nearest, static per-tensor inputs, minimum-maximum ranges"
