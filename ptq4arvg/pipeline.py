"""quantize_: plan -> collect -> fit -> token scales -> fold and pack, part by part -> verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .attention import quantize_attention_
from .calibration import Calibration, calibrate
from .folding import fit, fold_stage_, stages
from .fuse import fuse_
from .memory import release_mapped, return_freed_memory
from .methods import Method, Transform, get_method
from .methods.research import research_pipeline_
from .nn import PackedLinear, QuantLinear
from .numerics import (
    LinearQuantization,
    Scheme,
    get_scheme,
    round_to_grid,
    round_weight,
    weight_grid,
)
from .originals import adopt
from .plan import LayerPlan, make_plan
from .rounding import compensated_codes
from .statistics import SAMPLE, InputStatistics, collect_histograms, collect_inputs
from .token_scales import input_grid, position_groups, step_ranges
from .verify import check_integer_path

__all__ = [
    "LayerReport", "QuantReport", "input_grids", "quantize_", "quantize_linear",
    "scaled_statistics",
]  # fmt: skip

# What GPTQ's sample of all inputs may take, and how many vectors of each are enough.
SAMPLE_BYTES, MOST_VECTORS = 2**27, 4096

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
    """What ``quantize_`` did, layer by layer; ``kept`` names the linears left in float; allocation:
    of mixed precision, the target, the mean bits reached, the scheme and the harms of each linear.
    """

    model: str
    scheme: str
    method: str
    options: dict[str, Any]
    seed: int
    stress: float
    calibration: str
    layers: list[LayerReport]
    kept: list[str]
    allocation: dict[str, Any] | None = None

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
    target_bits: float | None = None,
    pack: bool | None = None,
    compat: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    **options: Any,
) -> QuantReport:
    """Quantize the linears of ``model`` in place and return a report per layer.

    model: an ``ARVGModel``, or a module of an original repository, which ``originals.adopt`` makes
    run our blocks; its own scripts then run quantized, and ``model.ptq4arvg`` is the ARVGModel.
    scheme: "W8A8", "W6A8", "W6A6" or "W4A8"; method: a registered name or a ``Method``; ``options``
    change the method's. calibration: rows from ``calibrate`` (None: 256 samples, 128 kept, from
    ``seed``). ignore: patterns of linears that stay in float; overrides: pattern -> scheme.
    target_bits: 4 to 8, in place of ``scheme``: every linear without an override gets a scheme, so
    that the quantized weights have at most so many bits on average and the outputs suffer least;
    measuring that takes about as long as quantizing three times. pack: replace the linears by
    integer ones (False: by their simulation in floating point; None: by integer ones if the method
    has an integer path). compat="research": reproduce the authors' code instead, in simulation
    only.
    """
    if compat not in (None, "research"):
        raise ValueError(f"quantize_: compat is {compat!r}; wanted None or 'research'")
    model = adopt(model)
    if model.recipe:
        raise ValueError(
            "quantize_: this model is quantized already; load the float model again to start over"
        )
    if any(hasattr(model.transformer.get_submodule(s.name), "rotation") for s in model.linears()):
        raise ValueError(
            "quantize_: this model is left rotated by a run that did not end; load the float "
            "model again to start over"
        )
    if target_bits is not None:
        from .allocation import Budget, allocate  # it measures with what is defined here

        if compat is not None:
            raise ValueError(
                f"quantize_: compat={compat!r} has one scheme for all linears, and takes no "
                "target_bits"
            )
        budget = Budget.of(model, target_bits, ignore, overrides)
        scheme = budget.scheme
    scheme = get_scheme(scheme)
    if compat is None:  # what can be wrong with the method is found before any work
        method = get_method(method, **options)
        if pack and not method.integer:
            raise ValueError(
                f"quantize_: method {method.name!r} has no integer path ({method.no_integer}); "
                "wanted pack=False, or None"
            )
        pack = method.integer if pack is None else pack
    if calibration is None:
        calibration = calibrate(model, seed=seed, progress=progress)
    if compat == "research":
        return _research(model, scheme, method, calibration, batch_size, progress, options)
    allocation = None
    if target_bits is None:
        plan = make_plan(model.linears(), scheme, ignore, overrides)
    else:
        allocation = allocate(model, budget, method, calibration, batch_size, progress)
        plan = allocation.plan
    active = [p for p in plan if p.scheme]
    method = method.prepare(model, active, calibration, batch_size, progress)
    steps = {p.name: position_groups(p.spec, "step") for p in active}
    visits = {p.name: model.visits(p.name) for p in active}
    stats = collect_inputs(model, calibration, steps, visits, _sample_size(model, active, method),
                           batch_size, progress)  # fmt: skip
    parts = stages(active)
    transforms, columns = fit(model, parts, stats, method, progress)
    grids = input_grids(model, active, stats, transforms, columns, method, calibration,
                        batch_size, progress)  # fmt: skip
    attention = method.attention == "simulated"
    layers = []
    for part in [active] if attention else parts:
        fold_stage_(model, part, transforms)
        if attention:  # needs the whole model folded: that changes v
            quantize_attention_(model, calibration, scheme.a_bits, batch_size, progress)
        for p in part:
            transform = transforms.get(p.name)
            own = scaled_statistics(stats.pop(p.name), transform)
            q, sqnr, branch = quantize_linear(model, p, own, grids[p.name], method)
            record = {} if transform is None else dict(transform.record)
            if grids[p.name][3] is not None:
                record["position_blend"] = grids[p.name][3]
            layers.append(_install(model, p, q, sqnr, pack, record, branch))
            if progress:
                progress("pack", len(layers), len(active))
        return_freed_memory()
    if pack:
        _verify(model, layers, calibration)
        fuse_(model)
    return_freed_memory()
    report = QuantReport(
        model.name, scheme.name, method.name, method.options(), calibration.seed,
        model.stress, calibration.hash, layers, [p.name for p in plan if not p.scheme],
    )  # fmt: skip
    model.recipe = _recipe(report, list(ignore), overrides, calibration)
    if allocation is not None:
        model.recipe |= allocation.record()
        report.allocation = allocation.record() | {"harm": allocation.harm}
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


def _sample_size(model: nn.Module, plan: list[LayerPlan], method: Method) -> int:
    """Token vectors to keep of each input: more where weights are fitted to them, if they fit."""
    if method.rounding != "gptq":
        return SAMPLE
    weights = [model.transformer.get_submodule(p.name).weight for p in plan]
    vector = sum(w.shape[1] * (2 if w.element_size() == 2 else 4) for w in weights)
    return max(SAMPLE, min(SAMPLE_BYTES // max(vector, 1), MOST_VECTORS))


def scaled_statistics(stats: InputStatistics, transform: Transform | None) -> InputStatistics:
    """float32 statistics of a linear's input once ``transform`` is folded."""
    return stats.float() if transform is None else stats.transformed(*_affine(transform))


def _affine(transform: Transform) -> tuple[Tensor, Tensor]:
    return transform.scale.float(), transform.shift.float()


def input_grids(
    model: nn.Module,
    plan: list[LayerPlan],
    stats: dict[str, InputStatistics],
    transforms: dict[str, Transform],
    columns: dict[str, Tensor],
    method: Method,
    calibration: Calibration,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, tuple[Tensor, Tensor, Tensor, float | None]]:
    """(scale [G], zero [G], position_group [T], blend) of every planned linear's input."""
    # Without the samples, which take most of the memory.
    ranges = {
        p.name: scaled_statistics(replace(stats[p.name], sample=stats[p.name].sample[:0]),
                             transforms.get(p.name))
        for p in plan
    }  # fmt: skip
    histograms: dict[str, Tensor] = {}
    if method.activation_range == "mse":
        # An error in channel k reaches the output multiplied by column k of the weight.
        over = {p.name: (*step_ranges(ranges[p.name]), columns[p.name]) for p in plan}
        bins = 4 * 2 ** max(p.scheme.a_bits for p in plan)
        affine = {name: _affine(transform) for name, transform in transforms.items()}
        histograms = collect_histograms(
            model, calibration, over, bins, affine, batch_size=batch_size, progress=progress
        )
    return {
        p.name: input_grid(
            p.spec, ranges[p.name], histograms.pop(p.name, None), p.scheme.a_bits,
            method.granularity,
        )
        for p in plan
    }  # fmt: skip


def quantize_linear(
    model: nn.Module,
    p: LayerPlan,
    stats: InputStatistics,
    grid: tuple[Tensor, Tensor, Tensor, float | None],
    method: Method,
) -> tuple[LinearQuantization, float, tuple[Tensor, Tensor] | None]:
    """Quantize one linear's weight; returns it, the SQNR of its output in dB, its float branch."""
    linear = model.transformer.get_submodule(p.name)
    weight = linear.weight.detach().float()
    scale, zero, group, _ = grid
    x = stats.sample
    bits, exact, branch = p.scheme.w_bits, nn.functional.linear(x, weight), method.branch(weight)
    rest = exact
    if branch is not None:
        weight = weight - branch[0] @ branch[1]
        rest = nn.functional.linear(x, weight)
    w_scale, w_zero = weight_grid(*method.row_range(p.name, weight, x, bits), bits)
    at = group[stats.sample_position]
    x_hat = round_to_grid(x, scale[at, None], zero[at, None], p.scheme.a_bits)
    if method.rounding == "gptq":
        codes = compensated_codes(weight, w_scale, w_zero, bits, x_hat)
    else:
        codes = round_weight(weight, w_scale, w_zero, bits)
    error = nn.functional.linear(x_hat, codes.float() * w_scale[:, None]) - rest
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
    return q, sqnr, branch


def _install(model, p: LayerPlan, q: LinearQuantization, sqnr, pack: bool, record, branch=None):
    """Put the quantized module in the linear's place; the float weight goes with the old one."""
    linear = model.transformer.get_submodule(p.name)
    cursor = model.cursor_of(p.name)
    if pack:
        module = PackedLinear(q, cursor, linear.weight.dtype)
    else:
        module = QuantLinear(q, cursor, branch, getattr(linear, "rotation", None))
    model.replace_(p.name, module)
    release_mapped(linear.parameters())
    half = 2 * q.codes.numel()
    after = module.weight_bytes() if pack else half * q.w_bits // 16
    after += 2 * sum(factor.numel() for factor in branch or ())  # in half precision
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
