"""Writes frozen TensorFlow graphs for tests, field by field as the format says."""

import struct

import torch

from ptq4arvg.evaluation.inception import InceptionNetwork, graph_names
from ptq4arvg.models.registry import randomize_


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    """A field with a length (bytes, str) or a plain number (int)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(shape, dtype=1, content=b"", floats=()):
    dims = b"".join(field(2, field(1, size)) for size in shape)
    message = field(1, dtype) + field(2, dims)
    if content:
        message += field(4, content)
    if floats:
        message += field(5, struct.pack(f"<{len(floats)}f", *floats))
    return message


def node(name, op="Const", value=None):
    message = field(1, name) + field(2, op) + field(3, "input") + field(4, "/cpu:0")
    message += field(5, field(1, "dtype") + field(2, field(6, 1)))
    if value is not None:
        message += field(5, field(1, "value") + field(2, field(8, value)))
    return message


def graph(*nodes):
    return b"".join(field(1, n) for n in nodes) + field(4, field(1, 21))


def constant(name, values):
    """A node for a float32 tensor."""
    content = values.contiguous().numpy().astype("<f4").tobytes()
    return node(name, value=tensor(values.shape, content=content))


def inception_state(seed=0):
    """Random weights of the Inception network."""
    with torch.device("meta"):
        network = InceptionNetwork()
    network = network.to_empty(device="cpu")
    randomize_(network, seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return network.state_dict()


def inception_graph(state):
    """The bytes of a frozen graph with the weights of ``state``."""
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return graph(
        *(
            constant(theirs, state[ours].permute(order[state[ours].ndim]))
            for ours, theirs in graph_names().items()
        )
    )
