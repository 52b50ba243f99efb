"""Block-wise reconstruction: quantized linears with parameters to learn, and their training.

A block's linears are replaced by simulations with gradients; its output is brought close to the
float model's, on inputs that come through the blocks learned before it. Nothing here stays in the
model: what was learned is read off in the end, and the linears are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..calibration import Calibration
from ..numerics import Scheme
from .base import Transform

__all__ = ["CLIP_START", "Budget", "LearnedLinear", "reconstruct"]

CALL_ROWS = 4  # calibration rows of one step
LOSSES = "losses"  # name of the tensor beside those of the linears in a file of a block
CLIP_START = 0.982  # share of a row's range that its grid spans at first, the paper's sigmoid(4)


@dataclass(frozen=True)
class Budget:
    """steps per block, over ``rows`` calibration rows; learning rates; seed: order of the rows."""

    steps: int
    rows: int
    clip_rate: float
    transform_rate: float
    seed: int


def _round(x: Tensor) -> Tensor:
    """Round to nearest, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def _fake(x: Tensor, lo: Tensor, hi: Tensor, bits: int) -> Tensor:
    """x on the affine grid over [lo, hi], with gradients to all three (cf. numerics)."""
    lo, hi, levels = lo.clamp(max=0), hi.clamp(min=0), 2**bits - 1
    scale = ((hi - lo) / levels).clamp_min(torch.finfo(x.dtype).tiny)
    zero = _round(-lo / scale)
    return (torch.clamp(_round(x / scale) + zero, 0, levels) - zero) * scale


class LearnedLinear(nn.Module):
    """A linear of which the clipping of its rows and the transform of its input are learned.

    clip_lo, clip_hi [N]: logits of the shares of each row's minimum and maximum that its grid
    spans; log_scale, shift [K]: the input becomes ``x / exp(log_scale) - shift``, or stays as it is
    where nothing can absorb that (``initial`` None) or only a scale can (shiftable False). Input
    grids span the batch's range: per position, unless there is one grid per tensor. It computes in
    float while not ``quantized``.
    """

    def __init__(
        self, linear: nn.Linear, scheme: Scheme, initial: Transform | None, shiftable: bool,
        clip: tuple[Tensor, Tensor], per_tensor: bool,
    ) -> None:  # fmt: skip
        """clip: the shares [N] to begin with."""
        super().__init__()
        self.scheme, self.per_tensor, self.quantized = scheme, per_tensor, True
        self.weight = linear.weight.detach().float()
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        # The paper's start is also the end here: beyond 0.98 the logit hardly moves any more.
        self.clip_lo, self.clip_hi = (nn.Parameter(c.clamp(0.1, CLIP_START).logit()) for c in clip)
        self.log_scale = self.shift = None
        if initial is not None:
            self.log_scale = nn.Parameter(initial.scale.log().float())
            self.shift = nn.Parameter(initial.shift.float(), requires_grad=shiftable)

    def transform(self) -> Transform | None:
        """The learned transform of the input, float64."""
        if self.log_scale is None:
            return None
        return Transform(self.log_scale.detach().double().exp(), self.shift.detach().double())

    def clip(self) -> tuple[Tensor, Tensor]:
        """The learned shares [N] of the minimum and the maximum of each row."""
        return self.clip_lo.detach().sigmoid(), self.clip_hi.detach().sigmoid()

    def _weight_hat(self, weight: Tensor) -> Tensor:
        lo = weight.amin(1, keepdim=True) * self.clip_lo.sigmoid()[:, None]
        hi = weight.amax(1, keepdim=True) * self.clip_hi.sigmoid()[:, None]
        if self.scheme.w_bits != 8:
            return _fake(weight, lo, hi, self.scheme.w_bits)
        scale = (torch.maximum(hi, -lo) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
        return torch.clamp(_round(weight / scale), -127, 127) * scale

    def forward(self, x: Tensor) -> Tensor:
        u, weight, bias = x.float(), self.weight, self.bias
        if not self.quantized:
            return F.linear(u, weight, bias).to(x.dtype)
        if self.log_scale is not None:
            scale = self.log_scale.exp()
            u, weight = u / scale - self.shift, weight * scale
            moved = weight @ self.shift
            bias = moved if bias is None else bias + moved
        dims = (0, 2) if x.ndim == 3 and not self.per_tensor else tuple(range(x.ndim))
        u = _fake(u, u.amin(dims, keepdim=True), u.amax(dims, keepdim=True), self.scheme.a_bits)
        return F.linear(u, self._weight_hat(weight), bias).to(x.dtype)


@dataclass
class _Call:
    """One run of a block: its arguments in the quantized model, its output in the float model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor = field(default_factory=lambda: torch.empty(0))

    def loss(self, block: nn.Module) -> Tensor:
        """Squared error of the block's output, relative to the squared target."""
        error = (block(*self.args, **self.kwargs).float() - self.target).square().sum()
        return error / self.target.square().sum().clamp_min(1e-30)


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def _quantized(linears: list[LearnedLinear], quantized: bool) -> Iterator[None]:
    for linear in linears:
        linear.quantized = quantized
    try:
        yield
    finally:
        for linear in linears:
            linear.quantized = True


@contextmanager
def _skipped(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Blocks hand on what comes in."""
    blocks = list(blocks)
    for block in blocks:
        block.forward = lambda x, *_args, **_kwargs: x
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class _Walk:
    """Replays the batches block by block: what reached the last block is kept, so that the next
    replay goes on from there, and each costs two blocks whatever the depth of the model."""

    def __init__(self, model: Any, names: list[str], batches: list[tuple[Tensor, Tensor]]) -> None:
        self.model, self.batches = model, batches
        self.blocks = [model.transformer.get_submodule(name) for name in names]
        self.at: int | None = None  # the block that ``streams`` are inputs of
        self.streams: dict[bool, list[Tensor]] = {}  # in the quantized and in the float model

    def calls(self, index: int, learned: list[LearnedLinear]) -> list[_Call]:
        """The runs of a block: inputs behind quantized blocks, float outputs."""
        calls, _ = self._run(index, learned, quantized=True)
        reference, outputs = self._run(index, learned, quantized=False)
        self.streams = {
            quantized: [call.args[0] for call in found]
            for quantized, found in ((True, calls), (False, reference))
        }
        self.at = index
        for call, output in zip(calls, outputs, strict=True):
            call.target = output
        return calls

    def _run(
        self, index: int, learned: list[LearnedLinear], quantized: bool
    ) -> tuple[list[_Call], list[Tensor]]:
        """(calls, outputs) of one block, behind quantized blocks or float ones."""
        calls, outputs = [], []

        def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append(_Call(tuple(map(_clone, args)), {k: _clone(v) for k, v in kwargs.items()}))

        def after(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            outputs.append(output.detach().float().clone())

        block, first = self.blocks[index], self.at or 0
        handles = [block.register_forward_pre_hook(before, with_kwargs=True),
                   block.register_forward_hook(after)]  # fmt: skip
        if self.at is not None:
            stream = iter(self.streams[quantized])
            resume = self.blocks[self.at].register_forward_pre_hook(
                lambda _module, args: (next(stream), *args[1:])
            )
            handles.append(resume)
        try:
            others = self.blocks[:first] + self.blocks[index + 1 :]
            with _quantized(learned, quantized), _skipped(others):
                for ids, labels in self.batches:
                    self.model.replay(ids, labels)
        finally:
            for handle in handles:
                handle.remove()
        return calls, outputs


def _learn(block: nn.Module, linears: list[LearnedLinear], calls: list[_Call], budget: Budget,
           tick: Callable[[], None]) -> tuple[float, float]:  # fmt: skip
    """Train the block's linears on its calls; the mean loss before and after.

    Parameters go back to where they began if that was better.
    """

    def mean_loss() -> float:
        return sum(call.loss(block).item() for call in calls) / len(calls)

    before = mean_loss()
    clips = [p for m in linears for p in (m.clip_lo, m.clip_hi)]
    transforms = [p for m in linears for p in (m.log_scale, m.shift) if p is not None]
    groups = [{"params": clips, "lr": budget.clip_rate},
              {"params": [p for p in transforms if p.requires_grad],
               "lr": budget.transform_rate}]  # fmt: skip
    start = [p.detach().clone() for p in clips + transforms]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
    generator, order = torch.Generator().manual_seed(budget.seed), []
    for _ in range(budget.steps):
        if not order:
            order = torch.randperm(len(calls), generator=generator).tolist()
        with torch.enable_grad():
            loss = calls[order.pop()].loss(block)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        tick()
    after = mean_loss()
    if not after < before:
        for parameter, value in zip(clips + transforms, start, strict=True):
            parameter.data.copy_(value)
    return before, after


def _state(
    names: Iterable[str], linears: list[LearnedLinear], before: float, after: float
) -> dict[str, Tensor]:
    """What was learned of a block's linears, and its losses, as tensors for a file."""
    learned = {f"{name}.{key}": value for name, linear in zip(names, linears, strict=True)
               for key, value in linear.state_dict().items()}  # fmt: skip
    return learned | {LOSSES: torch.tensor([before, after], dtype=torch.float64)}


def _restore(
    names: Iterable[str], linears: list[LearnedLinear], kept: dict[str, Tensor]
) -> tuple[float, float]:
    """Give a block's linears what ``_state`` says of them; the losses."""
    for name, linear in zip(names, linears, strict=True):
        linear.load_state_dict({key: kept[f"{name}.{key}"] for key in linear.state_dict()})
    before, after = kept[LOSSES].tolist()
    return before, after


@torch.no_grad()
def reconstruct(
    model: Any,
    plan: list[Any],
    calibration: Calibration,
    budget: Budget,
    make: Callable[[Any, nn.Linear], LearnedLinear],
    progress: Callable[[str, int, int], None] | None = None,
    parts: Any = None,
) -> dict[str, tuple[LearnedLinear, float, float]]:
    """Learn the planned linears of every block in turn: name -> (its learned simulation, the
    block's relative loss before and after).

    make: (plan entry, linear) -> its simulation to begin with. The rows are spread evenly over the
    calibration rows. parts: a ``BlockParts`` that blocks are kept in and, where they are there
    already, taken from: with the same bits, as blocks share no state but what was learned. The
    model is as it was in the end.
    """
    count = min(budget.rows, len(calibration.labels))
    rows = torch.arange(count) * len(calibration.labels) // count
    batches = Calibration(calibration.ids[rows], calibration.labels[rows]).batches(CALL_ROWS)
    blocks = model.block_names()
    walk = _Walk(model, blocks, batches)
    found, learned, originals, ticks = {}, [], {}, 0

    def tick(steps: int = 1) -> None:
        nonlocal ticks
        ticks += steps
        if progress:
            progress("reconstruct", ticks, budget.steps * len(blocks))

    try:
        for index, name in enumerate(blocks):
            own = {p.name: p for p in plan if p.name.startswith(f"{name}.")}
            if not own:
                ticks += budget.steps
                continue
            block = model.transformer.get_submodule(name)
            kept = parts.read(name) if parts else None
            calls = [] if kept else walk.calls(index, learned)
            for inner, p in own.items():
                originals[inner] = model.transformer.get_submodule(inner)
                model.replace_(inner, make(p, originals[inner]))
            linears = [model.transformer.get_submodule(inner) for inner in own]
            if kept:
                before, after = _restore(own, linears, kept)
                tick(budget.steps)
            else:
                before, after = _learn(block, linears, calls, budget, tick)
                if parts:
                    parts.write(name, _state(own, linears, before, after))
            learned += linears
            found |= {inner: (m, before, after) for inner, m in zip(own, linears, strict=True)}
    finally:
        for inner, linear in originals.items():
            model.replace_(inner, linear)
    return found
