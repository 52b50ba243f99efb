"""A stressed twin: the same float function with outlier channels, for honest measurements.

Published models carry channels tens of times larger than the median into their qkv and fc1
linears (paper fig. 1); a tiny model has none, and every method looks good on it. Multiplying the
AdaLN rows that scale and shift a channel, and dividing the columns of the linear that reads it,
changes no output and gives the tiny model the same difficulty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import ARVGModel

__all__ = ["channel_factors", "check_severity", "stress_"]


def channel_factors(channels: int, severity: float, generator: torch.Generator) -> Tensor:
    """Heavy-tailed factors float64 [channels]: lognormal, with one channel in 64 multiplied.

    The multiplied ones lie around ``severity`` times the median, within a factor of about 1.5.
    """
    factors = torch.exp(0.3 * torch.randn(channels, generator=generator, dtype=torch.float64))
    count = max(channels // 64, 1)
    chosen = torch.randperm(channels, generator=generator)[:count]
    spread = torch.exp(0.4 * torch.randn(count, generator=generator, dtype=torch.float64))
    factors[chosen] = severity * spread
    return factors


def check_severity(severity: float) -> None:
    """ValueError for one below 1, or without end."""
    if not 1 <= severity < math.inf:
        raise ValueError(f"stress: severity is {severity}; wanted at least 1 (30 is a good value)")


@torch.no_grad()
def stress_(model: ARVGModel, severity: float, seed: int = 0) -> None:
    """Multiply channels of the inputs of qkv and fc1 by heavy-tailed factors, in place.

    severity: largest channel over the median, roughly; at least 1. The float function stays the
    same up to rounding, the factors depend on ``seed`` only.
    """
    check_severity(severity)
    generator = torch.Generator().manual_seed(seed)
    for spec in model.linears():
        if spec.role not in ("qkv", "fc1"):
            continue
        linear = model.transformer.get_submodule(spec.name)
        factors = channel_factors(linear.in_features, severity, generator)
        model.fold_(spec.name, 1 / factors, torch.zeros_like(factors))
        model.absorb_constant_(spec.name)
        linear.weight.copy_((linear.weight.double() / factors).to(linear.weight.dtype))
    model.stress = float(severity)
