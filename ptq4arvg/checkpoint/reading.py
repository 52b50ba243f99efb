"""A safetensors file read tensor by tensor, so that no more than one is in memory twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["Section", "TensorFile"]


class TensorFile(Mapping[str, Tensor]):
    """Name -> tensor; every access reads a copy of its own, and nothing stays mapped.

    ValueError if the file is missing or is no whole safetensors file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing; copy the checkpoint again")
        try:
            with safe_open(self.path, "pt") as file:
                self._names = tuple(file.keys())
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is truncated or no safetensors file ({error}); copy the checkpoint "
                "again"
            ) from None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        # Opened anew each time: what a handle has read stays mapped as long as it is open.
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Section(Mapping[str, Tensor]):
    """The tensors of ``source`` under ``prefix`` that are in ``names``, without the prefix."""

    def __init__(self, source: Mapping[str, Tensor], prefix: str, names: set[str]) -> None:
        self._source, self._prefix = source, prefix
        self._names = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)
