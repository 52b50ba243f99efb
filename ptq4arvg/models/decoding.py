"""Decoding with caches, step by step: eagerly, or by captured steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..graphs import CapturedSteps, EagerSteps

if TYPE_CHECKING:
    from .base import ARVGModel

__all__ = ["anywhere", "decoding", "stepping"]

Steps = EagerSteps | CapturedSteps

_BUSY: set[int] = set()  # models that decode
_BUSY_LOCK = threading.Lock()


@contextmanager
def _alone(model: ARVGModel) -> Iterator[None]:
    """RuntimeError where the model decodes already: two would share its cursor and caches."""
    with _BUSY_LOCK:
        if id(model) in _BUSY:
            raise RuntimeError(
                f"{model.name}: it generates already, in another thread, and a model does one "
                "thing at a time; wait for it, or give every thread its own: copy.deepcopy(model)"
            )
        _BUSY.add(id(model))
    try:
        yield
    finally:
        _BUSY.discard(id(model))


@contextmanager
def stepping(model: ARVGModel, rows: int, like: Tensor, graphs: bool) -> Iterator[Steps]:
    """What runs the steps of ``rows`` rows in dtype and on the device of ``like``, captured if
    ``graphs``. ValueError where no step can be captured, RuntimeError within another one of the
    same model."""
    with _alone(model):
        if not graphs:
            yield EagerSteps()
            return
        net = model.transformer
        positions = (cursor.position for cursor in model.cursors)
        yield model.graphs.open(rows, like, (*net.parameters(), *net.buffers(), *positions))


def _caches(
    steps: Steps, attentions: list[nn.Module], shape: tuple[int, int, int, int], like: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """A cache for every attention, all of the kind of the first; shape: [B, H, T, d]."""
    core = attentions[0].core
    like = like.new_empty(0, dtype=core.cache_dtype)
    keys, values = (
        steps.buffers(kind, len(attentions), own, like)
        for kind, own in zip(("keys", "values"), core.cache_shapes(*shape), strict=True)
    )
    return list(zip(keys, values, strict=True))


@contextmanager
def decoding(model: ARVGModel, rows: int, like: Tensor, graphs: bool) -> Iterator[Steps]:
    """``stepping``; within, every attention has a cache on the device of ``like``, in its dtype or
    of int8 codes."""
    c, net = model.config, model.transformer
    attentions = [net.get_submodule(core.rpartition(".")[0]) for core in model.attention_cores()]
    shape = rows, c.num_heads, model.positions, c.embed_dim // c.num_heads
    with stepping(model, rows, like, graphs) as steps:
        caches = _caches(steps, attentions, shape, like) if attentions else []
        try:
            for attention, cache in zip(attentions, caches, strict=True):
                attention.cache = cache
            yield steps
        finally:
            for attention in attentions:
                attention.cache = None


def anywhere(model: ARVGModel, steps: Steps) -> Callable[..., Tensor]:
    """``steps.run`` for steps that are captured once for all positions of the cursor.

    Positions up to the last one that a linear computes from float inputs run eagerly: which of a
    step's rows these are would be fixed in a captured one.
    """
    if not steps.captured:
        return steps.run
    cursor, length = model.cursor, model.positions
    sinks = [s for module in model.transformer.modules() for s in getattr(module, "sink", ())]
    if sinks:
        model.graphs.eager = f"positions to {max(sinks)}: some are computed from float inputs"

    def run(name: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if cursor.begin <= max(sinks, default=-1):
            return function(*inputs)

        def on_device(*fixed: Tensor) -> Tensor:
            with cursor.on_device(length, fixed[0].dtype):
                return function(*fixed)

        return steps.run(name, on_device, *inputs)

    return run
