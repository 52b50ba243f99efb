"""quantize_: plan -> collect -> fit -> fold -> token scales -> pack -> verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .attention import quantize_attention_
from .calibration import Calibration, calibrate
from .fuse import fuse_
from .memory import return_freed_memory
from .methods import LayerView, Method, Transform, get_method
from .methods.research import research_pipeline_
from .nn import PackedLinear, QuantLinear
from .numerics import (
    LinearQuantization,
    Scheme,
    get_scheme,
    quantize_weight,
    round_to_grid,
)
from .originals import adopt
from .plan import LayerPlan, make_plan
from .statistics import InputStatistics, collect_histograms, collect_inputs
from .token_scales import input_grid, position_groups, step_ranges
from .verify import check_integer_path

__all__ = ["LayerReport", "QuantReport", "fit_and_fold_", "input_grids", "quantize_"]

Progress = Callable[[str, int, int], None]


@dataclass
class LayerReport:
    """What became of one linear. sqnr_db: of its output over the calibration sample, with the
    float model's inputs; bytes_before: the weight in half precision; bytes_after: as packed."""

    name: str
    role: str
    w_bits: int
    a_bits: int
    kernel: str
    sqnr_db: float
    bytes_before: int
    bytes_after: int
    transform: dict[str, Any] = field(default_factory=dict)


@dataclass
class QuantReport:
    """What ``quantize_`` did, layer by layer; ``kept`` names the linears left in float."""

    model: str
    scheme: str
    method: str
    options: dict[str, Any]
    seed: int
    stress: float
    calibration: str
    layers: list[LayerReport]
    kept: list[str]

    @property
    def sqnr_db(self) -> float:
        """Mean over the layers, in dB."""
        return sum(layer.sqnr_db for layer in self.layers) / max(len(self.layers), 1)

    @property
    def worst(self) -> LayerReport:
        """The layer of lowest SQNR."""
        return min(self.layers, key=lambda layer: layer.sqnr_db)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights in memory."""
        return sum(layer.bytes_after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, with the sums added."""
        sums = {"sqnr_db": self.sqnr_db, "worst_sqnr_db": self.worst.sqnr_db,
                "worst_layer": self.worst.name, "weight_bytes": self.weight_bytes}  # fmt: skip
        return asdict(self) | sums


@torch.no_grad()  # not inference mode: what is made here also runs outside of it
def quantize_(
    model: nn.Module,
    scheme: str | Scheme = "W6A6",
    method: str | Method = "ptq4arvg",
    calibration: Calibration | None = None,
    *,
    ignore: Iterable[str] = (),
    overrides: Mapping[str, str | Scheme] | None = None,
    pack: bool = True,
    compat: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    **options: Any,
) -> QuantReport:
    """Quantize the linears of ``model`` in place and return a report per layer.

    model: an ``ARVGModel``, or a module of an original repository, which ``originals.adopt`` makes
    run our blocks; its own scripts then run quantized, and ``model.ptq4arvg`` is the ARVGModel.
    scheme: "W8A8", "W6A6" or "W4A8"; method: a registered name or a ``Method``; ``options`` change
    the method's. calibration: rows from ``calibrate`` (None: 256 samples, 128 kept, ``seed``).
    ignore: patterns of linears that stay in float; overrides: pattern -> scheme. pack: replace the
    linears by integer ones (False: by their simulation in floating point). compat="research":
    reproduce the authors' code instead, in simulation only.
    """
    if compat not in (None, "research"):
        raise ValueError(f"quantize_: compat is {compat!r}; wanted None or 'research'")
    model = adopt(model)
    if model.recipe:
        raise ValueError(
            "quantize_: this model is quantized already; load the float model again to start over"
        )
    scheme = get_scheme(scheme)
    if calibration is None:
        calibration = calibrate(model, seed=seed, progress=progress)
    if compat == "research":
        return _research(model, scheme, method, calibration, batch_size, progress, options)
    method = get_method(method, **options)
    plan = make_plan(model.linears(), scheme, ignore, overrides)
    active = [p for p in plan if p.scheme]
    steps = {p.name: position_groups(p.spec, "step") for p in active}
    visits = {p.name: model.visits(p.name) for p in active}
    stats = collect_inputs(model, calibration, steps, visits, batch_size=batch_size,
                           progress=progress)  # fmt: skip
    transforms = fit_and_fold_(model, active, stats, method, progress)
    grids = input_grids(model, active, stats, method, calibration, batch_size, progress)
    if method.attention == "simulated":
        quantize_attention_(model, calibration, scheme.a_bits, batch_size, progress)
    layers = []
    for number, p in enumerate(active):
        q, sqnr = _quantize_linear(model, p, stats[p.name], grids[p.name], method)
        record = dict(transforms[p.name].record) if p.name in transforms else {}
        if grids[p.name][3] is not None:
            record["position_blend"] = grids[p.name][3]
        layers.append(_install(model, p, q, sqnr, pack, record))
        if progress:
            progress("pack", number + 1, len(active))
    if pack:
        _verify(model, layers, calibration)
        fuse_(model)
    return_freed_memory()
    report = QuantReport(
        model.name, scheme.name, method.name, method.options(), calibration.seed,
        model.stress, calibration.hash, layers, [p.name for p in plan if not p.scheme],
    )  # fmt: skip
    model.recipe = _recipe(report, list(ignore), overrides, calibration)
    model.report = report
    return report


def _research(model, scheme, method, calibration, batch_size, progress, options) -> QuantReport:
    """The authors' pipeline in simulation, reported like any other."""
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
    model.recipe = _recipe(report, [], None, calibration)
    model.report = report
    return report


def _recipe(report, ignore, overrides, calibration) -> dict[str, Any]:
    from . import __version__

    named = {k: get_scheme(v).name for k, v in (overrides or {}).items()}
    return {
        "model": report.model, "stress": report.stress, "scheme": report.scheme,
        "method": report.method, "options": report.options, "ignore": ignore, "overrides": named,
        "calibration": {"seed": calibration.seed, "select": calibration.select,
                        "rows": len(calibration.labels), "hash": report.calibration},
        "version": __version__,
    }  # fmt: skip


# Folding proj rescales the v rows of qkv, and folding fc2 (where that can be done) rows of fc1, so
# they are fitted first, and qkv and fc1 see their final rows.
_FIT_ORDER = {"proj": 0, "qkv": 1, "fc2": 2, "fc1": 3}


def fit_and_fold_(
    model: nn.Module,
    plan: list[LayerPlan],
    stats: dict[str, InputStatistics],
    method: Method,
    progress: Progress | None,
) -> dict[str, Transform]:
    """Fit the method's transforms, fold them into the model, and transform the statistics."""
    transforms = {}
    order = sorted(plan, key=lambda p: (p.spec.block, _FIT_ORDER.get(p.spec.role, 4)))
    for number, p in enumerate(order):
        linear = model.transformer.get_submodule(p.name)
        sink = p.spec.sink if method.sink == "float" else ()
        view = LayerView(p.name, p.spec.role, linear.weight.detach(), stats[p.name],
                         p.spec.fold is not None, p.spec.shift, sink)  # fmt: skip
        transform = method.fit(view, p.scheme)
        if transform is not None:
            apply_transform_(model, p.name, transform)
            stats[p.name] = stats[p.name].transformed(
                transform.scale.float(), transform.shift.float()
            )
            transforms[p.name] = transform
        if progress:
            progress(f"fit {method.name}", number + 1, len(order))
    return transforms


def apply_transform_(model: nn.Module, name: str, transform: Transform) -> None:
    """Fold a transform upstream and into the linear itself; the float function stays the same."""
    model.fold_(name, transform.scale, transform.shift)
    linear = model.transformer.get_submodule(name)
    weight = linear.weight.detach().double() * transform.scale
    bias = weight @ transform.shift
    if linear.bias is not None:
        bias += linear.bias.double()
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
    linear.bias = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=False)


def input_grids(
    model: nn.Module,
    plan: list[LayerPlan],
    stats: dict[str, InputStatistics],
    method: Method,
    calibration: Calibration,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, tuple[Tensor, Tensor, Tensor, float | None]]:
    """(scale [G], zero [G], position_group [T], blend) of every planned linear's input."""
    histograms: dict[str, Tensor] = {}
    if method.activation_range == "mse":
        ranges = {}
        for p in plan:
            # An error in channel k reaches the output multiplied by column k of the weight.
            weight = model.transformer.get_submodule(p.name).weight.float().square().sum(0)
            ranges[p.name] = (*step_ranges(stats[p.name]), weight)
        bins = 4 * 2 ** max(p.scheme.a_bits for p in plan)
        histograms = collect_histograms(
            model, calibration, ranges, bins, batch_size=batch_size, progress=progress
        )
    return {
        p.name: input_grid(
            p.spec, stats[p.name], histograms.get(p.name), p.scheme.a_bits, method.granularity
        )
        for p in plan
    }


def _quantize_linear(
    model: nn.Module,
    p: LayerPlan,
    stats: InputStatistics,
    grid: tuple[Tensor, Tensor, Tensor, float | None],
    method: Method,
) -> tuple[LinearQuantization, float]:
    """Quantize one linear's weight; returns it and the SQNR of its output in dB."""
    linear = model.transformer.get_submodule(p.name)
    weight = linear.weight.detach().float()
    scale, zero, group, _ = grid
    x = stats.sample
    search = method.weight_range == "mse"
    codes, w_scale, w_zero = quantize_weight(
        weight, p.scheme.w_bits, x.square().mean(0) if search else None, search
    )
    at = group[stats.sample_position]
    x_hat = round_to_grid(x, scale[at, None], zero[at, None], p.scheme.a_bits)
    exact = nn.functional.linear(x, weight)
    error = nn.functional.linear(x_hat, codes.float() * w_scale[:, None]) - exact
    bias = None if linear.bias is None else linear.bias.detach().float()
    if bias is not None:
        exact = exact + bias
    if method.bias_correction:
        mean = error.double().mean(0).float()
        error = error - mean
        bias = -mean if bias is None else bias - mean
    signal, noise = exact.double().square().sum(), error.double().square().sum()
    sqnr = (10 * torch.log10(signal / noise.clamp_min(1e-300))).item()
    sink = p.spec.sink if method.sink == "float" else ()
    q = LinearQuantization(codes, w_scale, w_zero, bias, scale, zero, group,
                           p.scheme.w_bits, p.scheme.a_bits, tuple(sink))  # fmt: skip
    return q, sqnr


def _install(model, p: LayerPlan, q: LinearQuantization, sqnr: float, pack: bool, record):
    """Put the quantized module in the linear's place; the float weight goes with the old one."""
    dtype, cursor = model.transformer.get_submodule(p.name).weight.dtype, model.cursor_of(p.name)
    module = PackedLinear(q, cursor, dtype) if pack else QuantLinear(q, cursor)
    model.replace_(p.name, module)
    half = 2 * q.codes.numel()
    after = module.weight_bytes() if pack else half * q.w_bits // 16
    return LayerReport(p.name, p.spec.role, q.w_bits, q.a_bits, "simulated", sqnr, half, after,
                       record)  # fmt: skip


def _verify(model: nn.Module, layers: list[LayerReport], calibration: Calibration) -> None:
    """Check on a real pass that every integer layer equals its simulation; note its kernel."""
    ends = sorted({0, len(calibration.labels) - 1})
    checks = check_integer_path(model, calibration.ids[ends], calibration.labels[ends])
    by_name = {check.name: check for check in checks}
    for layer in layers:
        check = by_name[layer.name]
        layer.kernel = check.kernel
        if not check.passed:
            raise RuntimeError(
                f"quantize_: {layer.name}: the integer path (kernel {check.kernel}) differs from "
                f"its simulation by {check.error:.3g} of the largest output; please report this"
            )
