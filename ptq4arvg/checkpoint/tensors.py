"""The tensors of a model that are not quantized: all of them, by their place in the module tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["check_fit", "fill", "kept_tensors", "shrink", "some"]


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
    slots = _fitting_slots(module, tensors, skip)
    for name, tensor in tensors.items():
        owner, own, parameter = slots[name]
        old = getattr(owner, own)
        _check(name, tensor, old)
        if tensor.is_floating_point():
            tensor = tensor.to(dtype if old is None else old.dtype)
        tensor = tensor.to(device)
        value = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
        setattr(owner, own, value)


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], skip: set[str]) -> None:
    """ValueError where `fill` would raise it."""
    slots = _fitting_slots(module, tensors, skip)
    for name, tensor in tensors.items():
        owner, own, _ = slots[name]
        _check(name, tensor, getattr(owner, own))


def _fitting_slots(
    module: nn.Module, names: Iterable[str], skip: set[str]
) -> dict[str, tuple[nn.Module, str, bool]]:
    """Name -> slot. ValueError unless ``names`` are those that the slots need, or may take."""
    slots = {name: (owner, own, param) for name, owner, own, param in _slots(module, skip)}
    unknown = sorted(set(names) - set(slots))
    needed = {name for name, (owner, own, _) in slots.items() if getattr(owner, own) is not None}
    missing = sorted(needed - set(names))
    if unknown or missing:
        raise ValueError(
            f"tensors missing: {some(missing)}; not known to this architecture: {some(unknown)}"
        )
    return slots


def _check(name: str, tensor: Tensor, old: Tensor | None) -> None:
    if old is not None and old.shape != tensor.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; wanted {list(old.shape)}")
    floats = old is not None and old.is_floating_point() and tensor.is_floating_point()
    if old is not None and not floats and old.dtype != tensor.dtype:
        raise ValueError(f"{name} is {tensor.dtype}; wanted {old.dtype}")


def some(names: list[str]) -> str:
    """The first three of ``names``, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"
