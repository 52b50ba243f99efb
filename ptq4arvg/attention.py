"""Simulated quantization of the attention products: observe q, k, v; fit grids; install."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .calibration import Calibration
from .nn import AttentionCore, QuantAttention
from .numerics import affine_grid

__all__ = ["quantize_attention_"]

SOFTMAX_KINDS = ("uniform", "log_sqrt2")


class _Ranges:
    """Running minimum and maximum of q and k per head and position, of v per head and channel."""

    def __init__(self) -> None:
        self.lo: dict[str, Tensor] = {}
        self.hi: dict[str, Tensor] = {}

    def __call__(self, _module, args) -> None:
        q, k, v = args[:3]  # [B, H, T, d]
        for name, x, dims in (("q", q, (0, 3)), ("k", k, (0, 3)), ("v", v, (0, 2))):
            lo, hi = x.amin(dims), x.amax(dims)
            self.lo[name] = torch.minimum(self.lo[name], lo) if name in self.lo else lo
            self.hi[name] = torch.maximum(self.hi[name], hi) if name in self.hi else hi

    def grids(self, bits: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: affine_grid(self.lo[name], self.hi[name], bits) for name in self.lo}


def _replay(model, calibration: Calibration, batch_size: int, hooks: dict[str, Callable]) -> None:
    """Replay the rows with a forward hook (module, args, output) on each named core."""
    handles = [
        model.transformer.get_submodule(name).register_forward_hook(hook)
        for name, hook in hooks.items()
    ]
    try:
        for ids, labels in calibration.batches(batch_size):
            model.replay(ids, labels)
    finally:
        for handle in handles:
            handle.remove()


def quantize_attention_(
    model: torch.nn.Module,
    calibration: Calibration,
    bits: int,
    batch_size: int = 16,
    progress: Callable[[str, int, int], None] | None = None,
    softmax: str = "best",
) -> dict[str, str]:
    """Replace the attention cores of ``model`` by simulations at ``bits`` bits.

    Ranges come from the calibration rows. softmax: the grid of the probabilities, "uniform" or
    "log_sqrt2" (powers of the square root of two), or "best", the one of lower output error of each
    core. Returns core -> kind. The integer path of this package keeps the attention products in
    float; this exists to measure what quantizing them would cost.
    """
    names = model.attention_cores()
    if not names:
        raise ValueError(
            f"quantize_attention_: {model.name} keeps its attention products in floating point; "
            "wanted attention='float'"
        )
    wanted = SOFTMAX_KINDS if softmax == "best" else (softmax,)
    ranges = {name: _Ranges() for name in names}
    _replay(model, calibration, batch_size,
            {name: lambda m, a, _o, r=r: r(m, a) for name, r in ranges.items()})  # fmt: skip
    candidates = {
        name: [QuantAttention(ranges[name].grids(bits), bits, kind, model.cursor)
               for kind in wanted]
        for name in names
    }  # fmt: skip
    errors = {name: [0.0] * len(wanted) for name in names}

    def compare(name: str):
        def hook(_module: AttentionCore, args, output: Tensor) -> None:
            for i, candidate in enumerate(candidates[name]):
                errors[name][i] += (candidate(*args) - output).double().square().sum().item()

        return hook

    _replay(model, calibration, batch_size, {name: compare(name) for name in names})
    kinds = {}
    for number, name in enumerate(names):
        best = min(range(len(wanted)), key=errors[name].__getitem__)
        model.replace_(name, candidates[name][best])
        kinds[name] = wanted[best]
        if progress:
            progress("attention", number + 1, len(names))
    return kinds
