"""``compat="research"``: the authors' code reproduced in simulation, and reported like the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .calibration import Calibration
from .methods import Method
from .methods.research import research_pipeline_
from .numerics import Scheme
from .quant_report import LayerReport, QuantReport, make_recipe

__all__ = ["quantize_like_research_"]


def quantize_like_research_(
    model: nn.Module,
    scheme: Scheme,
    method: str | Method,
    calibration: Calibration,
    batch_size: int,
    progress: Callable[[str, int, int], None] | None,
    options: Mapping[str, Any],
) -> QuantReport:
    """Quantize ``model`` in place; see ``quantize_``. ValueError for a family or an option that it
    does not have."""
    if not model.compat_research:
        raise ValueError(
            f"quantize_: compat='research' does not reproduce the authors' code for the family "
            f"{model.family!r} of {model.name}"
        )
    if method != "ptq4arvg":
        raise ValueError(
            f"quantize_: compat='research' reproduces the method 'ptq4arvg'; method is {method!r}"
        )
    unknown = sorted(set(options) - {"attention"})
    if unknown:
        raise ValueError(
            f"quantize_: compat='research' takes no option {unknown[0]!r}; only attention='float' "
            "or 'simulated'"
        )
    attention = options.get("attention", "simulated")
    if attention not in ("float", "simulated"):
        raise ValueError(
            f"quantize_: compat='research' has no attention={attention!r}; wanted 'float' or "
            "'simulated'"
        )
    specs = {spec.name: spec for spec in model.linears()}
    _, sqnr = research_pipeline_(
        model, scheme, calibration, batch_size, attention == "simulated", progress
    )
    layers = []
    for name, spec in specs.items():
        half = 2 * model.transformer.get_submodule(name).weight.numel()
        layers.append(LayerReport(name, spec.role, scheme.w_bits, scheme.a_bits, "simulated",
                                  sqnr[name], half, half * scheme.w_bits // 16))  # fmt: skip
    report = QuantReport(
        model.name, scheme.name, "ptq4arvg", {"compat": "research", "attention": attention},
        calibration.seed, model.stress, calibration.hash, layers, [],
    )  # fmt: skip
    model.recipe = make_recipe(report, calibration)
    model.report = report
    return report
