"""Finished batches of images on disk: what ranks leave to one another, and what a run that died
goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..serialize import canonical_json, write_file

__all__ = ["Parts"]

FORMAT = "ptq4arvg images 1"


class Parts:
    """A folder with a safetensors file per finished batch, its name the images' indices.

    A file is there whole or not at all. settings: all that the batches depend on; every file
    carries them. ValueError if the folder holds batches of other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = {"format": FORMAT} | {k: canonical_json(v) for k, v in settings.items()}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._check(path)

    def path(self, batch: Tensor) -> Path:
        """The file of the images ``batch``, int64 [n] with even steps between them."""
        first, last, count = int(batch[0]), int(batch[-1]), len(batch)
        return self.folder / f"images-{first:06d}-{last:06d}-{count}.safetensors"

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, "pt") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it") from None

    def _check(self, path: Path) -> None:
        with self._open(path) as file:
            there = file.metadata() or {}
        for name, value in self.settings.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{path} is of {name} {there.get(name)}, not {value}, so this run cannot go on "
                    "from it. Delete its folder, or choose another one with --parts"
                )

    def names(self, batch: Tensor) -> set[str]:
        """The names of the tensors of ``batch``."""
        with self._open(self.path(batch)) as file:
            return set(file.keys())

    def missing(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Those of ``batches`` that are not there."""
        return [batch for batch in batches if not self.path(batch).is_file()]

    def write(self, batch: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Add the tensors [n, ...] of a finished batch."""
        own = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_file(self.path(batch), save(own, self.settings))

    def read(self, batches: Sequence[Tensor], name: str) -> Tensor:
        """The tensors ``name`` of all ``batches``, put in the order of the images."""
        found = []
        for batch in batches:
            with self._open(self.path(batch)) as file:
                found.append(file.get_tensor(name))
        return torch.cat(found)[torch.cat(list(batches)).argsort()]

    def each(self, batches: Sequence[Tensor], name: str) -> Iterator[Tensor]:
        """The rows [1, ...] of the tensors ``name``, in the order of the images, one at a time."""
        at = sorted((int(image), b, i) for b, rows in enumerate(batches)
                    for i, image in enumerate(rows))  # fmt: skip
        for _, b, i in at:
            with self._open(self.path(batches[b])) as file:
                yield file.get_slice(name)[i : i + 1]

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the batches in ``folder``, whole and half ones, and it if it is then empty."""
        for path in [*folder.glob("images-*.safetensors"), *folder.glob(".images-*.tmp")]:
            path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
