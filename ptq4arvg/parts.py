"""Finished pieces of a long run on disk: what a run that died goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .serialize import canonical_json, write_file

__all__ = ["Parts"]


class Parts:
    """A folder with a safetensors file per finished piece; subclasses say of what.

    A file is there whole or not at all. settings: all that the pieces depend on; every file
    carries them. ValueError if the folder holds pieces of other settings, or a file is damaged.
    """

    format: ClassVar[str]  # of the files
    stem: ClassVar[str]  # how their names begin

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = {"format": self.format} | {
            k: canonical_json(v) for k, v in settings.items()
        }
        for path in sorted(self.folder.glob("*.safetensors")):
            if not path.name.startswith(f"{self.stem}-"):
                raise ValueError(
                    f"{path} is no part of an interrupted run, so its folder is left as it is. "
                    "Choose another one with --parts"
                )
            self._check(path)

    def file(self, name: str) -> Path:
        """The file of the piece ``name``."""
        return self.folder / f"{self.stem}-{name}.safetensors"

    @contextmanager
    def opened(self, path: Path) -> Iterator[Any]:
        """A file to read. ValueError if it is damaged."""
        try:
            with safe_open(path, "pt") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it") from None

    def _check(self, path: Path) -> None:
        with self.opened(path) as file:
            there = file.metadata() or {}
        for name, value in self.settings.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{path} is of {name} {there.get(name)}, not {value}, so this run cannot go on "
                    "from it. Delete its folder, or choose another one with --parts"
                )

    def put(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Add the file of a finished piece."""
        own = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_file(path, save(own, self.settings))

    @classmethod
    def remove(cls, folder: Path) -> None:
        """Delete the pieces in ``folder``, whole and half ones, and it if it is then empty."""
        for path in [*folder.glob(f"{cls.stem}-*.safetensors"), *folder.glob(f".{cls.stem}-*.tmp")]:
            path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
