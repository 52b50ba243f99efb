"""What quantizing each linear alone would do to a model's outputs, of all linears at once.

To second order, the KL divergence that a change d of a row's logits brings is ``d^T F d / 2``, with
``F = diag(p) - p p^T`` of every token. An error e in the output of one linear changes the logits by
J e. For a random r of covariance F, ``g = J^T r`` is the gradient at that output, so that
``(g . e)^2 / 2`` is an estimate of the divergence, and one pass back gives g for all linears. It is
taken per token vector: errors at different positions count as uncorrelated. Continuous tokens have
the squared error of the predicted noise in the place of the divergence, and F is the identity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .calibration import Calibration
from .folding import Progress, fit, fold_stage_, stages, undone
from .layer import input_grids, quantize_linear, scaled_statistics
from .methods import Method, Transform
from .numerics import LinearQuantization, Scheme, round_to_grid
from .plan import LayerPlan
from .token_scales import collect_steps

__all__ = ["Harm", "sensitivities"]

# linear -> scheme -> estimate: nats per token, or a share of the squared outputs where tokens are
# continuous.
Harm = dict[str, dict[str, float]]

ROWS = 64  # calibration rows that gradients are taken of, one at a time: a pass back keeps all
SAMPLE = 1024  # token vectors of each linear's input and gradient that are kept


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    active: Sequence[LayerPlan],
    free: Collection[str],
    candidates: Iterable[Scheme],
    method: Method,
    calibration: Calibration,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Harm:
    """Estimated harm of each of the ``free`` linears at each scheme; the model stays as it is.

    active: the plan of all linears that are quantized; those that are not free keep its scheme. It
    costs about as much as quantizing the model once per candidate. What ``method.prepare`` would
    learn or rotate is left out.
    """
    stats = collect_steps(model, active, calibration, batch_size=batch_size, progress=progress)
    visits = {name: model.visits(name) for name in free}
    seen = _gradients(model, visits, calibration, progress)
    harm: Harm = {p.name: {} for p in active if p.name in free}
    for scheme in candidates:
        trial = [replace(p, scheme=scheme) if p.name in free else p for p in active]
        shown = _within(progress, scheme.name)
        transforms, columns = fit(model, stages(trial), stats, method, shown)
        grids = input_grids(model, trial, stats, transforms, columns, method, calibration,
                            batch_size, shown)  # fmt: skip
        for part in stages(trial):
            before = {p.name: model.transformer.get_submodule(p.name).weight for p in part}
            with undone(model.transformer):
                fold_stage_(model, part, transforms)
                for p in (p for p in part if p.name in free):
                    transform = transforms.get(p.name)
                    own = scaled_statistics(stats[p.name], transform)
                    q, _, branch = quantize_linear(model, p, own, grids[p.name], method)
                    linear = model.transformer.get_submodule(p.name)
                    error = seen[p.name].error(linear, transform, q, branch)
                    error /= _row_gain(before[p.name], linear.weight, transform)
                    harm[p.name][scheme.name] = seen[p.name].harm(error)
    return harm


def _within(progress: Progress | None, what: str) -> Progress | None:
    return progress and (lambda phase, done, total: progress(f"{what}: {phase}", done, total))


def _row_gain(before: Tensor, after: Tensor, transform: Transform | None) -> Tensor:
    """By what each row [N] of a linear was multiplied when transforms of later inputs were folded
    into it: its errors are in that measure, gradients are not."""
    own, old = after.double(), before.double()
    if transform is not None:
        old = transform.weight(old)
    square = old.square().sum(1)
    gain = (own * old).sum(1) / square.clamp_min(1e-300)
    return torch.where(square > 0, gain, 1.0).float()


@dataclass
class _Seen:
    """Token vectors of a linear over the rows: inputs [M, K], gradients of the outputs [M, N],
    positions int64 [M]; weight: what the mean of M squared products is multiplied by."""

    x: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)
    position: list[Tensor] = field(default_factory=list)
    count: int = 0
    weight: float = 0.0

    def error(
        self, linear: nn.Linear, transform: Transform | None, q: LinearQuantization,
        branch: tuple[Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """Error [M, N] of the quantized linear on the inputs, with ``transform`` folded."""
        x, position = torch.cat(self.x).float(), torch.cat(self.position)
        if transform is not None:
            x = transform.input(x)
        at = q.position_group[position]
        x_hat = round_to_grid(x, q.input_scale[at, None], q.input_zero[at, None], q.a_bits)
        if q.sink:
            kept = torch.isin(position, torch.tensor(q.sink, device=position.device))
            x_hat = torch.where(kept[:, None], x, x_hat)
        y = F.linear(x_hat, q.weight(), q.bias)
        if branch is not None:
            y += F.linear(F.linear(x, branch[1]), branch[0])
        bias = None if linear.bias is None else linear.bias.float()
        return y - F.linear(x, linear.weight.float(), bias)

    def harm(self, error: Tensor) -> float:
        """Estimate of what an error [M, N] of the linear's output does to the model's."""
        product = (torch.cat(self.gradient).float() * error).double().sum(1)
        return product.square().mean().item() * self.weight


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """The linears' (name, input, output), call after call, with a graph between the outputs."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def hook(name: str):
        def keep(_module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            if not y.requires_grad:  # before the first linear, nothing asks for a gradient
                y.requires_grad_()
            calls.append((name, args[0].detach(), y))

        return keep

    handles = [model.transformer.get_submodule(n).register_forward_hook(hook(n)) for n in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _gradients(
    model: nn.Module,
    visits: Mapping[str, int],
    calibration: Calibration,
    progress: Progress | None,
) -> dict[str, _Seen]:
    """Inputs and random gradients of the linears that ``visits`` names, evenly over the calibration
    rows; visits: how often a replay runs each."""
    seen = {name: _Seen() for name in sorted(visits)}
    count = min(ROWS, len(calibration.labels))
    rows = torch.arange(count) * len(calibration.labels) // count
    generator = torch.Generator().manual_seed(0)
    scale = 0.0
    for done, row in enumerate(rows.tolist()):
        # Copies, because calibration rows may be inference tensors.
        ids, label = (t[row : row + 1].clone() for t in (calibration.ids, calibration.labels))
        with torch.enable_grad(), _recorded(model, seen) as calls:
            out = model.replay(ids, label)
        probe = torch.randn(out.shape, generator=generator).to(out)
        if model.continuous:
            scale += out.detach().double().square().sum().item()
        else:
            root = out.detach().float().softmax(-1).sqrt()
            probe = (root * probe - root.square() * (root * probe).sum(-1, keepdim=True)).to(out)
            scale += 2 * out[..., 0].numel()
        gradients = torch.autograd.grad(
            out, [y for *_, y in calls], probe, allow_unused=True, materialize_grads=True
        )
        for (name, x, _), g in zip(calls, gradients, strict=True):
            share = max(SAMPLE // (count * visits[name]), 1)
            tokens = x.shape[1] if x.ndim == 3 else 1
            flat, own = x.reshape(-1, x.shape[-1]), seen[name]
            index = torch.randperm(len(flat), generator=generator)[:share].to(flat.device)
            own.x.append(flat[index])
            own.gradient.append(g.reshape(-1, g.shape[-1])[index])
            own.position.append(index % tokens)
            own.count += len(flat)
        if progress:
            progress("sensitivity", done + 1, count)
    for own in seen.values():
        own.weight = own.count / scale
    return seen
