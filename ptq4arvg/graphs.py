"""Decoding steps as CUDA graphs: captured once, then replayed on new inputs in the same memory.

A captured step reads and writes fixed memory only: buffers that its inputs are copied to, caches,
the weights, and the cursor's position. Nothing in it may wait for the device or take numbers from
the host: what it computes in Python is computed once. Drawing tokens happens between the steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Backend", "CapturedSteps", "CudaBackend", "EagerSteps", "StepGraphs"]

WARM_UP = 2  # runs before a capture, in which libraries choose kernels and take their workspaces


class Backend(Protocol):
    """What captures and replays. device: the type of device that it works on."""

    device: str

    def pool(self) -> Any:
        """Memory that the steps of one batch size share."""

    def capture(
        self, function: Callable[[], Any], device: torch.device, pool: Any
    ) -> tuple[Callable[[], None], Any]:
        """(replay, what ``function`` returned): replaying writes the same tensors anew. function
        is called several times, which has to do the same as once."""


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for all captures, since cuBLAS keeps a workspace for every stream that it has seen.
    return torch.cuda.Stream(device)


class CudaBackend:
    """CUDA graphs, captured on a side stream and replayed on the current one."""

    device = "cuda"

    def pool(self) -> Any:
        """See ``Backend``."""
        return torch.cuda.graph_pool_handle()

    def capture(
        self, function: Callable[[], Any], device: torch.device, pool: Any
    ) -> tuple[Callable[[], None], Any]:
        """See ``Backend``."""
        with torch.cuda.device(device):
            here, side = torch.cuda.current_stream(), _side_stream(device)
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function()
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device.
            with torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"):
                outputs = function()
        return graph.replay, outputs


@dataclass
class _Step:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    outputs: Any
    replays: int = 0


class EagerSteps:
    """Runs every step as it is, in memory of its own."""

    captured = False

    def buffers(self, kind: str, count: int, shape: Sequence[int], like: Tensor) -> list[Tensor]:
        """``count`` tensors of a shape, in the dtype and on the device of ``like``, not set."""
        return [like.new_empty(shape) for _ in range(count)]

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """``function(*inputs)``."""
        return function(*inputs)


class CapturedSteps:
    """Steps that were captured for one batch size and dtype, the buffers and memory they share."""

    captured = True

    def __init__(self, backend: Backend, device: torch.device) -> None:
        self.backend, self.device, self.pool = backend, device, backend.pool()
        self.steps: dict[str, _Step] = {}
        self._buffers: dict[str, list[Tensor]] = {}

    def buffers(self, kind: str, count: int, shape: Sequence[int], like: Tensor) -> list[Tensor]:
        """As of ``EagerSteps``, but zero, and the same memory at every call for that kind."""
        if kind not in self._buffers:
            self._buffers[kind] = [like.new_empty(shape) for _ in range(count)]
        # What a mask hides is multiplied by zero, so it has to be finite.
        for buffer in self._buffers[kind]:
            buffer.zero_()
        return self._buffers[kind]

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """What ``function(*inputs)`` returns, captured at the first call for that name.

        It holds until the same step, or one that was captured before it, runs again. RuntimeError
        for a function that cannot be captured, ValueError for inputs unlike the first ones.
        """
        step = self.steps.get(name)
        if step is None:
            fixed = tuple(t.clone(memory_format=torch.contiguous_format) for t in inputs)
            step = self.steps[name] = self._capture(name, function, fixed)
        for fixed, given in zip(step.inputs, inputs, strict=True):
            if (fixed.shape, fixed.dtype) != (given.shape, given.dtype):
                raise ValueError(
                    f"step {name!r}: {given.dtype} {list(given.shape)}; it was captured for "
                    f"{fixed.dtype} {list(fixed.shape)}"
                )
            fixed.copy_(given)
        step.replay()
        step.replays += 1
        return step.outputs

    def _capture(self, name: str, function: Callable[..., Any], fixed: tuple[Tensor, ...]) -> _Step:
        try:
            captured = self.backend.capture(lambda: function(*fixed), self.device, self.pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"step {name!r} cannot be captured: {error}\nWith graphs=False it runs eagerly."
            ) from error
        return _Step(fixed, *captured)


class StepGraphs:
    """The captured steps of one model, ``model.graphs``.

    Batches of different sizes (rows, twice the images under guidance) have graphs, caches and
    buffers of their own; those of the ``keep`` sizes used last stay, caches included. ``keep`` can
    be changed at any time. All go when the model moves, changes its dtype or gets other weights or
    layers. eager: why the last call of ``generate`` ran eagerly, or which positions of it did; ""
    if none.
    """

    def __init__(self, backend: Backend | None = None, keep: int = 2) -> None:
        self.backend = backend or CudaBackend()
        self.keep, self.eager = keep, "nothing was generated yet"
        self._sizes: dict[Hashable, CapturedSteps] = {}  # least recently used first
        self._stamp: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model has weights of its own.
        return StepGraphs, (self.backend, self.keep)

    def __repr__(self) -> str:
        lines = [
            f"{rows} rows, {str(dtype).removeprefix('torch.')}: "
            + ", ".join(f"{name} ({replays} replays)" for name, replays in steps.items())
            for (rows, dtype), steps in self.captured.items()
        ]
        eager = [f"eager: {self.eager}"] if self.eager else []
        return "\n".join([*(lines or ["no captured steps"]), *eager])

    @property
    def captured(self) -> dict[Any, dict[str, int]]:
        """(rows, dtype) -> name of each captured step -> how often it was replayed."""
        return {
            size: {name: step.replays for name, step in held.steps.items()}
            for size, held in self._sizes.items()
        }

    def refusal(self, device: torch.device) -> str:
        """Why steps on ``device`` cannot be captured; "" if they can."""
        if device.type == self.backend.device:
            return ""
        return f"the model is on {device}, and graphs need a {self.backend.device} device"

    def open(self, rows: int, like: Tensor, sources: Iterable[Tensor]) -> CapturedSteps:
        """The steps of batches of ``rows`` rows in dtype and on the device of ``like``.

        sources: all tensors that the steps read at their addresses: if one of them is another than
        it was, everything is captured anew. ValueError on a device without graphs.
        """
        if why := self.refusal(like.device):
            raise ValueError(f"no captured steps: {why}")
        stamp = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in sources)
        if stamp != self._stamp:
            self.drop()
            self._stamp = stamp
        size = rows, like.dtype
        steps = self._sizes.pop(size, None)
        while self._sizes and len(self._sizes) >= max(self.keep, 1):
            del self._sizes[next(iter(self._sizes))]
        if steps is None:
            steps = CapturedSteps(self.backend, like.device)
        self._sizes[size] = steps
        return steps

    def drop(self) -> None:
        """Forget everything captured, and free its memory."""
        self._sizes, self._stamp = {}, ()
