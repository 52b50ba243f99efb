"""Writing a folder all at once: it appears complete under its name, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["replaceable", "write_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What a rename says of a name that is taken.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


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


def replaceable(folder: str | Path) -> Path:
    """The folder that ``folder`` leads to, links followed to their end, whether it is there or not.

    ValueError where a new one cannot take its place.
    """
    real = Path(os.path.realpath(folder))
    why = ""
    if real.is_symlink():
        why = "is a link that leads to itself"
    elif os.path.ismount(real):
        why = "is where a file system is mounted, and cannot be replaced"
    elif real.exists() and real.samefile(os.curdir):
        why = "is the current folder, and cannot be replaced while it is"
    if why:
        example = Path(folder, "quantized") if real.is_dir() else "quantized"
        raise ValueError(f"{folder} {why}; wanted the name of another folder, such as {example}")
    return real


def write_folder(folder: Path, write: Callable[[Path], None], replace: bool = False) -> None:
    """Let ``write`` fill a temporary sibling of ``folder``, then give it that name.

    A link is followed, and what it leads to is written. With ``replace`` an existing folder gives
    way in one step; an empty one always does. Whatever goes wrong, including the loss of power,
    ``folder`` is what it was before or complete. FileExistsError if it was filled meanwhile and is
    not to be replaced.
    """
    folder = replaceable(folder)
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
            try:
                os.rename(temporary, folder)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                raise FileExistsError(
                    f"{folder} is not empty any more: it was written to meanwhile, and is left as "
                    "it is. Give another folder"
                ) from None
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
