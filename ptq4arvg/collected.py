"""Input statistics kept from one quantization to the next of equal float models over equal rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .calibration import Calibration
from .statistics import SAMPLE, InputStatistics
from .token_scales import collect_steps

__all__ = ["Collected"]

Progress = Callable[[str, int, int], None]


class Collected:
    """What ``collect_steps`` found, by the name and stress of the model, the rows and the sample.

    It saves a pass over the rows whenever all planned linears are known. Models of one name and
    stress are taken to have the same weights, and everything is kept until this is dropped.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], dict[str, InputStatistics]] = {}

    def steps(
        self, model: nn.Module, plan: Sequence[Any], calibration: Calibration,
        sample: int = SAMPLE, batch_size: int = 16, progress: Progress | None = None,
    ) -> dict[str, InputStatistics]:  # fmt: skip
        """``collect_steps`` of the same arguments, to the same bits."""
        key = model.name, model.stress, calibration.hash, sample, batch_size
        kept = self._kept.setdefault(key, {})
        if any(p.name not in kept for p in plan):
            kept |= collect_steps(model, plan, calibration, sample, batch_size, progress)
        return {p.name: kept[p.name] for p in plan}
