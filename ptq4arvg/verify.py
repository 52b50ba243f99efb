"""Checking a quantized model: every integer layer against its simulation in double precision, and
attention and convolutions in integers against their specifications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .models.convolutions import packed_convolutions
from .nn import IntAttention, PackedConv2d, PackedLinear, QuantLinear

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


class _Compared:
    """The operators of attention, each of which has to give what its specification gives."""

    def __init__(self, name: str, note: Callable[..., None]) -> None:
        self._name, self._note = name, note

    def _compare(self, op: str, args: tuple, options: dict, written: slice) -> Any:
        copies = [arg.clone() for arg in args[written]]
        wanted = getattr(ops.reference_attention, op)(
            *args[: written.start], *copies, *args[written.stop :], **options
        )
        found = getattr(ops, op)(*args, **options)
        kernel = ops.last_kernel()
        pairs = [(found, wanted)] if isinstance(found, Tensor) else []
        for mine, exact in (*pairs, *zip(args[written], copies, strict=True)):
            self._note(self._name, kernel, mine, exact.double(), 0.0)
        return found

    def store_kv(self, *args: Tensor, **options: Any) -> None:
        self._compare("store_kv", args, options, slice(2, 4))  # k, v, the cache

    def store_qkv(self, *args: Tensor, **options: Any) -> Tensor:
        return self._compare("store_qkv", args, options, slice(1, 3))  # qkv, the cache

    def attention(self, *args: Tensor, **options: Any) -> Tensor:
        return self._compare("attention", args, options, slice(1, 1))


class _ComparedConvolution:
    """The operators of one convolution, likewise; what its specification reads is made anew from
    the convolution's canonical form."""

    def __init__(self, name: str, module: PackedConv2d, note: Callable[..., None]) -> None:
        self._name, self._note, self._q = name, note, module.canonical()

    def quantize_map(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        found, kernel = ops.quantize_map(x, *args, **options), ops.last_kernel()
        q = self._q
        wanted = ops.reference_map.quantize_map(
            x, 1.0 / q.input_scale, q.input_zero, q.a_bits, **options
        )
        self._note(self._name, kernel, found, wanted.double(), 0.0)
        return found

    def conv2d(self, a: Tensor, *args: Any, **options: Any) -> Tensor:
        found, kernel = ops.conv2d(a, *args, **options), ops.last_kernel()
        q = self._q
        weight = ops.reference.pack_weight(q.codes, q.w_zero, q.w_bits)
        zero = q.input_zero - 128 if q.a_bits == 8 else None
        wanted = ops.reference_map.conv2d(
            a, weight, q.input_scale, q.w_scale, zero, None, q.w_zero, q.bias, **options
        )
        self._note(self._name, kernel, found, wanted.double(), 0.0)
        return found


@torch.inference_mode()
def check_integer_path(model: torch.nn.Module, ids: Tensor, labels: Tensor) -> list[LayerCheck]:
    """Replay ids [n, T] with labels [n] and compare all integer linears, each on its own input, and
    attention in integers, whose outputs have to be equal; so do those of convolutions in integers,
    for the first of the images.

    ids: as ``sample_rows`` gives them.

    A layer whose output is not finite fails with an infinite error. ValueError if ``model`` has
    no integer linears, or if they are fused with their neighbours.
    """
    layers, cores = (
        {n: module for n, module in model.transformer.named_modules() if isinstance(module, kind)}
        for kind in (PackedLinear, IntAttention)
    )
    convolutions = {
        f"tokenizer.{name}": module for name, module in packed_convolutions(model.tokenizer).items()
    }
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
        # A layer that runs more than once keeps its worst, and of equals the last.
        if name not in checks or value >= checks[name].error:
            checks[name] = LayerCheck(name, kernel, value, bound)

    handles = [module.register_forward_hook(compare(n, module)) for n, module in layers.items()]
    for name, core in cores.items():
        core.operators = _Compared(name, note)
    for name, conv in convolutions.items():
        conv.operators = _ComparedConvolution(name, conv, note)
    try:
        model.replay(ids, labels)
        if convolutions:
            model.decode_rows(ids[:1].to(model.cursor.position.device))
    finally:
        for handle in handles:
            handle.remove()
        for module in (*cores.values(), *convolutions.values()):
            del module.operators
    names = (*layers, *cores, *convolutions)
    never = [name for name in names if name not in checks]
    if never:
        raise RuntimeError(f"check_integer_path: these layers did not run: {', '.join(never)}")
    return [checks[name] for name in names]
