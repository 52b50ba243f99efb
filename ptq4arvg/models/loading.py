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
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            # Training scripts save their parsed arguments beside the weights: plain attributes.
            with torch.serialization.safe_globals([Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a weight file: {error}") from None
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

    assign: take the tensors themselves instead of copying them.

    ``module.recomputed``: expression for names of buffers that follow from the configuration, and
    are ignored; ``module.joined``: ending of a name -> endings of the equal parts of its rows that
    files may have instead, None for a part that they do not have. ValueError lists missing,
    unexpected and wrongly shaped tensors before anything is changed.
    """
    given = _checked(module, state, what)
    own = module.state_dict().values()
    dtype = next(value.dtype for value in own if value.is_floating_point())
    cast = {n: v.to(dtype) if v.is_floating_point() else v for n, v in given.items()}
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
            yield name, given[name]
        else:
            ending = next(e for e in joined if name.endswith(e))
            stem = name.removesuffix(ending)
            like = next(given[stem + part] for part in joined[ending] if part is not None)
            parts = [torch.zeros_like(like) if part is None else given[stem + part]
                     for part in joined[ending]]  # fmt: skip
            yield name, torch.cat(parts)
        release_mapped(parts)


def _checked(module: nn.Module, state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """``state`` without what is recomputed; ValueError unless it fits ``module``."""
    recomputed = getattr(module, "recomputed", None)
    joined: dict[str, tuple[str | None, ...]] = getattr(module, "joined", {})
    given = {n: v for n, v in state.items() if not (recomputed and re.search(recomputed, n))}
    own = module.state_dict()
    wanted: dict[str, torch.Size] = {}
    for name, value in own.items():
        ending = next((e for e in joined if name.endswith(e) and name not in given), None)
        if ending is None:
            wanted[name] = value.shape
        else:
            stem, parts = name.removesuffix(ending), joined[ending]
            shape = torch.Size([value.shape[0] // len(parts), *value.shape[1:]])
            wanted |= {stem + part: shape for part in parts if part is not None}
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    problems = []
    if missing:
        problems.append(f"missing {_few(missing)}")
    if unexpected:
        near = f" ({closest(unexpected[0], missing)})" if missing else ""
        problems.append(f"unexpected {_few(unexpected)}{near}")
    if shapes:
        problems.append("; ".join(shapes[:4]))
    if problems:
        raise ValueError(
            f"{what}: these weights do not fit the model: {'; '.join(problems)}. "
            "Is it the right file for this name?"
        )
    return given
