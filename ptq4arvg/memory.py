"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["return_freed_memory"]


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return None


def return_freed_memory() -> None:
    """Let the heap give its free pages back, where the C library can.

    Large temporaries of many sizes leave a heap in pieces that it keeps: loading a 6-bit VAR-d16
    would otherwise hold twice the memory of the model.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
