"""OmniQuant (Shao et al. 2023, arXiv 2308.13137): clipping and transforms learned block by block.

Learnable weight clipping: the grid of a weight row spans ``sigmoid(gamma) max(W)`` and
``sigmoid(beta) min(W)`` (sec. 3.2, Eq. 2). Learnable equivalent transformation: the scale and shift
of a linear's input are parameters, too, which start from SmoothQuant's scale and OS+'s shift
(sec. 3.3, Eq. 3). Both are trained so that a quantized block keeps the float block's output (Eq.
1). Not here: the paper's transform inside the attention product, which stays in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..numerics import Scheme
from ..statistics import InputStatistics
from ..token_scales import collect_steps
from .base import LayerView, Method, Transform, register
from .reconstruction import CLIP_START, Budget, LearnedLinear, reconstruct
from .smoothquant import smooth_scale

__all__ = ["OmniQuant"]

SAMPLE = 256  # token vectors of each linear's input that the first ranges are searched with


@register
@dataclass(frozen=True)
class OmniQuant(Method):
    """Weight clipping and input transforms learned by gradient, a block at a time.

    steps: of gradient descent per block, on ``rows`` of the calibration rows; clip_rate and
    transform_rate: learning rates; transform: learn input transforms, not the clipping alone;
    seed: order of the rows. Clipping starts from the range that ``weight_range`` finds: the budget
    is a fraction of the paper's 2560 steps. Linears outside the blocks (the head) keep what
    learning would start from.
    """

    name: ClassVar[str] = "omniquant"
    summary: ClassVar[str] = "clipping and transforms learned by block (Shao et al. 2023)"
    resumable: ClassVar[bool] = True

    steps: int = 60
    rows: int = 16
    clip_rate: float = 0.03
    transform_rate: float = 0.005
    transform: bool = True
    seed: int = 0

    learned: ClassVar[Mapping[str, tuple[Transform | None, tuple[Tensor, Tensor]]]] = {}

    no_rotation: ClassVar[str] = "its transforms are learned"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("steps", "rows"):
            if getattr(self, option) < 1:
                raise ValueError(
                    f"method 'omniquant': {option} is {getattr(self, option)}; wanted 1 or more"
                )

    def prepare(
        self, model: Any, plan: list[Any], calibration: Calibration, batch_size: int = 16,
        progress: Callable[[str, int, int], None] | None = None, parts: Any = None,
    ) -> Method:  # fmt: skip
        """Learn every block that ``parts`` lacks; the method that comes back knows what was
        learned."""
        stats = collect_steps(model, plan, calibration, SAMPLE, batch_size)

        def make(p: Any, linear: nn.Linear) -> LearnedLinear:
            seen, weight, initial = stats[p.name], linear.weight.float(), None
            if self.transform and p.spec.fold is not None:
                initial = _initial(seen, weight, p.spec.shift)
                weight = initial.weight(weight)
                seen = seen.transformed(initial.scale.float(), initial.shift.float())
            clip = self._shares(weight, seen.sample, p.scheme.w_bits)
            per_tensor = self.granularity == "tensor"
            return LearnedLinear(linear, p.scheme, initial, p.spec.shift, clip, per_tensor)

        budget = Budget(self.steps, self.rows, self.clip_rate, self.transform_rate, self.seed)
        found = reconstruct(model, plan, calibration, budget, make, progress, parts)
        learned = {}
        for name, (linear, before, after) in found.items():
            transform = linear.transform()
            if transform is not None:
                transform.record.update(block_error_before=before, block_error_after=after)
            learned[name] = transform, linear.clip()
        method = replace(self)
        object.__setattr__(method, "learned", learned)  # not an option, so not a field
        return method

    def _shares(self, weight: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Shares of each row's range that learning starts from: the searched ones, if any."""
        full = weight.amin(1), weight.amax(1)
        if self.weight_range == "minmax":
            return tuple(torch.full_like(end, CLIP_START) for end in full)
        found = super().row_range("", weight, x, bits)
        return tuple(
            torch.where(end == 0, CLIP_START, f / end) for f, end in zip(found, full, strict=True)
        )

    def fit(self, layer: LayerView, scheme: Scheme) -> Transform | None:
        """What was learned for the layer; outside the blocks, what learning starts from."""
        if not layer.foldable or not self.transform:
            return None
        if layer.name in self.learned:
            return self.learned[layer.name][0]
        return _initial(layer.stats, layer.weight, layer.shiftable)

    def row_range(self, name: str, weight: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """The learned shares of each row's minimum and maximum.

        They are shares, so that they hold for rows that a later fold has rescaled, too.
        """
        if name not in self.learned:
            return super().row_range(name, weight, x, bits)
        low, high = self.learned[name][1]
        return weight.amin(1) * low, weight.amax(1) * high


def _initial(stats: InputStatistics, weight: Tensor, shiftable: bool) -> Transform:
    """Channels centred as OS+ does, then smoothed as SmoothQuant does at strength 1/2."""
    lo, hi = stats.lo.amin(0).double(), stats.hi.amax(0).double()  # [S, K] -> [K]
    middle = (lo + hi) / 2 if shiftable else torch.zeros_like(lo)
    scale = smooth_scale(torch.maximum(hi - middle, middle - lo), weight, 0.5)
    return Transform(scale, middle / scale)
