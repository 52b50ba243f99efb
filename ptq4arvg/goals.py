"""What a model is quantized to: one scheme for all linears, or a budget of bits for a mixture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .numerics import Scheme, get_scheme

__all__ = ["Goal", "check_target", "parse_goal", "parse_goals"]


def check_target(target: float) -> float:
    """Mean bits of the weights that a mixture may have. ValueError unless they are 4 to 8."""
    if not 4 <= target <= 8:
        raise ValueError(
            f"target_bits is {target:g}; wanted 4 to 8, the mean bits of the quantized weights"
        )
    return float(target)


@dataclass(frozen=True)
class Goal:
    """scheme: of all linears; None where ``target_bits``, the mean bits of the weights, are given
    and every linear gets a scheme of its own (see ``allocation.py``)."""

    scheme: Scheme | None
    target_bits: float | None = None

    @property
    def name(self) -> str:
        """As tables and files have it: "W6A6", "5.5 bits"."""
        return self.scheme.name if self.scheme else f"{self._target} bits"

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``quantize_`` takes for it."""
        return {"scheme": self.scheme} if self.scheme else {"target_bits": self.target_bits}

    @property
    def flag(self) -> str:
        """What `ptq4arvg quantize` takes for it."""
        return f"--scheme {self.name}" if self.scheme else f"--target-bits {self._target}"

    @property
    def _target(self) -> str:
        """All digits, so that two budgets never share a name."""
        return str(self.target_bits).removesuffix(".0")


def parse_goal(text: str) -> Goal:
    """The goal of a scheme's name in any case, or of mean bits as in "5.5" and "5.5 bits".

    ValueError for an unknown scheme, or bits that are not 4 to 8.
    """
    try:
        target = float(text.removesuffix("bits"))
    except ValueError:
        return Goal(get_scheme(text))
    return Goal(None, check_target(target))


def parse_goals(texts: Iterable[str]) -> tuple[Goal, ...]:
    """Several goals in their order. ValueError if there are none, or one is named twice."""
    goals = tuple(map(parse_goal, texts))
    if not goals:
        raise ValueError("no scheme; wanted some of W8A8, W6A6, ..., or budgets such as 5.5")
    names = [goal.name for goal in goals]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"schemes {', '.join(names)}: {twice} is there twice; wanted it once")
    return goals
