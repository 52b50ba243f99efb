"""Fixtures of the operator tests: every instruction set in turn, and makers of random arguments."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ptq4arvg import ops

BITS = (8, 6, 4)
ISAS = ("scalar", "avx2", "avx_vnni", "avx512_vnni", "amx_int8", "neon_dotprod")


@pytest.fixture(params=ISAS)
def isa(request):
    """Runs the test once for each instruction set that this machine has."""
    info = ops.build_info()
    if request.param not in info["compiled_isas"]:
        pytest.skip(f"{request.param} is not compiled for this platform")
    if request.param not in info["available_isas"]:
        pytest.skip(f"this processor has no {request.param}")
    ops.set_isa(request.param)
    yield request.param
    ops.set_isa("")


@dataclass
class Weight:
    """A weight in the kernels' form and in the reference's."""

    codes: Tensor
    zero: Tensor | None
    bits: int
    packed: Tensor
    dense: Tensor
    scale: Tensor

    @property
    def w_sum(self) -> Tensor:
        return self.codes.sum(1, dtype=torch.int32)


class Maker:
    """Seeded random arguments."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integers(self, low: int, high: int, *shape: int, dtype=torch.int32) -> Tensor:
        """Uniform in [low, high]."""
        return torch.randint(low, high + 1, shape, generator=self.generator).to(dtype)

    def normal(self, *shape: int, dtype=torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def codes(self, *shape: int) -> Tensor:
        """Any int8."""
        return self.integers(-128, 127, *shape, dtype=torch.int8)

    def weight(self, n: int, k: int, bits: int, with_zero: bool = True) -> Weight:
        """Random levels of `bits` bits; at 6 and 4 bits with a random zero point a column."""
        zero = None
        if bits == 8:
            codes = self.integers(-127, 127, n, k, dtype=torch.int8)
        else:
            top = 2**bits - 1
            zero = self.integers(0, top, n)
            if not with_zero:
                zero = torch.full_like(zero, 2 ** (bits - 1))
            codes = (self.integers(0, top, n, k) - zero[:, None]).to(torch.int8)
        return self.pack(codes, zero if with_zero else None, bits)

    def pack(self, codes: Tensor, zero: Tensor | None, bits: int) -> Weight:
        scale = self.uniform(1e-4, 1e-2, len(codes))
        packed = ops.pack_weight(codes, zero, bits)
        dense = ops.reference.pack_weight(codes, zero, bits)
        return Weight(codes, zero, bits, packed, dense, scale)


@pytest.fixture
def make():
    """The class of argument makers: `make(seed)`."""
    return Maker


def _same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == torch.float32:
        actual, expected = actual.view(torch.int32), expected.view(torch.int32)
    elif actual.is_floating_point():
        actual, expected = actual.view(torch.int16), expected.view(torch.int16)
    different = int((actual != expected).sum())
    assert different == 0, f"{different} of {actual.numel()} elements differ"


@pytest.fixture
def same_bits():
    """A check that two tensors agree in dtype, shape and every bit."""
    return _same_bits
