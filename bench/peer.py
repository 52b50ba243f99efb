"""What bench/peers.py times: one interface for our GEMM and other libraries' (peer_adapters.py).

A candidate says what it must be given and what it computes; `check` compares that with a float64
product before anything is timed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from candidates import activation_bits
from environment import variable
from torch import Tensor

from ptq4arvg import ops

__all__ = ["OUT", "Absent", "Early", "Ours", "Peer", "Product", "WrongResult", "check"]

OUT = torch.bfloat16  # what all of them can write


class Absent(Exception):
    """The library is not here; the text says what to install."""


class WrongResult(Exception):
    """A candidate computes something else; its time would mean nothing."""


@dataclass(frozen=True)
class Product:
    """A linear at M rows: floats x [M, K] bfloat16, and codes that have nothing to do with them.

    a: int8 [M, K] with a_scale float32 [M, 1] and a_zero int32 [M, 1]; w: int8 [N, K] of so many
    bits, symmetric, with w_scale float32 [N] and w_sum int32 [N], the sums of its rows. range:
    float32 [M], the largest magnitude of each row of x, which static scales are made of.
    """

    bits: int
    x: Tensor
    a: Tensor
    a_scale: Tensor
    a_zero: Tensor
    w: Tensor
    w_scale: Tensor
    w_sum: Tensor
    range: Tensor

    @classmethod
    def random(cls, m: int, n: int, k: int, bits: int, device: str) -> Product:
        """Random codes and floats. 6 bits have no zero points of the input."""
        a_top, w_top = 2 ** (activation_bits(bits) - 1) - 1, 2 ** (bits - 1) - 1
        like = {"dtype": torch.int8, "device": device}
        x = torch.randn(m, k, device=device).to(torch.bfloat16)
        w = torch.randint(-w_top, w_top + 1, (n, k), **like)
        w[:, 0] = w_top  # so that who quantizes w * w_scale again finds the same codes
        a_zero = torch.randint(-9, 10, (m, 1), dtype=torch.int32, device=device)
        return cls(
            bits, x, torch.randint(-a_top, a_top + 1, (m, k), **like),
            (torch.rand(m, 1, device=device) + 0.5) / a_top, a_zero * (bits != 6), w,
            (torch.rand(n, device=device) + 0.5) / (w_top * k**0.5), w.sum(1, dtype=torch.int32),
            x.float().abs().amax(1),
        )  # fmt: skip

    def weight(self) -> Tensor:
        """The float weight [N, K], bfloat16."""
        return (self.w * self.w_scale[:, None]).to(torch.bfloat16)

    def of_codes(self, with_zero: bool) -> Tensor:
        """The product of the codes, float64 [M, N]."""
        a = self.a.double() - (self.a_zero.double() if with_zero else 0)
        return (a @ self.w.double().t()) * self.a_scale.double() * self.w_scale.double()

    def of_floats(self) -> Tensor:
        """The product of x and the weight, float64 [M, N]."""
        return self.x.double() @ (self.w.double() * self.w_scale.double()[:, None]).t()


class Peer(ABC):
    """A candidate. bits: of the weights; with_zero: whether the input's zero points count.

    codes_error, floats_error: the most that the relative error of a result may be (Frobenius norm),
    given codes, and given floats, where the quantization of the input adds to it.
    """

    name: str
    bits: int = 8
    with_zero: bool = False
    install: str = ""
    codes_error: float = 0.01  # of rounding to bfloat16
    floats_error: float = 0.03  # of 8-bit codes for normal deviates, and their rounding

    def find(self, libraries: Path | None) -> None:  # noqa: B027, nothing to find by default
        """Import what it needs, or load it from a folder of shared libraries. Absent if neither."""

    @abstractmethod
    def prepare(self, product: Product) -> Any:
        """The weight in the library's own layout, which `copy.deepcopy` can copy."""

    @abstractmethod
    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        """Codes of product.x, and what else `multiply` wants of them."""

    @abstractmethod
    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        """[M, N] of the codes that `quantize` gives, or of product.a where there are none."""


def check(peer: Peer, product: Product) -> None:
    """WrongResult unless both ways of calling the peer give what they should."""
    weight = copy.deepcopy(peer.prepare(product))
    for given, found, wanted, limit in (
        ("codes", peer.multiply(weight, product), product.of_codes(peer.with_zero),
         peer.codes_error),
        ("floats", peer.multiply(weight, product, *peer.quantize(product)), product.of_floats(),
         peer.floats_error),
    ):  # fmt: skip
        error = float((found.double() - wanted).norm() / wanted.norm())
        if not error <= limit:
            raise WrongResult(f"wrong result: given {given}, its relative error is {error:.3g}, "
                              f"wanted {limit} at most")  # fmt: skip


class Ours(Peer):
    """Our operators: static scales, so that quantizing needs no maximum of a row."""

    def __init__(self, bits: int) -> None:
        self.name, self.bits, self.with_zero = f"ours.w{bits}", bits, bits != 6
        self.floats_error = 0.06 if bits == 6 else 0.03

    def prepare(self, product: Product) -> Any:
        zero = None
        if self.bits < 8:
            levels = (len(product.w),)
            zero = torch.full(levels, 2 ** (self.bits - 1), dtype=torch.int32,
                              device=product.w.device)  # fmt: skip
        return ops.pack_weight(product.w, zero, self.bits), zero

    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        a_bits = activation_bits(self.bits)
        top = 2 ** (a_bits - 1)
        inv_scale = (top - 1) / product.range
        zero = torch.full_like(inv_scale, top, dtype=torch.int32)
        a = ops.quantize(product.x, inv_scale, zero, a_bits, tokens=len(product.x))
        return a, 1 / inv_scale, torch.zeros_like(zero)

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        packed, zero = weight
        a, scale, a_zero = codes or (product.a, product.a_scale[:, 0], product.a_zero[:, 0])
        return ops.gemm(
            a, packed, scale, product.w_scale, a_zero if self.with_zero else None, product.w_sum,
            zero, bits=self.bits, tokens=len(a), out_dtype=OUT,
        )  # fmt: skip


class Early(Ours):
    """Ours with kernels that start before earlier ones have ended (PTQ4ARVG_CUDA_PDL)."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.name = f"early.w{bits}"

    def find(self, libraries: Path | None) -> None:
        if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0):
            raise Absent("kernels start early on sm_90 and later; wanted such a device")

    def quantize(self, product: Product) -> tuple[Tensor, ...]:
        with variable("PTQ4ARVG_CUDA_PDL", "1"):
            return super().quantize(product)

    def multiply(self, weight: Any, product: Product, *codes: Tensor) -> Tensor:
        with variable("PTQ4ARVG_CUDA_PDL", "1"):
            return super().multiply(weight, product, *codes)
