"""The constants of a frozen TensorFlow graph, read from its bytes without TensorFlow.

A ``.pb`` file is one protocol-buffer message: fields of (number, wire type) and a value. Only the
few fields on the way to a constant tensor are looked at; all others are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["read_constants"]

# Field numbers of the messages GraphDef, NodeDef, an entry of its attributes, AttrValue,
# TensorProto, TensorShapeProto and its Dim.
_NODE, _NAME, _OP, _ATTRIBUTE, _KEY, _VALUE, _TENSOR = 1, 1, 2, 5, 1, 2, 8
_DTYPE, _SHAPE, _CONTENT, _FLOATS, _DIMENSION, _SIZE = 1, 2, 4, 5, 2, 1
_FLOAT32 = 1  # of the enumeration of data types
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, "int | memoryview"]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(the number at ``at``: seven bits a byte, lowest first; where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")


def _fields(data: memoryview) -> Iterator[Field]:
    """(number, wire type, value) of every field of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a field has wire type {wire}")
        if number == 0 or at + length > len(data):
            raise ValueError("a field is longer than what holds it")
        yield number, wire, data[at : at + length]
        at += length


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """The values of the fields ``number`` that have a length."""
    return (value for n, wire, value in _fields(data) if (n, wire) == (number, _BYTES))


def _text(data: memoryview, number: int) -> str:
    return str(bytes(next(_messages(data, number), b"")), "utf-8")


def _number(data: memoryview, number: int) -> int:
    return next((value for n, wire, value in _fields(data) if (n, wire) == (number, _VARINT)), 0)


def _shape(tensor: memoryview) -> list[int]:
    shape = next(_messages(tensor, _SHAPE), memoryview(b""))
    return [_number(dimension, _SIZE) for dimension in _messages(shape, _DIMENSION)]


def _floats(tensor: memoryview, name: str) -> Tensor:
    """A float tensor: its bytes, or a list of floats whose last one fills what it leaves open."""
    shape = _shape(tensor)
    count = math.prod(shape)
    data = b"".join(_messages(tensor, _CONTENT))
    if not data:
        data = b"".join(bytes(v) for n, wire, v in _fields(tensor)
                        if n == _FLOATS and wire in (_BYTES, _FIXED32))  # fmt: skip
        missing = count - len(data) // 4
        data += data[-4:] * missing
    if len(data) != 4 * count:
        raise ValueError(f"constant {name!r} of shape {shape} has {len(data)} bytes")
    if not count:  # torch.frombuffer takes no empty buffer
        return torch.empty(shape)
    return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)


def _constant(node: memoryview) -> tuple[str, Tensor] | None:
    """(name, tensor) of a node that is a float constant."""
    if _text(node, _OP) != "Const":
        return None
    name = _text(node, _NAME)
    for attribute in _messages(node, _ATTRIBUTE):
        if _text(attribute, _KEY) != "value":
            continue
        for value in _messages(attribute, _VALUE):
            for tensor in _messages(value, _TENSOR):
                if _number(tensor, _DTYPE) == _FLOAT32:
                    return name, _floats(tensor, name)
    return None


def read_constants(path: str | Path) -> dict[str, Tensor]:
    """Name -> float32 tensor of every float constant in a frozen graph. ValueError if it is none.

    Nothing in the file is executed, and no node that is not a constant is looked into.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; wanted a frozen TensorFlow graph (.pb)")
    try:
        graph = memoryview(path.read_bytes())
        found = dict(filter(None, map(_constant, _messages(graph, _NODE))))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no frozen TensorFlow graph: {error}") from None
    if not found:
        raise ValueError(f"{str(path)!r} is no frozen TensorFlow graph: it holds no float constant")
    return found
