"""Plain data, written the same way every time, and files that are whole or not there."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "check_writable", "plain", "pretty_json", "write_file"]


def plain(value: Any) -> Any:
    """``value`` as what JSON knows: dataclasses and mappings become dicts, tensors and tuples
    lists, numbers that are not finite None. TypeError for anything else."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(v) for v in items]
    if hasattr(value, "tolist"):  # tensors and arrays
        return plain(value.tolist())
    raise TypeError(f"cannot be written as JSON: {value!r} of type {type(value).__name__}")


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``, for hashing: sorted keys, no spaces."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def pretty_json(value: Any) -> str:
    """JSON to read, keys in their given order, ending in a newline."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def check_writable(path: str | Path, folder: bool = True) -> None:
    """ValueError where a file, or a folder, cannot be written to ``path``; before what it is to
    hold is computed."""
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        wanted = "folder" if folder else "file"
        there = "file" if folder else "folder"
        raise ValueError(f"{path} is a {there}; wanted the name of a {wanted}")
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "cannot be written to" if above.is_dir() else "is a file"
        raise ValueError(f"{path} cannot be made: {above} {why}")


def write_file(path: str | Path, data: str | bytes) -> Path:
    """Write a file under a temporary name beside it and rename it: never half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
