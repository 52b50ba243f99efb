"""Learned blocks on disk, for methods that learn one block after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .calibration import Calibration
from .checkpoint.hashing import model_hash, text_hash
from .distributed import current
from .methods import Method
from .parts import Parts
from .plan import LayerPlan
from .serialize import canonical_json

__all__ = ["BlockParts"]


class BlockParts(Parts):
    """A folder with a file per learned block (see ``Parts``)."""

    format: ClassVar[str] = "ptq4arvg blocks 1"
    stem: ClassVar[str] = "block"

    @classmethod
    def of(
        cls, folder: str | Path, model: Any, plan: Iterable[LayerPlan], calibration: Calibration,
        method: Method, batch_size: int,
    ) -> BlockParts:  # fmt: skip
        """Of one quantization: of the float ``model``, the schemes of ``plan``, the rows, the
        method's options. ValueError if the folder holds blocks of another one."""
        from . import __version__

        schemes = {p.name: p.scheme.name for p in plan}
        settings = {
            "model": model.name, "weights": model_hash(model),
            "calibration seed": calibration.seed, "calibration rows": calibration.hash,
            "method": method.name, **method.options(),
            "schemes": sorted(set(schemes.values())),
            "scheme of each linear": text_hash(canonical_json(schemes)),
            "batch_size": batch_size, "version": __version__, "torch": torch.__version__,
        }  # fmt: skip
        return cls(folder, settings)

    def read(self, block: str) -> dict[str, Tensor] | None:
        """The tensors of a learned block, None if it is not there."""
        path = self.file(block)
        if not path.is_file():
            return None
        with self.opened(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a learned block; of several processes, which learn the same, the first does it."""
        if not current().rank:
            self.put(self.file(block), tensors)
