"""What the package's own method did to one model, for people: what no cell of a comparison holds.

The channels' maxima before and after scaling, the range of every position under the static grid,
and how far out the calibration rows lie. Plain data, one layer of each kind, a few seconds a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .allocation import Budget, allocate
from .calibration import Calibration
from .folding import fit, fold_stage_, stages
from .goals import Goal
from .layer import input_grids, scaled_statistics
from .methods import Method, Transform, get_method
from .models import ARVGModel
from .numerics import expand_groups
from .plan import LayerPlan, make_plan
from .statistics import InputStatistics, collect_inputs
from .token_scales import collect_steps, position_groups

__all__ = ["inspect_"]

Progress = Callable[[str, int, int], None]


@torch.no_grad()
def inspect_(
    model: ARVGModel,
    goal: Goal,
    calibration: Calibration,
    method: str | Method = "ptq4arvg",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit and fold ``method`` into the float ``model``, and note what that did.

    goal: a scheme, or a budget that gives every linear one first.

    The model computes the same function afterwards, with scaled weights. Keys: model, stress,
    scheme, method, seed; "channels", "positions", "selection" (see the functions below; None where
    there is nothing to tell); "outputs": values in the sample that each layer's errors are means
    over.
    """
    method = get_method(method)
    if goal.scheme:
        plan = make_plan(model.linears(), goal.scheme)
    else:
        budget = Budget.of(model, goal.target_bits)
        plan = allocate(model, budget, method, calibration, progress=progress).plan
    stats = collect_steps(model, plan, calibration, progress=progress)
    outputs = {
        p.name: len(stats[p.name].sample) * len(_weight(model, p.name)) for p in plan
    }  # fmt: skip
    before = {p.name: _maxima(model, p.name, stats[p.name]) for p in plan}
    parts = stages(plan)
    transforms, columns = fit(model, parts, stats, method, progress)
    scaled = {name: scaled_statistics(s, transforms.get(name)) for name, s in stats.items()}
    p = _uneven(plan, scaled)
    grid = None
    if p is not None:
        grid = input_grids(model, [p], stats, transforms, columns, method, calibration, 16,
                           progress)[p.name]  # fmt: skip
    for part in parts:
        fold_stage_(model, part, transforms)
    return {
        "model": model.name, "stress": model.stress, "scheme": goal.name, "method": method.name,
        "seed": calibration.seed, "outputs": outputs,
        "channels": _channels(model, scaled, transforms, before),
        "positions": None if p is None else _positions(model, p, grid, calibration, progress),
        "selection": _selection(calibration),
    }  # fmt: skip


def _weight(model: ARVGModel, name: str) -> Tensor:
    return model.transformer.get_submodule(name).weight.detach().float()


def _maxima(model: ARVGModel, name: str, stats: InputStatistics) -> tuple[Tensor, Tensor]:
    """Largest magnitude of every input channel and of its weights, both [K]."""
    activation = torch.maximum(stats.hi, -stats.lo).amax(0)
    return activation, _weight(model, name).abs().amax(0)


def _spread(scale: Tensor) -> float:
    """How unlike the factors [K] are: standard deviation of their binary logarithms."""
    return scale.double().log2().std(unbiased=False).item()


def _channels(
    model: ARVGModel,
    stats: dict[str, InputStatistics],
    transforms: dict[str, Transform],
    before: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, Any] | None:
    """Channel maxima [K] of the layer whose factors are least alike, and every layer's spread."""
    scaled = {name: t for name, t in transforms.items() if not t.rotation}
    if not scaled:
        return None
    spreads = {name: _spread(transform.scale) for name, transform in scaled.items()}
    name = max(spreads, key=spreads.__getitem__)
    activation, weight = _maxima(model, name, stats[name])
    return {
        "layer": name, "spreads": spreads,
        "activation_before": before[name][0], "activation_after": activation,
        "weight_before": before[name][1], "weight_after": weight,
    }  # fmt: skip


def _uneven(plan: list[LayerPlan], stats: dict[str, InputStatistics]) -> LayerPlan | None:
    """The layer whose widest decoding step is widest against its median one."""
    walking = [p for p in plan if len(p.spec.groups) > 1]
    return max(walking, key=lambda p: _unevenness(stats[p.name]), default=None)


def _positions(
    model: ARVGModel,
    p: LayerPlan,
    grid: tuple[Tensor, Tensor, Tensor, float | None],
    calibration: Calibration,
    progress: Progress | None,
) -> dict[str, Any]:
    """Range of every position's scaled input and what its static grid reaches, all [T], of one
    layer; grid: as ``input_grids`` gives it."""
    scale, zero, group, blend = grid
    each = position_groups(p.spec, "position")
    found = collect_inputs(model, calibration, {p.name: each}, {p.name: model.visits(p.name)},
                           progress=progress)[p.name]  # fmt: skip
    scale, zero = expand_groups(scale, group), expand_groups(zero, group)
    top = 2**p.scheme.a_bits - 1
    return {
        "layer": p.name, "sink": list(p.spec.sink), "blend": blend,
        "steps": list(p.spec.scale_groups), "group": group,
        "lo": found.lo.amin(1)[each], "hi": found.hi.amax(1)[each],
        "scale": scale, "grid_lo": -zero * scale, "grid_hi": (top - zero) * scale,
    }  # fmt: skip


def _unevenness(stats: InputStatistics) -> float:
    reach = torch.maximum(stats.hi, -stats.lo).amax(1)
    return (reach.amax() / reach.median().clamp_min(torch.finfo(torch.float32).tiny)).item()


def _selection(calibration: Calibration) -> dict[str, Any] | None:
    """Distance of every drawn row to the mean of all, conditional rows first, and which were
    kept; None where rows were not chosen by it."""
    if calibration.distance is None:
        return None
    kept = torch.zeros(len(calibration.distance), dtype=torch.bool)
    kept[calibration.chosen] = True
    return {"distance": calibration.distance, "kept": kept}
