"""CUDA graphs played on the CPU: a backend that records operators and repeats them.

As on the device, Python runs once, at the capture: every number and address in it stays what it
was then, results are written to the same memory, and what would need the host is refused.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Waiting for a value of the device, and copying one to it.
HOST = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default,
    aten.lift_fresh.default, aten.is_nonzero.default, aten.item.default,
}  # fmt: skip


def _storages(values):
    return {t.untyped_storage().data_ptr() for t in tree_leaves(values)
            if isinstance(t, torch.Tensor)}  # fmt: skip


class Tape(TorchDispatchMode):
    """Records the operators that run within it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in HOST:
            raise RuntimeError(f"{function} in a captured step")
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, outputs))
        return outputs

    def replay(self):
        """Repeat all operators, on the same tensors and into the same ones."""
        for function, args, kwargs, outputs in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                # A view, or an argument that was written to, is up to date.
                if isinstance(new, torch.Tensor) and not _storages(old) & _storages(new):
                    old.copy_(new)


class TapeBackend:
    """See ``ptq4arvg.graphs.Backend``. captures: how many there were."""

    device = "cpu"

    def __init__(self):
        self.captures = 0

    def pool(self):
        return None

    def capture(self, function, device, pool):
        self.captures += 1
        for _ in range(2):  # a step may run more than once before it is captured
            function()
        with Tape() as tape:
            outputs = function()
        for tensor in tree_leaves(outputs):
            tensor.fill_(torch.nan)  # a captured graph has not run yet
        return tape.replay, outputs


class DirectBackend(TapeBackend):
    """Calls the function again instead of repeating what was recorded."""

    def capture(self, function, device, pool):
        outputs = function()
        return (lambda: self.copy(function(), outputs)), outputs

    def copy(self, source, target):
        for new, old in zip(*map(tree_leaves, (source, target)), strict=True):
            old.copy_(new)
