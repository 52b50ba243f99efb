"""A linear layer as methods see it, from given inputs, and how its quantized output errs."""

import torch
from torch import nn

from ptq4arvg.folding import apply_transform_
from ptq4arvg.methods import LayerView, Transform, get_method
from ptq4arvg.numerics import get_scheme
from ptq4arvg.statistics import InputStatistics


def view_of(x, weight, role="qkv", foldable=True, shiftable=True):
    """x [rows, tokens, K], weight [N, K]; five tokens a step."""
    rows, tokens, k = x.shape
    step = torch.arange(tokens) // 5
    by_step = x.view(rows, tokens // 5, 5, k)
    lo, hi = by_step.amin((0, 2)), by_step.amax((0, 2))  # [S, K]
    position = torch.arange(tokens).repeat(rows)
    stats = InputStatistics(lo, hi, step, x.flatten(0, 1), position)
    return LayerView("linear", role, weight, stats, foldable, shiftable)


def inputs(gain, middle=0.0, seed=0, rows=40, tokens=20):
    """Uniform values in [middle - gain, middle + gain] per channel, [rows, tokens, K]."""
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(rows, tokens, len(gain), generator=g) - 1) * gain + middle


def outlier_gain(k=64):
    """One, but 40 in three channels."""
    gain = torch.ones(k)
    gain[:3] = 40.0
    return gain


def random_weight(n=48, k=64, seed=1):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def error_of(view, method, scheme="W6A6", **options):
    """(output error with the method's transform, without any, the transform)."""
    method, scheme = get_method(method, **options), get_scheme(scheme)
    transform = method.fit(view, scheme)
    one = torch.ones(view.weight.shape[1], dtype=torch.float64)
    nothing = method.output_error(view, Transform(one, 0 * one), scheme)
    return method.output_error(view, transform, scheme), nothing, transform


class NormAndLinear(nn.Module):
    """The least model that folds: a LayerNorm with weight and bias, and the linear behind it."""

    def __init__(self, weight):
        super().__init__()
        n, k = weight.shape
        self.transformer = nn.Module()
        self.transformer.norm = nn.LayerNorm(k)
        self.transformer.linear = nn.Linear(k, n)
        self.transformer.linear.weight.data.copy_(weight)
        self.double().requires_grad_(False)

    def fold_(self, name, scale, shift):
        norm = self.transformer.norm
        norm.weight = nn.Parameter(norm.weight / scale, requires_grad=False)
        norm.bias = nn.Parameter(norm.bias / scale - shift, requires_grad=False)

    def forward(self, x):
        return self.transformer.linear(self.transformer.norm(x))


def folding_error(view, transform):
    """Largest change of the float output in float64, relative to it, when ``transform`` is folded;
    and how far the folded norm's output is from ``u / scale - shift``, likewise."""
    model = NormAndLinear(view.weight)
    g = torch.Generator().manual_seed(2)
    model.transformer.norm.weight.data.copy_(torch.rand(view.weight.shape[1], generator=g) + 0.5)
    x = torch.randn(30, view.weight.shape[1], generator=g, dtype=torch.float64)
    u, before = model.transformer.norm(x), model(x)
    apply_transform_(model, "linear", transform)
    wanted = u / transform.scale - transform.shift
    moved = (model.transformer.norm(x) - wanted).abs().max() / wanted.abs().max()
    return ((model(x) - before).abs().max() / before.abs().max()).item(), moved.item()


def gaussian(seed=0, rows=20, tokens=20, k=64, n=48):
    """(x [rows, tokens, k], weight [n, k]) without anything particular about them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, k, generator=g), torch.randn(n, k, generator=g) / k**0.5


def outlier_channels(seed=0, reach=40.0):
    """The same function as ``gaussian``'s, with every 16th channel ``reach`` times as wide."""
    x, weight = gaussian(seed)
    gain = torch.ones(x.shape[-1])
    gain[::16] = reach
    return x * gain, weight / gain
