"""Images as the evaluator of guided diffusion (ADM) reads them: ``arr_0`` uint8 [N, H, W, 3].

Files are written and read in batches: 50 000 images of 256 pixels take 10 GB.
"""

from __future__ import annotations

import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SampleFile", "SampleWriter", "resize_bicubic", "to_bytes"]

_MEMBER = "arr_0.npy"
_CHANNELS = 3


def resize_bicubic(images: Tensor, side: int) -> Tensor:
    """Images [n, 3, H, W] in [0, 1] resized to ``side`` squared, as LlamaGen and PAR do before
    they are measured: bicubic, not smoothed first. Images of that size are left alone."""
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images.float(), size=(side, side), mode="bicubic").clamp(0, 1)


def to_bytes(images: Tensor) -> Tensor:
    """Images [n, 3, H, W] in [0, 1] -> uint8 [n, H, W, 3] on the CPU, rounded to the nearest."""
    if images.ndim != 4 or images.shape[1] != _CHANNELS:
        raise ValueError(
            f"to_bytes: images have shape {list(images.shape)}; wanted [n, 3, H, W] in [0, 1]"
        )
    levels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu()


class SampleWriter:
    """Writes ``count`` images of ``height`` x ``width`` pixels, batch by batch; a context manager.

    The file is there, whole, when the context ends, and not at all if an error ends it. ValueError
    for images of another size, or for more or fewer of them.
    """

    def __init__(self, path: str | Path, count: int, height: int, width: int) -> None:
        self.path, self.count, self.shape = Path(path), count, (height, width, _CHANNELS)
        self.written = 0

    def __enter__(self) -> SampleWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{self.path.name}.{secrets.token_hex(4)}.tmp"
        self._temporary = self.path.with_name(name)
        self._zip = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED, allowZip64=True)
        # The default date of the format: equal images make equal files.
        self._member = self._zip.open(zipfile.ZipInfo(_MEMBER), "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._member, header)
        return self

    def write(self, images: Tensor) -> None:
        """Add images uint8 [n, H, W, 3]."""
        wanted = ", ".join(map(str, self.shape))
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"{self.path}: images are {images.dtype} {list(images.shape)}; wanted torch.uint8 "
                f"[n, {wanted}]"
            )
        self.written += len(images)
        if self.written > self.count:
            raise ValueError(f"{self.path}: more than the {self.count} images it was opened for")
        self._member.write(images.contiguous().cpu().numpy().data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._member.close()
            self._zip.close()
            if kind is None:
                if self.written < self.count:
                    raise ValueError(
                        f"{self.path}: {self.written} images were written; wanted {self.count}"
                    )
                with open(self._temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class SampleFile:
    """The images of an ``.npz``: ``len(file)``, ``shape`` [N, H, W, 3], and ``batches``.

    ValueError if ``path`` holds no ``arr_0`` of such images. Nothing in it is executed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {str(path)!r}; wanted samples as .npz with arr_0")
        with self._open() as member:
            self.shape = self._header(member)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(_MEMBER) as member:
                yield member
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise ValueError(
                f"{str(self.path)!r} is no file of samples: {error}; wanted an .npz with the "
                "images as arr_0"
            ) from None

    def _header(self, member: IO[bytes]) -> tuple[int, ...]:
        try:
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0}.get(version)  # fmt: skip
            header = read and read(member)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: arr_0 is broken ({error}); wanted images as np.savez writes them"
            ) from None
        if header is None:
            raise ValueError(f"{self.path}: arr_0 has format version {version}; wanted 1.0 or 2.0")
        shape, fortran, dtype = header
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != _CHANNELS:
            raise ValueError(
                f"{self.path}: arr_0 is {dtype} {list(shape)}; wanted uint8 [N, H, W, 3]"
            )
        if fortran:
            raise ValueError(
                f"{self.path}: arr_0 is in Fortran order; wanted C order, image by image. Type "
                "np.savez(path, np.ascontiguousarray(images))"
            )
        return shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int = 64) -> Iterator[Tensor]:
        """The images in turn, uint8 [at most size, H, W, 3]."""
        one = int(np.prod(self.shape[1:]))
        with self._open() as member:
            self._header(member)
            for begin in range(0, len(self), size):
                count = min(size, len(self) - begin)
                data = member.read(count * one)
                if len(data) != count * one:
                    raise ValueError(f"{self.path}: arr_0 ends after {begin} of {len(self)} images")
                yield torch.frombuffer(bytearray(data), dtype=torch.uint8).view(
                    count, *self.shape[1:]
                )
