"""Checks of operator arguments that need no data, with the texts of the real kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import ACTIVATIONS, MAX_ROTATION, rotation_fits

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_dtype(op: str, name: str, x: Tensor | None, *wanted: torch.dtype) -> None:
    if x is not None and x.dtype not in wanted:
        *most, last = [_name(dtype) for dtype in wanted]
        text = f"{', '.join(most)} or {last}" if most else last
        raise RuntimeError(f"{op}: {name} has dtype {_name(x.dtype)}, wanted {text}")


def check_device(op: str, **tensors: Tensor | None) -> None:
    """All on the device of the first."""
    (lead_name, lead), *others = tensors.items()
    for name, x in others:
        if x is not None and x.device != lead.device:
            raise RuntimeError(
                f"{op}: {name} is on {x.device}, but {lead_name} is on {lead.device}; wanted all "
                "on one device"
            )


def check_bits(op: str, name: str, bits: int) -> None:
    if bits not in (4, 6, 8):
        raise RuntimeError(f"{op}: {name} is {bits}, wanted 4, 6 or 8")


def check_rotation(
    op: str, block: int, columns: int, name: str = "rotation", letter: str = "K",
    most: int = MAX_ROTATION,
) -> None:  # fmt: skip
    if not rotation_fits(block, columns, most):
        raise RuntimeError(
            f"{op}: {name} is {block} and {letter} {columns}; wanted 0, or a power of two from 2 "
            f"to {most} that divides {letter}"
        )


def check_activation(op: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise RuntimeError(
            f"{op}: activation is '{activation}', wanted one of {', '.join(ACTIVATIONS)}"
        )


def check_out_dtype(op: str, out_dtype: torch.dtype) -> None:
    if out_dtype not in FLOATS:
        raise RuntimeError(
            f"{op}: out_dtype is {_name(out_dtype)}, wanted float32, float16 or bfloat16"
        )


def check_vector(op: str, name: str, x: Tensor) -> None:
    if x.dim() != 1:
        raise RuntimeError(f"{op}: {name} has shape {list(x.shape)}, wanted one dimension")


def check_length(op: str, name: str, x: Tensor | None, length: int, meaning: str) -> None:
    if x is None:
        return
    check_vector(op, name, x)
    torch._check(
        x.numel() == length,
        lambda: f"{op}: {name} has {x.numel()} entries, wanted {length} ({meaning})",
    )


def check_rows(op: str, name: str, x: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise RuntimeError(
            f"{op}: {name} has shape {list(x.shape)}, wanted [..., K] with K of 1 or more"
        )


def check_shape(op: str, name: str, x: Tensor, wanted: tuple[int, ...], meaning: str = "") -> None:
    if tuple(x.shape) != wanted:
        raise RuntimeError(
            f"{op}: {name} has shape {list(x.shape)}, wanted {list(wanted)}{meaning}"
        )


def check_table(
    op: str, name: str, scale: Tensor, tokens: int, position_name: str = "position"
) -> None:
    """Scales of ``tokens`` positions at least."""
    check_dtype(op, name, scale, torch.float32)
    check_vector(op, name, scale)
    torch._check(
        tokens <= scale.numel(),
        lambda: (
            f"{op}: {name} has {scale.numel()} positions, but {position_name} 0 + tokens {tokens} "
            f"= {tokens} are needed"
        ),
    )
