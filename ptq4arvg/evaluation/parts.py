"""Finished batches of images on disk: what ranks leave to one another, and what a run that died
goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..parts import Parts

__all__ = ["ImageParts"]


class ImageParts(Parts):
    """A folder with a file per finished batch, its name the images' indices (see ``Parts``)."""

    format: ClassVar[str] = "ptq4arvg images 1"
    stem: ClassVar[str] = "images"

    def path(self, batch: Tensor) -> Path:
        """The file of the images ``batch``, int64 [n] with even steps between them."""
        first, last, count = int(batch[0]), int(batch[-1]), len(batch)
        return self.file(f"{first:06d}-{last:06d}-{count}")

    def names(self, batch: Tensor) -> set[str]:
        """The names of the tensors of ``batch``."""
        with self.opened(self.path(batch)) as file:
            return set(file.keys())

    def missing(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Those of ``batches`` that are not there."""
        return [batch for batch in batches if not self.path(batch).is_file()]

    def write(self, batch: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Add the tensors [n, ...] of a finished batch."""
        self.put(self.path(batch), tensors)

    def read(self, batches: Sequence[Tensor], name: str) -> Tensor:
        """The tensors ``name`` of all ``batches``, put in the order of the images."""
        found = []
        for batch in batches:
            with self.opened(self.path(batch)) as file:
                found.append(file.get_tensor(name))
        return torch.cat(found)[torch.cat(list(batches)).argsort()]

    def each(self, batches: Sequence[Tensor], name: str) -> Iterator[Tensor]:
        """The rows [1, ...] of the tensors ``name``, in the order of the images, one at a time."""
        at = sorted((int(image), b, i) for b, rows in enumerate(batches)
                    for i, image in enumerate(rows))  # fmt: skip
        for _, b, i in at:
            with self.opened(self.path(batches[b])) as file:
                yield file.get_slice(name)[i : i + 1]
