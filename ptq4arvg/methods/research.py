"""``compat="research"``: the authors' research pipeline for VAR, in simulation, to compare with.

What it does differently from this package, all of it reproduced here: the calibration forward has
no attention mask; grids are percentile grids averaged over calibration batches (fractional zero
points); smoothing, a zero-centring shift and GPS run as separate passes with everything
re-calibrated in between; the softmax output has a plain per-tensor grid. The rows of a calibration
set are taken in its order, in batches of ``batch_size``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..calibration import Calibration
from ..nn.attention import AttentionCore
from ..numerics import Scheme, sqnr_db
from .research_grid import (
    Average,
    gps_scale,
    percentile_grid,
    round_to,
    smooth_factors,
    zero_centring_shift,
)

__all__ = ["ResearchAttention", "ResearchLinear", "research_pipeline_"]

SCALED_ROLES = ("qkv", "fc1", "head")


class _Grid:
    """An averaged percentile grid: calibrates on what it sees while ``learning``."""

    def __init__(self, bits: int, groups: Tensor | None = None) -> None:
        self.bits, self.groups = bits, groups
        self.delta, self.zero = Average(), Average()

    def learn(self, rows: list[Tensor]) -> None:
        """One batch: a flat tensor of values per group."""
        grids = [percentile_grid(row.reshape(1, -1), self.bits) for row in rows]
        self.delta(torch.cat([g[0] for g in grids]))
        self.zero(torch.cat([g[1] for g in grids]))

    def __call__(self, x: Tensor, index: Tensor | int = 0) -> Tensor:
        """Round x; index: the group of each position (broadcast over [..., T, K]), or 0."""
        delta, zero = self.delta.value[index], self.zero.value[index]
        if isinstance(index, Tensor):
            delta, zero = delta[:, None], zero[:, None]  # [T, 1]
        return round_to(x, delta, zero, self.bits)


class ResearchLinear(nn.Module):
    """A fake-quantized linear as the research code has it, with its calibration state.

    mode: "float"; "smooth", "gps" (collect factors, compute in float); "init" (per-channel input
    grid, sinks left alone); "final" (token-group grid). ``learning`` switches calibration on.
    """

    def __init__(self, linear: nn.Linear, spec: Any, bits: tuple[int, int], cursor: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.spec, self.w_bits, self.a_bits, self.cursor = spec, *bits, cursor
        self.scaled = spec.role in SCALED_ROLES
        self.groups = torch.tensor(spec.groups)
        self.mode, self.learning = "float", False
        self.smooth: Tensor | None = None  # divides the input until it is folded upstream
        self.forget()

    def forget(self) -> None:
        """Drop all grids; they are learned again."""
        self.w_grid: tuple[Tensor, Tensor] | None = None
        self.channel = (Average(), Average())
        self.grid = _Grid(self.a_bits)
        self.factor = Average()

    def _learn_weight(self) -> None:
        delta, zero = percentile_grid(self.weight, self.w_bits)
        self.w_grid = Average()(delta), Average()(zero)

    def weight_hat(self) -> Tensor:
        """The weight on its grid."""
        return round_to(self.weight, self.w_grid[0][:, None], self.w_grid[1][:, None], self.w_bits)

    @property
    def _sinks(self) -> int:
        """Leading positions that a scaled layer's first passes leave out (none at the head)."""
        return 0 if self.spec.role == "head" else len(self.spec.sink)

    def _body(self, x: Tensor) -> Tensor:
        """Token vectors [S, K] that calibration of a scaled layer looks at: all but the sinks."""
        return x[:, self._sinks :].flatten(0, 1)

    def _input(self, x: Tensor) -> Tensor:
        if self.mode == "init" and self.scaled:
            if self.learning:
                delta, zero = percentile_grid(self._body(x).T.contiguous(), self.a_bits)
                self.channel[0](delta), self.channel[1](zero)
            rounded = round_to(x, self.channel[0].value, self.channel[1].value, self.a_bits)
            return torch.cat([x[:, : self._sinks], rounded[:, self._sinks :]], 1)
        if x.ndim == 2 or len(set(self.spec.groups)) == 1:
            if self.learning:
                self.grid.learn([x])
            return self.grid(x)
        begin, tokens = self.cursor.begin, self.cursor.tokens
        index = self.groups[begin : begin + tokens]
        if self.learning:
            self.grid.learn([x[:, index == g] for g in range(int(self.groups.max()) + 1)])
        return self.grid(x, index)

    def forward(self, x: Tensor) -> Tensor:
        if self.smooth is not None:
            x = x / self.smooth
        if self.mode in ("smooth", "gps", "float"):
            if self.mode == "smooth":
                self.factor(smooth_factors(self._body(x), self.weight))
            if self.mode == "gps":
                act = self.channel[0].value, self.channel[1].value
                self.factor(gps_scale(self._body(x), self.weight, act, self.w_grid, self.a_bits))
            return F.linear(x, self.weight, self.bias)
        if self.w_grid is None:
            self._learn_weight()
        return F.linear(self._input(x), self.weight_hat(), self.bias)


class ResearchAttention(AttentionCore):
    """Explicit attention products with one percentile grid per operand.

    ``masked`` is False while calibrating: that forward of the research code attends to all.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.grids = {name: _Grid(bits) for name in ("q", "k", "softmax", "v")}
        self.bits, self.quantized, self.masked, self.learning = bits, False, True, False

    def forget(self) -> None:
        """Drop all grids; they are learned again."""
        self.grids = {name: _Grid(self.bits) for name in self.grids}

    def _round(self, name: str, x: Tensor) -> Tensor:
        if not self.quantized:
            return x
        if self.learning:
            self.grids[name].learn([x])
        return self.grids[name](x)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        score = self._round("q", q) @ self._round("k", k).transpose(2, 3)  # [B, H, Tq, Tk]
        if mask is not None and self.masked:
            score = (
                score.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else score + mask
            )
        return self._round("softmax", score.softmax(-1)) @ self._round("v", v)


class _Run:
    """The research modules of one model and passes over its calibration batches."""

    def __init__(self, model: nn.Module, scheme: Scheme, calibration: Calibration,
                 batch_size: int, attention: bool, progress: Any) -> None:  # fmt: skip
        self.model, self.batches = model, calibration.batches(batch_size)
        self.progress, self.passes = progress, 0
        bits = scheme.w_bits, scheme.a_bits
        self.linears = {
            spec.name: ResearchLinear(
                model.transformer.get_submodule(spec.name), spec, bits, model.cursor_of(spec.name)
            )
            for spec in model.linears()
        }
        self.cores = {name: ResearchAttention(scheme.a_bits) for name in model.attention_cores()}
        self.attention = attention
        for name, module in (self.linears | self.cores).items():
            model.replace_(name, module)

    def scaled(self) -> Iterable[tuple[str, ResearchLinear]]:
        """The linears that are smoothed, centred and scaled."""
        return ((name, m) for name, m in self.linears.items() if m.scaled)

    def run(self, mode: str, only_scaled: bool = False) -> None:
        """One pass over the calibration batches, without an attention mask.

        only_scaled: the input grids of all other linears and of attention stay as they are.
        """
        quantized = mode in ("init", "final")
        for module in self.linears.values():
            module.mode = mode if module.scaled or quantized else "float"
            module.learning = quantized and (module.scaled or not only_scaled)
        for core in self.cores.values():
            core.quantized = quantized and self.attention
            core.learning = quantized and not only_scaled
            core.masked = False
        for ids, labels in self.batches:
            self.model.replay(ids, labels)
        self.passes += 1
        if self.progress:
            self.progress("research passes", self.passes, 5)
        for module in self.linears.values():
            module.learning = False
        for core in self.cores.values():
            core.learning, core.masked = False, True

    def sqnr(self) -> dict[str, float]:
        """SQNR in dB of every linear's output, each on the input it gets, over the first batch."""
        found = {}

        def compare(name: str):
            def hook(module: ResearchLinear, args: tuple[Tensor], output: Tensor) -> None:
                exact = F.linear(args[0], module.weight, module.bias).double()
                error = output.double() - exact
                found[name] = sqnr_db(exact.square().sum(), error.square().sum())

            return hook

        handles = [m.register_forward_hook(compare(name)) for name, m in self.linears.items()]
        try:
            self.model.replay(*self.batches[0])
        finally:
            for handle in handles:
                handle.remove()
        return found


@torch.inference_mode()
def research_pipeline_(
    model: nn.Module,
    scheme: Scheme,
    calibration: Calibration,
    batch_size: int = 4,
    attention: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Run the research pipeline on a float model in place: (parameters, SQNR in dB by layer).

    Afterwards ``model`` is the fake-quantized model. The parameters are "smooth_scales", "shift",
    "gps_scales", "act_delta", "act_zero_point", "weight_delta", "weight_zero_point" and
    "attention_q", "_k", "_softmax", "_v", each by layer.
    """
    run = _Run(model, scheme, calibration, batch_size, attention, progress)
    record: dict[str, dict[str, Tensor]] = {}

    def note(key: str, name: str, value: Tensor) -> None:
        record.setdefault(key, {})[name] = value.clone()

    run.run("smooth")
    for name, module in run.scaled():
        note("smooth_scales", name, module.factor.value)
        module.smooth, module.factor = module.factor.value, Average()
        module.weight = nn.Parameter(module.weight * module.smooth, requires_grad=False)
    run.run("init")
    for name, module in run.scaled():
        delta, zero = (average.value for average in module.channel)
        note("shift_delta", name, delta)
        note("shift_zero_point", name, zero)
        shift = zero_centring_shift(delta, zero, scheme.a_bits)
        note("shift", name, shift)
        module.bias = nn.Parameter(
            module.bias + F.linear(shift[None], module.weight)[0], requires_grad=False
        )
        model.fold_(name, module.smooth.double(), shift.double())
        module.smooth = None
    # Only what the shift has moved is calibrated anew; all other grids stay as they are.
    for module in run.linears.values():
        if module.scaled:
            module.channel = (Average(), Average())
        elif module.spec.role in ("ada_lin", "head_ada_lin"):
            module.w_grid = None
    run.run("init", only_scaled=True)
    run.run("gps")
    for name, module in run.scaled():
        scale = module.factor.value
        note("gps_scales", name, scale)
        module.weight = nn.Parameter(module.weight * scale, requires_grad=False)
        model.fold_(name, scale.double(), torch.zeros_like(scale).double())
    for module in run.linears.values():
        module.forget()
    for core in run.cores.values():
        core.forget()
    run.run("final")
    for name, module in run.linears.items():
        module.mode = "final"
        note("act_delta", name, module.grid.delta.value)
        note("act_zero_point", name, module.grid.zero.value)
        note("weight_delta", name, module.w_grid[0])
        note("weight_zero_point", name, module.w_grid[1])
    for name, core in run.cores.items():
        for operand, grid in core.grids.items():
            if grid.delta.value is not None:
                both = torch.cat([grid.delta.value, grid.zero.value])
                note(f"attention_{operand}", name, both)
    return record, run.sqnr()
