"""QuaRot (Ashkboos et al. 2024, arXiv 2404.00456): a rotation spreads outliers over all channels.

``y = x W^T = (x R)(W R)^T`` for an orthogonal R; with a Hadamard matrix every channel of x R is a
sum of all channels of x, so that its values are close to normal and no channel stands out (sec. 3).
The paper folds R into the linears before and after, which needs a norm without modulation between
them. The norms of these models scale every channel by the class (AdaLN) or by a weight, and what
feeds fc2 is an activation: R is applied to the input of every linear at run time instead, as the
paper does before its down projection (sec. 4, stage 1b).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..calibration import Calibration
from ..hadamard import Rotation, split_size, turn_input_
from .base import Method, register

__all__ = ["QuaRot"]


@register
@dataclass(frozen=True)
class QuaRot(Method):
    """Hadamard rotation of every linear's input.

    seed: of the random signs; linears of as many inputs share a rotation.
    """

    name: ClassVar[str] = "quarot"
    summary: ClassVar[str] = "inputs rotated by Hadamard matrices (Ashkboos et al. 2024)"
    integer: ClassVar[bool] = False
    no_integer: ClassVar[str] = "it rotates all channels of an input together"
    turns_inputs: ClassVar[bool] = True
    no_rotation: ClassVar[str] = "it rotates all inputs itself"

    seed: int = 0

    def prepare(
        self, model: Any, plan: list[Any], calibration: Calibration, batch_size: int = 16,
        progress: Callable[[str, int, int], None] | None = None, parts: Any = None,
    ) -> Method:  # fmt: skip
        """Rotate input and weight of every planned linear.

        What looks at a linear's input from here on sees the rotated one. ValueError, before
        anything changes, for a linear whose number of inputs has no rotation.
        """
        linears = {p.name: model.transformer.get_submodule(p.name) for p in plan}
        for name, linear in linears.items():
            if split_size(linear.in_features) is None:
                raise ValueError(
                    f"quarot: {name} has {linear.in_features} inputs, and no Hadamard matrix of "
                    "that order is known here (2^k, or 2^k times an order of Paley's constructions "
                    f"over a prime field); keep it in float with ignore={name!r}"
                )
        rotations: dict[int, Rotation] = {}
        for linear in linears.values():
            size = linear.in_features
            if size not in rotations:
                rotations[size] = Rotation(size, self.seed).to(linear.weight.device)
            rotate_(linear, rotations[size])
        return self


@torch.no_grad()
def rotate_(linear: nn.Linear, rotation: Rotation) -> None:
    """Rotate the weight of ``linear`` in place, and its input whenever it runs."""
    turn_input_(linear, rotation, rotation(linear.weight.double()).to(linear.weight.dtype))
