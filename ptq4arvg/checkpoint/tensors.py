"""The tensors of a model that are not quantized: all of them, by their place in the module tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["fill", "kept_tensors", "shrink"]


def _slots(module: nn.Module, skip: set[str]) -> Iterator[tuple[str, nn.Module, str, bool]]:
    """(full name, owner, own name, is a parameter) of every parameter and persistent buffer,
    also of those that are None, outside the submodules in ``skip``.

    State-dict hooks are passed by: they translate to the names of the original files.
    """
    for path, owner in module.named_modules():
        if any(path == s or path.startswith(f"{s}.") for s in skip):
            continue
        prefix = f"{path}." if path else ""
        for name in owner._parameters:
            yield prefix + name, owner, name, True
        for name in owner._buffers:
            if name not in owner._non_persistent_buffers_set:
                yield prefix + name, owner, name, False


def kept_tensors(module: nn.Module, skip: set[str]) -> dict[str, Tensor]:
    """Name -> tensor of everything in ``module`` outside the submodules in ``skip``."""
    return {
        name: getattr(owner, own)
        for name, owner, own, _ in _slots(module, skip)
        if getattr(owner, own) is not None
    }


def shrink(tensor: Tensor) -> Tensor:
    """``tensor`` on the CPU, in half precision where every bit of it survives that."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.float32:
        half = tensor.half()
        back = half.float()
        if torch.equal(back.view(torch.int32), tensor.view(torch.int32)):
            return half
    return tensor


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    skip: set[str],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put ``tensors`` in their places in ``module``; the inverse of `kept_tensors` and `shrink`.

    ValueError unless every parameter and buffer that the architecture has is there with its
    shape; buffers that are None in it are optional (a fold creates them). Unknown names too.
    """
    slots = {name: (owner, own, param) for name, owner, own, param in _slots(module, skip)}
    unknown = sorted(set(tensors) - set(slots))
    needed = {name for name, (owner, own, _) in slots.items() if getattr(owner, own) is not None}
    missing = sorted(needed - set(tensors))
    if unknown or missing:
        raise ValueError(
            f"tensors missing: {_some(missing)}; not known to this architecture: {_some(unknown)}"
        )
    for name, tensor in tensors.items():
        owner, own, parameter = slots[name]
        old = getattr(owner, own)
        if old is not None and old.shape != tensor.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; wanted {list(old.shape)}")
        if tensor.is_floating_point():
            tensor = tensor.to(dtype if old is None else old.dtype)
        elif old is not None and old.dtype != tensor.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; wanted {old.dtype}")
        tensor = tensor.to(device)
        value = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
        setattr(owner, own, value)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"
