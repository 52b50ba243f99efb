"""Reading published weight files, strictly."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import closest
from ..memory import release_mapped

__all__ = ["load_strict_", "read_state", "strict_tensors"]


def read_state(
    path: str | Path, under: Sequence[str] = (), mmap: bool = False
) -> dict[str, Tensor]:
    """A flat state dict from ``.safetensors``, or from ``.pth``, ``.pt``, ``.bin``, ``.ckpt``.

    The latter are read with ``weights_only=True``: nothing in them is executed. Weights nested
    under one of the keys ``under`` (the first that is there), "state_dict", "model" or "module" are
    taken out. mmap: map also the latter into memory instead of reading them, as the former always
    are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {str(path)!r}; wanted a .pth or .safetensors file")
    if not path.stat().st_size:
        raise ValueError(f"{str(path)!r} cannot be read as a weight file: it is empty")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            # Training scripts save their parsed arguments beside the weights: plain attributes.
            with torch.serialization.safe_globals([Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error) or "it ends too early"  # an EOFError says nothing
        raise ValueError(f"{str(path)!r} cannot be read as a weight file: {reason}") from None
    except Exception as error:  # the unpickler's refusals have no common public type
        # Around its reason is advice to load it all the same, which would run what is in it.
        reason = re.search(r"WeightsUnpickler error:\s*(.+?)(\. |\n|$)", str(error))
        raise ValueError(
            f"{str(path)!r} is no weight file, or holds something other than plain tensors, and "
            f"was not loaded: {reason[1] if reason else type(error).__name__}"
        ) from None
    while isinstance(state, dict):
        keys = (*under, "state_dict", "model", "module")
        inner = [key for key in keys if isinstance(state.get(key), dict)]
        if not inner:
            break
        state = state[inner[0]]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{str(path)!r}: wanted a flat dictionary of tensors")
    return state


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def load_strict_(
    module: nn.Module, state: dict[str, Tensor], what: str, assign: bool = False
) -> None:
    """Load ``state`` into ``module``, every tensor of it and no other, cast to its dtype.

    assign: take the tensors themselves instead of copying them. Whether they are finite is then not
    checked: that would read weights that stay in a mapped file.

    ``module.recomputed``: expression for names of buffers that follow from the configuration, and
    are ignored; ``module.joined``: ending of a name -> endings of the equal parts of its rows that
    files may have instead, None for a part that they do not have. ValueError lists missing and
    unexpected tensors and those of a wrong shape or kind, or names the first that is not finite,
    before anything is changed.
    """
    given = _checked(module, state, what)
    own = module.state_dict().values()
    dtype = next(value.dtype for value in own if value.is_floating_point())
    cast = {n: v.to(dtype) if v.is_floating_point() else v for n, v in given.items()}
    if not assign:
        for name, value in cast.items():
            _check_finite(name, value, what)
    module.load_state_dict(cast, assign=assign)


def strict_tensors(
    module: nn.Module, state: dict[str, Tensor], what: str
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything that ``load_strict_`` would load, sorted by name, parts joined
    one tensor at a time; checked like that before the first one."""
    given, joined = _checked(module, state, what), getattr(module, "joined", {})
    for name in sorted(module.state_dict()):
        if name in given:
            parts = [given[name]]
            tensor = given[name]
        else:
            ending = next(e for e in joined if name.endswith(e))
            stem = name.removesuffix(ending)
            like = next(given[stem + part] for part in joined[ending] if part is not None)
            parts = [torch.zeros_like(like) if part is None else given[stem + part]
                     for part in joined[ending]]  # fmt: skip
            tensor = torch.cat(parts)
        _check_finite(name, tensor, what)
        yield name, tensor
        release_mapped(parts)


def _check_finite(name: str, value: Tensor, what: str) -> None:
    """ValueError for a tensor with values that are not finite, at the cost of reading it once."""
    if not value.is_floating_point() or not value.numel():
        return
    # Of a NaN both ends are NaN, and nothing of the tensor's size is made. Of what is narrower than
    # float16 torch knows no ends.
    ends = torch.aminmax(value if value.itemsize > 1 else value.float())
    if not all(end.isfinite() for end in ends):
        raise ValueError(
            f"{what}: {name} has values that are NaN or infinite in {value.dtype}; wanted finite "
            "weights. Copy the file again, or give another one"
        )


def _checked(module: nn.Module, state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """``state`` without what is recomputed; ValueError unless it fits ``module``."""
    recomputed = getattr(module, "recomputed", None)
    joined: dict[str, tuple[str | None, ...]] = getattr(module, "joined", {})
    given = {n: v for n, v in state.items() if not (recomputed and re.search(recomputed, n))}
    own = module.state_dict()
    wanted: dict[str, torch.Size] = {}
    floats: dict[str, bool] = {}
    for name, value in own.items():
        ending = next((e for e in joined if name.endswith(e) and name not in given), None)
        names, shape = [name], value.shape
        if ending is not None:
            stem, parts = name.removesuffix(ending), joined[ending]
            shape = torch.Size([value.shape[0] // len(parts), *value.shape[1:]])
            names = [stem + part for part in parts if part is not None]
        wanted |= dict.fromkeys(names, shape)
        floats |= dict.fromkeys(names, value.is_floating_point())
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    kinds = [
        f"{name} is {given[name].dtype}, wanted {'floats' if floating else 'whole numbers'}"
        for name, floating in floats.items()
        if name in given
        and (given[name].is_complex() or given[name].is_floating_point() != floating)
    ]
    problems = []
    if missing:
        problems.append(f"missing {_few(missing)}")
    if unexpected:
        near = f" ({closest(unexpected[0], missing)})" if missing else ""
        problems.append(f"unexpected {_few(unexpected)}{near}")
    if shapes:
        problems.append("; ".join(shapes[:4]))
    if kinds:
        problems.append("; ".join(kinds[:4]))
    if problems:
        raise ValueError(
            f"{what}: these weights do not fit the model: {'; '.join(problems)}. "
            "Is it the right file for this name?"
        )
    return given
