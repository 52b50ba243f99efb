"""The dense bit stream against its definition, one bit at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq4arvg.checkpoint import bits as module
from ptq4arvg.checkpoint.bits import pack_bits, packed_words, unpack_bits


def by_definition(row, bits):
    stream = sum(value << (j * bits) for j, value in enumerate(row))
    words = [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(packed_words(len(row), bits))]
    return [w - (1 << 32) if w >= 1 << 31 else w for w in words]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_packing_follows_its_definition_and_is_undone(data):
    bits = data.draw(st.sampled_from([4, 6]))
    k = data.draw(st.integers(1, 70))
    level = st.integers(0, 2**bits - 1)
    rows = data.draw(st.lists(st.lists(level, min_size=k, max_size=k), min_size=1, max_size=3))
    levels = torch.tensor(rows)
    packed = pack_bits(levels, bits)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [by_definition(row, bits) for row in rows]
    assert torch.equal(unpack_bits(packed, bits, k), levels.to(torch.uint8))


def test_four_bits_follow_compressed_tensors():
    levels = torch.arange(16).repeat(1, 2) % 16
    words = [sum(int(v) << (4 * j) for j, v in enumerate(part)) for part in levels[0].split(8)]
    assert (pack_bits(levels, 4)[0].to(torch.int64) & 0xFFFFFFFF).tolist() == words


def test_sixteen_levels_of_six_bits_take_three_words():
    assert [packed_words(k, 6) for k in (1, 5, 6, 16, 256)] == [1, 1, 2, 3, 48]
    assert packed_words(256, 4) == 32


def test_long_matrices_are_packed_in_parts(monkeypatch):
    levels = torch.randint(64, (50, 33), generator=torch.Generator().manual_seed(0))
    whole = pack_bits(levels, 6)
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 1000)
    assert torch.equal(pack_bits(levels, 6), whole)
    assert torch.equal(unpack_bits(whole, 6, 33), levels.to(torch.uint8))


@pytest.mark.parametrize("levels", [torch.tensor([[16]]), torch.tensor([[-1]])])
def test_levels_out_of_range_are_an_error(levels):
    with pytest.raises(ValueError, match=r"wanted \[0, 15\]"):
        pack_bits(levels, 4)


def test_wrong_kinds_are_an_error():
    integers = torch.zeros(2, 2, dtype=torch.int32)
    for levels in (integers.float(), integers[0], integers[None]):
        with pytest.raises(ValueError, match=r"wanted integers \[N, K\]"):
            pack_bits(levels, 4)
    for words in (torch.zeros(2, 3, dtype=torch.int32), integers[..., None], integers[0]):
        with pytest.raises(ValueError, match=r"wanted int32 \[N, 2\] for 9 levels"):
            unpack_bits(words, 4, 9)


def test_no_rows_and_no_columns():
    for shape, words in (((0, 9), (0, 2)), ((3, 0), (3, 0))):
        packed = pack_bits(torch.zeros(shape, dtype=torch.int32), 4)
        assert packed.dtype == torch.int32 and packed.shape == words
        assert unpack_bits(packed, 4, shape[1]).shape == shape


def test_levels_and_words_with_gaps():
    levels = torch.arange(48).view(3, 16)
    packed = pack_bits(levels.T.contiguous().T, 6)
    assert torch.equal(packed, pack_bits(levels, 6))
    assert torch.equal(unpack_bits(packed.T.contiguous().T, 6, 16), levels.to(torch.uint8))


def test_rows_wider_than_the_memory_allowed_and_words_of_another_type(monkeypatch):
    levels = torch.arange(64).view(4, 16)
    packed = pack_bits(levels, 6)
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 1)
    assert torch.equal(pack_bits(levels, 6), packed)
    assert torch.equal(unpack_bits(packed, 6, 16), levels.to(torch.uint8))
    with pytest.raises(ValueError, match=r"words are torch\.int64"):
        unpack_bits(packed.long(), 6, 16)
