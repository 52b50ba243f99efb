"""How one quantized linear is laid out as named tensors, and read back with every size checked.

Names follow compressed-tensors. For a linear X of N outputs and K inputs, G groups of the T
positions:

    X.weight             int8 [N, K]         8 bits: symmetric levels
    X.weight_packed      int32 [N, words]    6 and 4 bits: unsigned levels, see `bits`
    X.weight_shape       int64 [2]           6 and 4 bits: N, K
    X.weight_zero_point  uint8 [N, 1]        6 and 4 bits: the unsigned level of zero
    X.weight_scale       float32 [N, 1]
    X.input_scale        float32 [G, 1]
    X.input_zero_point   uint8 [G, 1]        the unsigned level of zero
    X.position_group     uint16 [T]          position -> group (int32 beyond 65535 groups)
    X.bias               float32 [N]         where there is one

A convolution of the tokenizer's decoder is the linear of its patches: K = k k C columns in the
order of `reference_map.conv_columns`, one position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import LinearQuantization
from ..reference import MAX_ROTATION, rotation_fits
from .bits import pack_bits, packed_words, unpack_bits

__all__ = ["linear_names", "pack_linear", "unpack_linear"]


def linear_names(w_bits: int) -> tuple[set[str], set[str]]:
    """(names every linear of these bits has, names it may have), without the linear's own."""
    names = {"weight_scale", "input_scale", "input_zero_point", "position_group"}
    names |= {"weight"} if w_bits == 8 else {"weight_packed", "weight_shape", "weight_zero_point"}
    return names, {"bias"}


def pack_linear(q: LinearQuantization) -> dict[str, Tensor]:
    """The tensors of a quantized linear, on the CPU."""
    tensors = {
        "weight_scale": q.w_scale.float()[:, None],
        "input_scale": q.input_scale.float()[:, None],
        "input_zero_point": q.input_zero.to(torch.uint8)[:, None],
    }
    group_dtype = torch.uint16 if len(q.input_scale) <= 1 << 16 else torch.int32
    tensors["position_group"] = q.position_group.cpu().to(torch.int32).to(group_dtype)
    if q.w_bits == 8:
        tensors["weight"] = q.codes
    else:
        zero = _weight_zero(q)
        tensors["weight_packed"] = pack_bits(q.codes.to(torch.int32) + zero[:, None], q.w_bits)
        tensors["weight_shape"] = torch.tensor(q.codes.shape, dtype=torch.int64)
        tensors["weight_zero_point"] = zero.to(torch.uint8)[:, None]
    if q.bias is not None:
        tensors["bias"] = q.bias.float()
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _weight_zero(q: LinearQuantization) -> Tensor:
    if q.w_zero is None:
        return torch.full((q.codes.shape[0],), 2 ** (q.w_bits - 1), dtype=torch.int32)
    return q.w_zero.to(torch.int32)


def unpack_linear(
    name: str,
    tensors: dict[str, Tensor],
    shape: tuple[int, int],
    w_bits: int,
    a_bits: int,
    positions: int,
    sink: tuple[int, ...],
    rotation: int = 0,
) -> LinearQuantization:
    """The linear ``name`` of ``shape`` (N, K) from its tensors; ValueError if one does not fit."""
    n, k = shape
    groups = tensors["input_scale"].shape[:1].numel()
    wanted = {
        "weight_scale": (torch.float32, (n, 1)),
        "input_scale": (torch.float32, (groups, 1)),
        "input_zero_point": (torch.uint8, (groups, 1)),
        "position_group": (torch.uint16 if groups <= 1 << 16 else torch.int32, (positions,)),
        "bias": (torch.float32, (n,)),
        "weight": (torch.int8, (n, k)),
        "weight_packed": (torch.int32, (n, packed_words(k, w_bits))),
        "weight_shape": (torch.int64, (2,)),
        "weight_zero_point": (torch.uint8, (n, 1)),
    }
    for key, tensor in tensors.items():
        dtype, size = wanted[key]
        if tensor.dtype != dtype or tuple(tensor.shape) != size:
            raise ValueError(
                f"{name}.{key} is {tensor.dtype} {list(tensor.shape)}; wanted {dtype} {list(size)}"
            )
    group = tensors["position_group"].to(torch.int64)
    if not positions:
        raise ValueError(f"{name}.position_group is empty; wanted one position or more")
    if not 0 <= int(group.min()) <= int(group.max()) < groups:
        raise ValueError(
            f"{name}.position_group holds {int(group.min())} to {int(group.max())}; wanted 0 to "
            f"{groups - 1}"
        )
    for key in ("weight_scale", "input_scale"):
        if not bool(torch.isfinite(tensors[key]).all()) or not bool((tensors[key] > 0).all()):
            raise ValueError(f"{name}.{key} holds a scale that is not a positive number")
    if int(tensors["input_zero_point"].max()) >= 2**a_bits:
        raise ValueError(f"{name}.input_zero_point lies outside {a_bits} bits")
    if not rotation_fits(rotation, k):
        raise ValueError(
            f"{name}: its input of {k} columns is rotated in blocks of {rotation}; wanted a power "
            f"of two up to {MAX_ROTATION} that divides their number"
        )
    zero = None
    if w_bits == 8:
        codes = tensors["weight"]
    else:
        if tensors["weight_shape"].tolist() != [n, k]:
            raise ValueError(
                f"{name}.weight_shape is {tensors['weight_shape'].tolist()}; wanted {[n, k]}"
            )
        zero = tensors["weight_zero_point"].flatten().to(torch.int32)
        levels = unpack_bits(tensors["weight_packed"], w_bits, k)
        codes = (levels.to(torch.int16) - zero[:, None].to(torch.int16)).to(torch.int8)
    return LinearQuantization(
        codes=codes,
        w_scale=tensors["weight_scale"].flatten(),
        w_zero=zero,
        bias=tensors.get("bias"),
        input_scale=tensors["input_scale"].flatten(),
        input_zero=tensors["input_zero_point"].flatten().to(torch.int32),
        position_group=group,
        w_bits=w_bits,
        a_bits=a_bits,
        sink=tuple(sink),
        rotation=rotation,
    )
