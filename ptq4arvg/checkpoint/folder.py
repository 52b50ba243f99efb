"""Writing a folder all at once: it appears complete under its name, or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _sync(path: Path) -> None:
    """Make what was written to a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = os.fsencode(first), os.fsencode(second)
    return renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


def write_folder(folder: Path, write: Callable[[Path], None], replace: bool = False) -> None:
    """Let ``write`` fill a temporary sibling of ``folder``, then give it that name.

    With ``replace`` an existing folder gives way in one step; an empty one always does. Whatever
    goes wrong, including the loss of power, ``folder`` is what it was before or complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        write(temporary)
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        if replace and folder.exists():
            if not _exchange(temporary, folder):
                aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
                os.rename(folder, aside)
                os.rename(temporary, folder)
                shutil.rmtree(aside)
        else:
            os.rename(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
