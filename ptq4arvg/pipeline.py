"""quantize_: plan -> collect -> fit -> token scales -> fold and pack, part by part -> verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .allocation import Budget, allocate
from .attention import check_attention, integer_attention_, quantize_attention_
from .block_parts import BlockParts
from .calibration import Calibration, calibrate, check_rows
from .collected import Collected
from .compat import quantize_like_research_
from .decoder import check_decoder, quantize_decoder_
from .distributed import check_batch_size
from .folding import fit, fold_stage_, stages
from .fuse import fuse_
from .hadamard import turn_of
from .layer import input_grids, quantize_linear, sample_size, scaled_statistics
from .memory import release_mapped, return_freed_memory
from .methods import Method, get_method
from .nn import IntAttention, PackedConv2d, PackedLinear, QuantAttention, QuantLinear
from .numerics import LinearQuantization, Scheme, get_scheme
from .originals import adopt
from .plan import LayerPlan, make_plan, patterns, planned
from .quant_report import LayerReport, QuantReport, make_recipe
from .token_scales import collect_steps
from .verify import check_integer_path

__all__ = ["quantize_"]

# What takes the place of a float module.
QUANTIZED = IntAttention, PackedConv2d, PackedLinear, QuantAttention, QuantLinear

Progress = Callable[[str, int, int], None]


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
    decoder: str | Scheme | None = None,
    pack: bool | None = None,
    compat: str | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    parts: str | Path | None = None,
    collected: Collected | None = None,
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
    measuring that takes about as long as quantizing three times. decoder: the scheme of the
    convolutions of the tokenizer's decoder, which then are in integers, too; None leaves them in
    float, as published. Scripts of an original repository decode by themselves, in float. pack:
    replace the linears by integer ones (False: by their simulation in floating point; None: by
    integer ones if the method has an integer path). parts: folder in which a method that learns
    block by block ("omniquant") keeps finished blocks; a run that ended early goes on from it, to
    the same bits, and ``BlockParts.remove`` deletes them; ValueError if it holds blocks of another
    model, other rows or options. collected: keeps what the linears of the float model read, for the
    next model of the same weights that is quantized over the same rows. compat="research":
    reproduce the authors' code instead, in simulation only.
    """
    if compat not in (None, "research"):
        raise ValueError(f"quantize_: compat is {compat!r}; wanted None or 'research'")
    ignore = patterns(ignore)  # read several times below
    model = adopt(model)
    _check_untouched(model)
    check_batch_size(batch_size)
    if compat is not None and (ignore or overrides or pack):
        given = "ignore" if ignore else "overrides" if overrides else "pack=True"
        raise ValueError(
            f"quantize_: compat={compat!r} has one scheme for all linears, in simulation; wanted "
            f"no {given}"
        )
    if target_bits is not None:
        if compat is not None:
            raise ValueError(
                f"quantize_: compat={compat!r} has one scheme for all linears, and takes no "
                "target_bits"
            )
        budget = Budget.of(model, target_bits, ignore, overrides)
        scheme = budget.scheme
    scheme = get_scheme(scheme)
    if decoder is not None:
        decoder = get_scheme(decoder)
        if compat is not None or pack is False:
            what = "pack=False" if compat is None else f"compat={compat!r}"
            raise ValueError(
                f"quantize_: decoder={decoder.name!r} is computed in integers, and {what} "
                "simulates; wanted decoder=None"
            )
        check_decoder(model)
    if compat is None:  # what can be wrong with the method is found before any work
        method = get_method(method, **options)
        if pack and not method.integer:
            raise ValueError(
                f"quantize_: method {method.name!r} has no integer path ({method.no_integer}); "
                "wanted pack=False, or None"
            )
        if decoder and not method.integer:
            raise ValueError(
                f"quantize_: method {method.name!r} has no integer path ({method.no_integer}); "
                "wanted decoder=None"
            )
        check_attention(model, method.attention)
        pack = method.integer if pack is None else pack
        if pack and any(p.dtype == torch.float64 for p in model.transformer.parameters()):
            raise ValueError(
                "quantize_: the transformer is in float64, and integer linears give float32, "
                "bfloat16 or float16; wanted one of these, or pack=False"
            )
    if parts is not None and (compat or not method.resumable):
        raise ValueError(
            f"quantize_: {f'compat={compat!r}' if compat else f'method {method.name!r}'} does not "
            "learn block by block, so that there are no finished blocks to keep; wanted parts=None"
        )
    if target_bits is None:
        plan = make_plan(model.linears(), scheme, ignore, overrides)
    else:
        plan = budget.plan  # the same linears, whose schemes are still open
    _check_linears(model, planned(plan))
    if calibration is None:
        calibration = calibrate(model, seed=seed, progress=progress)
    check_rows(model, calibration)
    if compat == "research":
        return quantize_like_research_(
            model, scheme, method, calibration, batch_size, progress, options
        )
    allocation = None
    if target_bits is not None:
        allocation = allocate(model, budget, method, calibration, batch_size, progress)
        plan = allocation.plan
    active = [p for p in plan if p.scheme]
    if parts is not None:
        parts = BlockParts.of(parts, model, active, calibration, method, batch_size)
    method = method.prepare(model, active, calibration, batch_size, progress, parts)
    size = sample_size(model, active, method)
    collect = collect_steps if collected is None or method.turns_inputs else collected.steps
    stats = collect(model, active, calibration, size, batch_size, progress)
    parts = stages(active)
    transforms, columns = fit(model, parts, stats, method, progress)
    grids = input_grids(model, active, stats, transforms, columns, method, calibration,
                        batch_size, progress)  # fmt: skip
    attention = method.attention != "float"
    layers = []
    for part in [active] if attention else parts:
        fold_stage_(model, part, transforms)
        if attention:  # needs the whole model folded: that changes v
            _replace_attention(model, method, scheme, calibration, batch_size, progress)
        for p in part:
            transform = transforms.get(p.name)
            own = scaled_statistics(stats.pop(p.name), transform)
            rotation = 0 if transform is None else transform.rotation
            q, sqnr, branch = quantize_linear(model, p, own, grids[p.name], method, rotation)
            record = {} if transform is None else dict(transform.record)
            if grids[p.name][3] is not None:
                record["position_blend"] = grids[p.name][3]
            layers.append(_install(model, p, q, sqnr, pack, record, branch))
            if progress:
                progress("pack", len(layers), len(active))
        return_freed_memory()
    drawn = None
    if decoder is not None:
        fitted = method.rounding != "nearest"
        drawn = quantize_decoder_(model, decoder, calibration, progress, fitted)
    if pack:
        _verify(model, layers, calibration)
        fuse_(model)
    return_freed_memory()
    report = QuantReport(
        model.name, scheme.name, method.name, method.options(), calibration.seed,
        model.stress, calibration.hash, layers, [p.name for p in plan if not p.scheme],
        decoder=drawn,
    )  # fmt: skip
    model.recipe = make_recipe(report, calibration, ignore, overrides)
    if model.own_weights:
        model.recipe["weights"] = "own"
    if decoder is not None:
        model.recipe["decoder"] = decoder.name
    if allocation is not None:
        model.recipe |= allocation.record()
        report.allocation = allocation.record() | {"harm": allocation.harm}
    model.report = report
    return report


def _check_untouched(model: nn.Module) -> None:
    """ValueError if the model is quantized, in part or as a whole, or left rotated."""
    again = "load the float model again to start over"
    if model.recipe:
        raise ValueError(f"quantize_: this model is quantized already; {again}")
    linears = (model.transformer.get_submodule(spec.name) for spec in model.linears())
    done = any(isinstance(module, QUANTIZED) for module in model.modules())
    if done or any(turn_of(linear) for linear in linears):
        what = "quantized in part" if done else "rotated"
        raise ValueError(f"quantize_: this model is left {what} by a run that did not end; {again}")


def _check_linears(model: nn.Module, plan: Sequence[LayerPlan]) -> None:
    """ValueError for a linear that is more than a weight and a bias of finite numbers."""
    for p in plan:
        linear = model.transformer.get_submodule(p.name)
        hooks = (*linear._forward_hooks.values(), *linear._forward_pre_hooks.values())
        ours = all(getattr(hook, "__module__", "").startswith("ptq4arvg.") for hook in hooks)
        if type(linear) is not nn.Linear or not ours:
            more = "has forward hooks" if not ours else f"is a {type(linear).__qualname__}"
            raise ValueError(
                f"quantize_: {p.name} {more}, and what that does would be lost; wanted a plain "
                f"torch.nn.Linear, or ignore=[{p.name!r}]"
            )
        for name, values in linear.named_parameters():
            if not values.isfinite().all():
                raise ValueError(
                    f"quantize_: {p.name}.{name} has infinite numbers, or such that are none; "
                    "wanted finite weights"
                )
        release_mapped(linear.parameters())


def _replace_attention(model, method, scheme, calibration, batch_size, progress) -> None:
    if method.attention == "int8":
        integer_attention_(model, calibration, batch_size, progress)
    else:
        quantize_attention_(model, calibration, scheme.a_bits, batch_size, progress, method.softmax)


def _install(model, p: LayerPlan, q: LinearQuantization, sqnr, pack: bool, record, branch=None):
    """Put the quantized module in the linear's place; the float weight goes with the old one."""
    linear = model.transformer.get_submodule(p.name)
    cursor = model.cursor_of(p.name)
    if pack:
        module = PackedLinear(q, cursor, linear.weight.dtype)
    else:
        # A rotation in blocks is the quantizer's own; any other one has to be kept.
        module = QuantLinear(q, cursor, branch, None if q.rotation else turn_of(linear))
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
    kernels = {check.name: check.kernel for check in checks}
    for layer in layers:
        layer.kernel = kernels[layer.name]
    for check in checks:
        if not check.passed:
            raise RuntimeError(
                f"quantize_: {check.name}: the integer path (kernel {check.kernel}) differs from "
                f"its simulation by {check.error:.3g} of the largest output; please report this"
            )
