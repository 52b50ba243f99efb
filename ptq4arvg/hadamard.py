"""Hadamard matrices: which sizes there are here, and the rotation of a vector by one.

Sizes ``2^k m`` are products of Sylvester's matrix and a factor of order m by Paley's constructions
over a prime field: ``m = q + 1`` for a prime q = 3 modulo 4 (I), ``m = 2 (q + 1)`` for a prime
q = 1 modulo 4 (II). The multiplication takes O(K (k + m)) steps instead of O(K^2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .reference import hadamard_

__all__ = ["Rotation", "factor", "paley", "split_size", "turn_input_", "turn_of"]


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))


def factor(order: int) -> str:
    """The construction that gives a matrix of ``order``: "one", "paley 1", "paley 2", or ""."""
    if order == 1:
        return "one"
    if order % 4 == 0 and _is_prime(order - 1):  # order = q + 1, q = 3 modulo 4
        return "paley 1"
    q = order // 2 - 1
    return "paley 2" if order % 4 == 0 and q % 4 == 1 and _is_prime(q) else ""


def paley(order: int) -> Tensor:
    """A Hadamard matrix of +1 and -1, float64 [order, order], by one of Paley's constructions.

    ValueError if neither gives that order.
    """
    kind = factor(order)
    if not kind.startswith("paley"):
        raise ValueError(
            f"paley: no matrix of order {order}; wanted q + 1 for a prime q = 3 modulo 4, or "
            "2 (q + 1) for a prime q = 1 modulo 4"
        )
    q = order - 1 if kind == "paley 1" else order // 2 - 1
    residues = {a * a % q for a in range(1, q)}
    symbol = torch.tensor([0.0] + [1.0 if a in residues else -1.0 for a in range(1, q)])
    index = torch.arange(q)
    jacobsthal = symbol.double()[(index[:, None] - index[None]) % q]  # Q: symbols of differences
    core = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    core[0, 1:], core[1:, 1:] = 1.0, jacobsthal
    one = torch.eye(q + 1, dtype=torch.float64)
    if kind == "paley 1":  # skew-symmetric core
        core[1:, 0] = -1.0
        return core + one
    core[1:, 0] = 1.0  # symmetric core
    return torch.kron(core, torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()) + torch.kron(
        one, torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
    )


def split_size(size: int) -> tuple[int, int] | None:
    """(2^k, m): ``size`` by the smallest factor m that there is a matrix for; None without one."""
    power = size & -size if size > 0 else 0
    while power:
        if factor(size // power):
            return power, size // power
        power //= 2
    return None


class Rotation(nn.Module):
    """x [..., K] times an orthogonal matrix: random signs, then a Hadamard matrix over sqrt(K).

    The signs depend on ``seed`` and K only; they keep what all channels have in common from
    falling into one. ValueError for a K that no matrix is known for.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        split = split_size(size)
        if split is None:
            raise ValueError(
                f"Rotation: no Hadamard matrix of order {size} is known here; wanted 2^k m with m "
                "1 or an order of Paley's constructions over a prime field (12, 20, 28, 36, ...)"
            )
        self.size, (self.power, order) = size, split
        generator = torch.Generator().manual_seed(seed)
        signs = 2.0 * torch.randint(0, 2, (size,), generator=generator) - 1
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("matrix", None if order == 1 else paley(order), persistent=False)

    def extra_repr(self) -> str:
        return f"{self.size} = {self.power} * {self.size // self.power}"

    def forward(self, x: Tensor) -> Tensor:
        y = (x * self.signs.to(x.dtype)).reshape(-1, self.size // self.power, self.power)
        if self.matrix is not None:
            y = self.matrix.to(x.dtype) @ y  # over m
        return hadamard_(y, self.power).view(x.shape).mul_(self.size**-0.5)  # over 2^k


class _Turn:
    """A hook that turns the input of a module. Not a module around it: hooks that observe inputs
    come after it and see its result."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        self.turn = turn

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = args
        return (self.turn(x).to(x.dtype), *others)


def turn_input_(linear: nn.Linear, turn: Callable[[Tensor], Tensor], weight: Tensor) -> None:
    """Turn the input of ``linear`` whenever it runs; weight [N, K]: the one that goes with that."""
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_forward_pre_hook(_Turn(turn))


def turn_of(linear: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What ``turn_input_`` made a linear do to its input; None if nothing."""
    hooks = linear._forward_pre_hooks.values()
    return next((hook.turn for hook in hooks if isinstance(hook, _Turn)), None)
