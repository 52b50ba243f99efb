"""PyTorch's own CUDA kernels as its CPU kernels, on a device whose memory is the host's.

With the PTX interpreter (``ptx``) in the place of CUDA's runtime library, our kernels run as nvcc
compiled them. PyTorch's are there as machine code only, which nothing here can run: while HostAten
is entered, its operators run on the CPU, on the same memory. What a stream captures is recorded,
and replayed in its place among our kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# These only say where elements are.
NATIVE = ("aten::empty", "aten::empty_strided", "aten::set_")
# Numbers, or shapes that depend on numbers: whoever asks waits for the device.
WAITING = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def on_host(tensor: Tensor) -> Tensor:
    """The same elements, in the same memory, as a CPU tensor."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    buffer = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    host = torch.from_numpy(np.frombuffer(buffer, dtype=np.uint8)).untyped_storage()
    made = torch.empty(0, dtype=tensor.dtype)
    return made.set_(host, tensor.storage_offset(), tensor.shape, tensor.stride())


def is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, Tensor | torch.Generator) and value.device.type == "cuda"


def as_rows(value: Any) -> Any:
    """A tensor that is no matrix and has gaps, without them."""
    gaps = isinstance(value, Tensor) and value.dim() > 2 and not value.is_contiguous()
    return value.contiguous() if gaps else value


class HostAten(TorchDispatchMode):
    """PyTorch's operators on CUDA tensors are those of the CPU; ours are left as they are."""

    def __init__(self) -> None:
        super().__init__()
        self._failed: list[BaseException] = []  # in a replay, whose caller is C
        self._recorded: list[Any] = []  # functions that graphs call, which would be freed otherwise
        self._generators: dict[int, torch.Generator] = {}
        self._runtime = ctypes.CDLL(None)
        # Attention by matrix products, which a CPU has, too.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._failed:
            raise self._failed.pop()
        if not any(map(is_cuda, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        if func.namespace == "ptq4arvg":
            with self:  # else the operator would have PyTorch's kernel do it
                args, kwargs = tree_map(as_rows, (args, kwargs))
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode does not take these apart
                return func.decompose(*args, **kwargs)
        if func.is_view or func._schema.name in NATIVE:
            return func(*args, **kwargs)
        return self._run(func, args, kwargs)

    def _run(self, func, args, kwargs):
        moved: list[tuple[Tensor, Tensor]] = []  # (host tensor, CUDA tensor)

        def move(value):
            if not is_cuda(value):
                return value
            if isinstance(value, torch.device):
                return torch.device("cpu")
            if isinstance(value, torch.Generator):
                return self._generator(value)
            moved.append((on_host(value), value))
            return moved[-1][0]

        to = torch.device(kwargs.get("device") or "cuda")
        if to.type == "cpu" or func._schema.name in WAITING:
            torch.cuda.current_stream().synchronize()
        args, kwargs = tree_map(move, args), tree_map(move, kwargs)
        if not torch.cuda.is_current_stream_capturing():
            return tree_map(lambda out: self._back(out, moved, to), func(*args, **kwargs))
        return self._capture(func, args, kwargs, moved, to)

    def _capture(self, func, args, kwargs, moved, to):
        """Make the outputs, but their values only when the graph is replayed."""
        memory = [host.untyped_storage() for host, _ in moved]
        before = [each.clone() for each in memory]
        outputs = func(*args, **kwargs)
        for each, was in zip(memory, before, strict=True):
            each.copy_(was)
        hosts = [host for host, _ in moved]

        def new(results) -> list[Tensor]:
            tensors = [each for each in tree_leaves(results) if isinstance(each, Tensor)]
            return [each for each in tensors if not any(each is host for host in hosts)]

        results = tree_map(lambda out: self._back(out, moved, to), outputs)
        made = [each for each in tree_leaves(results) if isinstance(each, Tensor)]
        made = [on_host(each) for each in made if not any(each is given for _, given in moved)]

        def replay() -> None:
            for value, place in zip(new(func(*args, **kwargs)), made, strict=True):
                place.copy_(value)

        self._record(replay)
        return results

    @staticmethod
    def _back(out, moved, to):
        """What the caller gets for an output: an argument written in place, or a new tensor."""
        if not isinstance(out, Tensor):
            return out
        for host, given in moved:
            if out is host:
                return given
        if to.type == "cpu":
            return out
        made = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=to)
        on_host(made).copy_(out)
        return made

    def _generator(self, generator: torch.Generator) -> torch.Generator:
        host = self._generators.get(id(generator))
        if host is None or host.initial_seed() != generator.initial_seed():
            host = torch.Generator().manual_seed(generator.initial_seed())
            self._generators[id(generator)] = host
        return host

    def _record(self, work: Callable[[], None]) -> None:
        def call(_) -> None:
            try:
                work()
            except BaseException as error:  # raised by the next operator
                self._failed.append(error)

        function = HOST_FUNCTION(call)
        self._recorded.append(function)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = self._runtime.cudaLaunchHostFunc(stream, function, None)
        if error:
            raise RuntimeError(f"cudaLaunchHostFunc: error {error}")
