"""Levels of fewer than eight bits as a dense stream of bits in int32 words.

Value j of a row takes bits ``j * bits .. (j + 1) * bits - 1`` of that row's stream, least
significant bit first; 32 bits make a word and every row starts with a new one. At 4 bits this is
the order of the compressed-tensors format (8 values a word). At 6 bits that format would leave two
bits of every word empty (5 values); the dense stream puts 16 values in 3 words.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["pack_bits", "packed_words", "unpack_bits"]

# Rows are expanded to one byte per bit while packing; this bounds the memory that takes.
_BYTES_AT_ONCE = 1 << 25


def packed_words(values: int, bits: int) -> int:
    """How many int32 words a row of ``values`` levels takes."""
    return -(-values * bits // 32)


def _chunks(rows: int, values: int, bits: int) -> range:
    return range(0, rows, max(1, _BYTES_AT_ONCE // max(values * bits, 1)))


def pack_bits(levels: Tensor, bits: int) -> Tensor:
    """Levels [N, K] in [0, 2^bits - 1], any integer dtype -> int32 [N, words]."""
    if levels.ndim != 2 or levels.is_floating_point():
        raise ValueError(
            f"pack_bits: levels are {levels.dtype} {list(levels.shape)}; wanted integers [N, K]"
        )
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) < 2**bits:
        raise ValueError(
            f"pack_bits: levels lie in [{int(levels.min())}, {int(levels.max())}]; wanted "
            f"[0, {2**bits - 1}]"
        )
    n, k = levels.shape
    source = levels.cpu().to(torch.uint8).numpy()
    out = np.zeros((n, packed_words(k, bits) * 4), dtype=np.uint8)
    chunks = _chunks(n, k, bits)
    for start in chunks:
        part = source[start : start + chunks.step]
        # [rows, K] -> [rows, K, 8] one byte per bit, the lowest first -> [rows, K * bits]
        stream = np.unpackbits(part[..., None], axis=2, bitorder="little")[..., :bits]
        stream = stream.reshape(len(part), k * bits)
        packed = np.packbits(stream, axis=1, bitorder="little")
        out[start : start + chunks.step, : packed.shape[1]] = packed
    return torch.from_numpy(out.view("<i4").astype(np.int32, copy=False))


def unpack_bits(words: Tensor, bits: int, values: int) -> Tensor:
    """The inverse of `pack_bits`: int32 [N, words] -> uint8 [N, values]."""
    if words.dtype != torch.int32 or words.shape[1:] != (packed_words(values, bits),):
        raise ValueError(
            f"unpack_bits: words are {words.dtype} {list(words.shape)}; wanted int32 "
            f"[N, {packed_words(values, bits)}] for {values} levels of {bits} bits"
        )
    n = words.shape[0]
    source = words.cpu().contiguous().numpy().astype("<i4", copy=False).view(np.uint8)
    out = np.empty((n, values), dtype=np.uint8)
    weight = (1 << np.arange(bits)).astype(np.uint8)
    chunks = _chunks(n, values, bits)
    for start in chunks:
        part = source[start : start + chunks.step]
        stream = np.unpackbits(part, axis=1, count=values * bits, bitorder="little")
        # [rows, K * bits] -> [rows, K, bits] -> [rows, K]
        levels = stream.reshape(len(part), values, bits) @ weight
        out[start : start + chunks.step] = levels
    return torch.from_numpy(out)
