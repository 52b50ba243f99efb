"""Giving memory back to the system: freed memory, and the pages of weights mapped from a file."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["release_mapped", "return_freed_memory"]

# Of an entry of /proc/self/pagemap.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


@functools.cache
def _libc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return None


def return_freed_memory() -> None:
    """Let the heap give its free pages back, where the C library can.

    Large temporaries of many sizes leave a heap in pieces that it keeps: loading a 6-bit VAR-d16
    would otherwise hold twice the memory of the model.
    """
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def release_mapped(tensors: Iterable[Tensor]) -> int:
    """Give back the resident pages of ``tensors`` that are as a mapped file has them.

    Reading them again brings them back. Memory that is no file's stays, and so do pages of a
    private mapping that were written to, by whatever way: the system tells them apart. Returns the
    bytes given back; 0 where the system does not tell (it takes Linux). No other thread may write
    to the tensors meanwhile.
    """
    madvise, dont_need = _libc("madvise"), getattr(mmap, "MADV_DONTNEED", None)
    if madvise is None or dont_need is None:
        return 0
    released = 0
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for tensor in tensors:
                if tensor.device.type == "cpu" and tensor.numel():
                    released += _release(pagemap, tensor, madvise, dont_need)
    except OSError:
        pass
    return released


def _release(pagemap: Any, tensor: Tensor, madvise: Callable[..., int], advice: int) -> int:
    size, start = mmap.PAGESIZE, tensor.data_ptr()
    first, end = start // size, -(-(start + tensor.nbytes) // size)  # weights are contiguous
    pagemap.seek(8 * first)
    entries = np.frombuffer(pagemap.read(8 * (end - first)), np.uint64)
    resident = (entries & (_PRESENT | _OF_FILE)) == _PRESENT | _OF_FILE
    if not resident.any():
        return 0
    # What was written to is in memory or in swap, but no page of the file any more.
    written = ((entries & _PRESENT != 0) & ~resident) | (entries & _SWAPPED != 0)
    edges = np.flatnonzero(np.diff(np.r_[True, written, True]))
    for begin, stop in edges.reshape(-1, 2).tolist():
        address, length = (first + begin) * size, (stop - begin) * size
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(advice))
    return int(resident.sum()) * size
