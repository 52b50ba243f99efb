"""Quantizing one linear: the grids of its input, its weight's codes, its bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from .calibration import Calibration
from .descent import descended
from .methods import Method, Transform
from .numerics import LinearQuantization, round_to_grid, round_weight, sqnr_db, weight_grid
from .plan import LayerPlan
from .rounding import channel_products, compensated_codes
from .statistics import SAMPLE, InputStatistics, collect_histograms, collect_ranges
from .token_scales import input_grid, step_ranges

__all__ = ["input_grids", "quantize_linear", "sample_size", "scaled_statistics"]

# What GPTQ's sample of all inputs may take, and how many vectors of each are enough.
SAMPLE_BYTES, MOST_VECTORS = 2**27, 4096

Progress = Callable[[str, int, int], None]


def sample_size(model: nn.Module, plan: Sequence[LayerPlan], method: Method) -> int:
    """Token vectors to keep of each input: more where weights are fitted to them, if they fit."""
    if method.rounding == "nearest":
        return SAMPLE
    weights = [model.transformer.get_submodule(p.name).weight for p in plan]
    vector = sum(w.shape[1] * (2 if w.element_size() == 2 else 4) for w in weights)
    return max(SAMPLE, min(SAMPLE_BYTES // max(vector, 1), MOST_VECTORS))


def scaled_statistics(stats: InputStatistics, transform: Transform | None) -> InputStatistics:
    """float32 statistics of a linear's input once ``transform`` is folded."""
    return stats.float() if transform is None else transform.statistics(stats)


def input_grids(
    model: nn.Module,
    plan: Sequence[LayerPlan],
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
    inputs = {name: transform.input for name, transform in transforms.items()}
    turned = {p.name: (stats[p.name].step, inputs[p.name]) for p in plan
              if p.name in transforms and transforms[p.name].rotation}  # fmt: skip
    if turned:
        found = collect_ranges(model, calibration, turned, batch_size, progress)
        for name, (lo, hi) in found.items():
            ranges[name] = replace(ranges[name], lo=lo, hi=hi)
    histograms: dict[str, Tensor] = {}
    if method.activation_range == "mse":
        # An error in channel k reaches the output multiplied by column k of the weight.
        over = {p.name: (*step_ranges(ranges[p.name]), columns[p.name]) for p in plan}
        bins = 4 * 2 ** max(p.scheme.a_bits for p in plan)
        histograms = collect_histograms(
            model, calibration, over, bins, inputs, batch_size=batch_size, progress=progress
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
    rotation: int = 0,
) -> tuple[LinearQuantization, float, tuple[Tensor, Tensor] | None]:
    """Quantize one linear's weight; returns it, the SQNR of its output in dB, its float branch.

    rotation: of its input; ``stats`` and the weight are those of the rotated one.
    """
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
    rounding = method.rounding_of(bits)
    if rounding == "nearest":
        codes = round_weight(weight, w_scale, w_zero, bits)
    else:
        products = channel_products(x_hat)
        codes = compensated_codes(weight, w_scale, w_zero, bits, products)
        if rounding == "descent":
            codes, w_scale = descended(weight, codes, w_scale, w_zero, bits, products)
    error = nn.functional.linear(x_hat, codes.float() * w_scale[:, None]) - rest
    bias = None if linear.bias is None else linear.bias.detach().float()
    if bias is not None:
        exact = exact + bias
    if method.bias_correction:
        mean = error.double().mean(0).float()
        error = error - mean
        bias = -mean if bias is None else bias - mean
    signal, noise = (y.square().sum(1).double().sum() for y in (exact, error))
    sink = p.spec.sink if method.sink == "float" else ()
    q = LinearQuantization(codes, w_scale, w_zero, bias, scale, zero, group,
                           p.scheme.w_bits, p.scheme.a_bits, tuple(sink), rotation)  # fmt: skip
    return q, sqnr_db(signal, noise), branch
