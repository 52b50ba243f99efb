"""Weights that stay in their file: mapped into memory, and in it only where they are used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..memory import release_mapped

__all__ = ["check_mappable", "release_after_use_", "write_tensors"]

# Modules of fewer bytes stay: giving their pages back would take longer than it is worth.
LARGE = 1 << 18
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def check_mappable(
    module: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype, what: str
) -> None:
    """ValueError unless ``module`` in ``dtype`` can take the tensors of ``state`` as they are."""
    remedy = "Write a file that can be mapped with ptq4arvg.models.store_weights"
    own = module.state_dict()
    for name, value in state.items():
        if name in own and value.is_floating_point() and value.dtype != dtype:
            raise ValueError(
                f"{what}: {name} is {value.dtype} in the file, and mmap=True takes tensors as they "
                f"are; wanted {dtype}. Give dtype={value.dtype}. {remedy} otherwise"
            )
    ends = tuple(e for parts in getattr(module, "joined", {}).values() for e in parts if e)
    part = next((name for name in state if ends and name.endswith(ends)), None)
    if part is not None:
        raise ValueError(
            f"{what}: {part} is part of a tensor of the model, and mmap=True takes tensors as they "
            f"are. {remedy}"
        )


def release_after_use_(module: nn.Module) -> None:
    """Have every large part of ``module`` give its mapped weights back after each use of it."""

    def hook(part: nn.Module, _args: object, _output: object) -> None:
        release_mapped(part.parameters(recurse=False))

    for part in module.modules():
        if sum(p.nbytes for p in part.parameters(recurse=False)) >= LARGE:
            part.register_forward_hook(hook)


def write_tensors(
    path: str | Path,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write (name, tensor) pairs of ``shapes`` as a .safetensors file in ``dtype``.

    One tensor is held at a time; they come in the sorted order of their names. The file appears
    complete or not at all. ValueError for a dtype that is no float, or tensors other than said.
    """
    if dtype not in NAMES:
        raise ValueError(
            f"write_tensors: dtype is {dtype}; wanted one of {', '.join(map(str, NAMES))}"
        )
    path, offset, header = Path(path), 0, {}
    for name in sorted(shapes):
        size = torch.Size(shapes[name]).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shapes[name]),
                        "data_offsets": [offset, offset + size]}  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    left = iter(sorted(shapes))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors:
                wanted = next(left, None)
                if name != wanted or tensor.shape != torch.Size(shapes[name]):
                    raise ValueError(
                        f"write_tensors: {name} {list(tensor.shape)} came; wanted {wanted} "
                        f"{list(shapes.get(wanted, ()))}"
                    )
                file.write(tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy())
            missing = next(left, None)
            if missing is not None:
                raise ValueError(f"write_tensors: {missing} did not come")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
