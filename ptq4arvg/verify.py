"""Checking a quantized model: every integer layer against its simulation in double precision, and
attention in integers against its specification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .nn import IntAttention, PackedLinear, QuantLinear

__all__ = ["LayerCheck", "check_integer_path"]

# The integer sum is exact; what is left is the rounding of a few float32 operations, and that of
# the output if its type is narrower.
BOUND = 1e-5

KEPT = 2**28  # bytes of simulated weights kept where a replay runs a linear more than once


@dataclass(frozen=True)
class LayerCheck:
    """Outcome for one layer. error: largest difference of its output from the simulation, over
    the largest output; bound: what the rounding of its output's type explains; kernel: the one
    that ran."""

    name: str
    kernel: str
    error: float
    bound: float = BOUND

    @property
    def passed(self) -> bool:
        """Whether the layer computed what its simulation says."""
        return self.error <= self.bound


@torch.inference_mode()
def check_integer_path(model: torch.nn.Module, ids: Tensor, labels: Tensor) -> list[LayerCheck]:
    """Replay ids [n, T] with labels [n] and compare all integer linears, each on its own input, and
    attention in integers, whose outputs have to be equal.

    A layer whose output is not finite fails with an infinite error. ValueError if ``model`` has
    no integer linears, or if they are fused with their neighbours.
    """
    layers, cores = (
        {n: module for n, module in model.transformer.named_modules() if isinstance(module, kind)}
        for kind in (PackedLinear, IntAttention)
    )
    if not layers:
        raise ValueError("check_integer_path: the model has no integer linears; quantize_ it first")
    checks: dict[str, LayerCheck] = {}
    kept: dict[str, QuantLinear] = {}
    room = KEPT

    def simulation(name: str, module: PackedLinear) -> QuantLinear:
        nonlocal room
        if name in kept:
            return kept[name]
        made = QuantLinear(module.canonical(), module.cursor).double()
        if model.visits(name) > 1 and made.weight.nbytes <= room:
            room -= made.weight.nbytes
            kept[name] = made
        return made

    def compare(name: str, module: PackedLinear):
        def hook(_module: PackedLinear, args: tuple[Tensor], output: Tensor) -> None:
            kernel = ops.last_kernel()
            x = args[0]
            if torch.int8 in (x.dtype, output.dtype):
                raise ValueError(f"check_integer_path: {name} is fused; call fuse.unfuse_ first")
            exact = simulation(name, module)(x.double())
            note(name, kernel, output, exact, BOUND + torch.finfo(output.dtype).eps)

        return hook

    def note(name: str, kernel: str, output: Tensor, exact: Tensor, bound: float) -> None:
        error = (output.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)
        value = error.item() if bool(torch.isfinite(error)) else float("inf")
        # A layer that runs more than once keeps its worst.
        if name not in checks or value > checks[name].error:
            checks[name] = LayerCheck(name, kernel, value, bound)

    def compare_core(name: str):
        def hook(core: IntAttention, args: tuple[Tensor, ...], output: Tensor) -> None:
            kernel = ops.last_kernel()
            note(name, kernel, output, core.specified(*args).double(), 0.0)

        return hook

    handles = [module.register_forward_hook(compare(n, module)) for n, module in layers.items()]
    handles += [core.register_forward_hook(compare_core(name)) for name, core in cores.items()]
    try:
        model.replay(ids, labels)
    finally:
        for handle in handles:
            handle.remove()
    never = [name for name in (*layers, *cores) if name not in checks]
    if never:
        raise RuntimeError(f"check_integer_path: these layers did not run: {', '.join(never)}")
    return [checks[name] for name in (*layers, *cores)]
