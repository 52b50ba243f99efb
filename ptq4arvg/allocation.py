"""Mixed precision by budget: a scheme for every linear, so that the weights have at most so many
bits on average and the model's outputs suffer least.

The harms that ``sensitivity.py`` measures of single linears add up, so that the choice is a
knapsack, solved by dynamic programming over the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from .calibration import Calibration
from .goals import check_target
from .methods import Method
from .numerics import Scheme, get_scheme
from .plan import LayerPlan, make_plan, match
from .sensitivity import Harm, sensitivities

__all__ = ["Allocation", "Budget", "allocate", "assign", "choose"]

CANDIDATES = "W4A8", "W6A8", "W8A8"  # 8-bit activations cost nothing over 6-bit ones
LEVELS = 1 << 17  # the budget is divided into at most so many parts


@dataclass(frozen=True)
class Budget:
    """What is to be chosen: ``free`` names the linears of ``plan`` whose scheme is open; sizes:
    weights of every quantized linear."""

    target: float
    plan: list[LayerPlan]
    free: frozenset[str]
    sizes: dict[str, int]
    candidates: tuple[Scheme, ...]

    @property
    def scheme(self) -> Scheme:
        """What reports call the mixture; its bits are for what has no scheme of its own, which are
        the attention products where they are simulated."""
        return Scheme(f"mixed-{self.target:g}", 8, 8)

    @classmethod
    def of(
        cls, model: nn.Module, target: float, ignore: Iterable[str] = (),
        overrides: Mapping[str, str | Scheme] | None = None,
        candidates: Sequence[str | Scheme] = CANDIDATES,
    ) -> Budget:  # fmt: skip
        """Of a float model. ValueError for a target that is out of range, or out of reach because
        of the ``overrides``, whose schemes stay."""
        target = check_target(target)
        schemes = sorted(map(get_scheme, candidates), key=lambda s: (s.w_bits, s.a_bits))
        specs = list(model.linears())
        names = [spec.name for spec in specs]
        plan = make_plan(specs, schemes[0], ignore, overrides)
        fixed = {name for pattern in overrides or {} for name in match(pattern, names, "override")}
        sizes = {
            p.name: model.transformer.get_submodule(p.name).weight.numel() for p in plan if p.scheme
        }
        least = _mean_bits(plan, sizes)
        if least > target:
            raise ValueError(
                f"target_bits is {target:g}, but with every open linear at {schemes[0].name} the "
                f"mean is {least:.3g} bits; wanted a higher target or fewer overrides"
            )
        return cls(target, plan, frozenset(sizes) - fixed, sizes, tuple(schemes))


@dataclass(frozen=True)
class Allocation:
    """A scheme for every linear. mean_bits: of the quantized weights; predicted: the sum of the
    chosen harms; harm: all of them."""

    target_bits: float
    mean_bits: float
    predicted: float
    plan: list[LayerPlan]
    harm: Harm

    def record(self) -> dict[str, Any]:
        """Plain data for recipes: the target, what was reached, the scheme of each linear."""
        schemes = {p.name: p.scheme.name for p in self.plan if p.scheme}
        return {"target_bits": self.target_bits, "mean_bits": self.mean_bits, "schemes": schemes}


def allocate(
    model: nn.Module,
    budget: Budget,
    method: Method,
    calibration: Calibration,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] | None = None,
) -> Allocation:
    """Measure the open linears (see ``sensitivities``) and choose their schemes."""
    active = [p for p in budget.plan if p.scheme]
    harm: Harm = {}
    if budget.free:
        harm = sensitivities(model, active, budget.free, budget.candidates, method, calibration,
                             batch_size, progress)  # fmt: skip
    return assign(budget, harm)


def assign(budget: Budget, harm: Harm) -> Allocation:
    """The choice of least harm within the budget, from the harm of every open linear."""
    active = [p for p in budget.plan if p.scheme]
    open_ = [budget.candidates if p.name in budget.free else (p.scheme,) for p in active]
    options = [
        [(s.w_bits, harm[p.name][s.name] if p.name in budget.free else 0.0) for s in schemes]
        for p, schemes in zip(active, open_, strict=True)
    ]
    found = choose([budget.sizes[p.name] for p in active], options, budget.target)
    chosen = {p.name: s[i] for p, s, i in zip(active, open_, found, strict=True)}
    plan = [replace(p, scheme=chosen.get(p.name)) for p in budget.plan]
    predicted = sum(o[i][1] for o, i in zip(options, found, strict=True))
    return Allocation(budget.target, _mean_bits(plan, budget.sizes), predicted, plan, harm)


def choose(
    sizes: Sequence[int], options: Sequence[Sequence[tuple[int, float]]], target: float
) -> list[int]:
    """Index of one option (bits, harm) per linear: least total harm, mean bits at most ``target``.

    sizes: weights of each linear. Exact where the sizes have a large common divisor, as those of
    transformers do; otherwise bits are rounded up to a part of the whole. Of equally harmful
    choices it takes one of fewest bits. ValueError if the fewest bits are too many.
    """
    least = [min(bits for bits, _ in o) for o in options]
    extra = [[size * (bits - low) for bits, _ in o]
             for size, o, low in zip(sizes, options, least, strict=True)]  # fmt: skip
    total = sum(sizes)
    room = math.floor(target * total) - sum(map(math.prod, zip(sizes, least, strict=True)))
    if room < 0:
        raise ValueError(
            f"choose: the fewest bits of each linear are more than {target:g} on average"
        )
    most = sum(map(max, extra))
    unit = max(math.gcd(*(cost for costs in extra for cost in costs)), -(-most // LEVELS), 1)
    extra = [[-(-cost // unit) for cost in costs] for costs in extra]  # rounded up, in units
    width = (room // unit if room < most else sum(map(max, extra))) + 1
    best, picked = np.zeros(width), []  # best[c]: least harm within c units
    for costs, o in zip(extra, options, strict=True):
        order = sorted(range(len(o)), key=lambda i: (costs[i], o[i][1]))
        trials = np.full((len(o), width), np.inf)
        for row, i in enumerate(order):
            if costs[i] < width:
                trials[row, costs[i] :] = best[: width - costs[i]] + o[i][1]
        picked.append((order, trials.argmin(0).astype(np.uint8)))
        best = trials.min(0)
    at, found = int(best.argmin()), []
    for costs, (order, rows) in zip(reversed(extra), reversed(picked), strict=True):
        found.append(order[rows[at]])
        at -= costs[found[-1]]
    return found[::-1]


def _mean_bits(plan: Sequence[LayerPlan], sizes: Mapping[str, int]) -> float:
    """Mean bits of the weights of the quantized linears, 0 if there are none."""
    bits = sum(sizes[p.name] * p.scheme.w_bits for p in plan if p.scheme)
    return bits / max(sum(sizes.values()), 1)
