"""Fusion of packed linears with what surrounds them, where a family declares that it may be done.

Static scales need no reduction over the values that they quantize, so a norm, a gated product or
attention in integers can emit the codes of the one linear that reads it, and a GEMM's epilogue
those of the next linear.
"""

from __future__ import annotations

from torch import nn

from .nn import IntAttention, PackedLinear
from .reference import MAX_EPILOGUE_ROTATION, rotation_fits

__all__ = ["fuse_", "unfuse_"]


def fuse_(model: nn.Module) -> int:
    """Fuse norm -> linear, gated product -> linear, integer attention -> linear and linear ->
    activation -> linear in place; returns how many of them.

    Uses the specs' ``norm``, ``gated`` and ``core`` (what feeds only this linear) and ``act`` (the
    activation between it and the linear ``consumer``). A linear that computes sink positions from
    float inputs, or that stays in float, is not fused.
    """
    root, fused = model.transformer, 0
    model.graphs.drop()
    for spec in model.linears():
        linear = root.get_submodule(spec.name)
        if not isinstance(linear, PackedLinear) or linear.sink:
            continue
        if spec.norm:
            root.get_submodule(spec.norm).quantizer = linear.quantize_norm
            fused += 1
        if spec.gated:
            root.get_submodule(spec.gated).quantizer = linear.quantize_gated
            fused += 1
        core = root.get_submodule(spec.core) if spec.core else None
        # No epilogue rotates wider blocks, or across heads: the linear then quantizes by itself.
        if isinstance(core, IntAttention) and rotation_fits(
            linear.rotation, core.size, MAX_EPILOGUE_ROTATION
        ):
            core.quantizer = linear.quantize_attention
            fused += 1
        consumer = root.get_submodule(spec.consumer) if spec.act else None
        if isinstance(consumer, PackedLinear) and not consumer.sink:
            act = root.get_submodule(spec.act)
            fits = consumer.rotation <= MAX_EPILOGUE_ROTATION
            linear.fuse(act.name, consumer if fits else None)
            act.fused = True
            fused += 1
    _fix_constants_(root, True)
    return fused


def _fix_constants_(root: nn.Module, fixed: bool) -> None:
    """Have modules compute what depends on weights alone now, or again at every call."""
    for module in root.modules():
        if hasattr(module, "fix_constants_"):
            module.fix_constants_(fixed)


def unfuse_(model: nn.Module) -> None:
    """Undo ``fuse_``: every packed linear takes and gives floating point values again."""
    root = model.transformer
    model.graphs.drop()
    _fix_constants_(root, False)
    for spec in model.linears():
        linear = root.get_submodule(spec.name)
        if isinstance(linear, PackedLinear):
            linear.fuse("none", None)
        for source in filter(None, (spec.norm, spec.gated, spec.core)):
            root.get_submodule(source).quantizer = None
        if spec.act:
            root.get_submodule(spec.act).fused = False
