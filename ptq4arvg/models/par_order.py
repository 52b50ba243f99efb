"""In which order PAR generates the tokens of an image, and where each is (Wang et al. 2024).

The grid is cut into ``parallel`` equal regions (``side`` by ``side`` of them). Tokens at the same
place of every region are far apart and hardly depend on one another, so they are generated at once:
the *sequence* order runs over the places of a region, and at each place over the regions. Raster
order runs over the rows of the image. With one region the two are the same (LlamaGen).

*Positions* are what the transformer processes: the class; the tokens of the first place, one by
one; ``parallel - 1`` special tokens, which turn to parallel generation; the other tokens. What is
computed at position j predicts token j of the sequence, so the last ``parallel`` tokens are never
fed back, and an image takes as many positions as it has tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ParallelOrder"]


@dataclass(frozen=True)
class ParallelOrder:
    """Order of a square image of ``grid`` by ``grid`` tokens, ``parallel`` of them at a time.

    ValueError unless ``parallel`` is a square number whose root divides ``grid`` more than once.
    """

    grid: int
    parallel: int = 1

    def __post_init__(self) -> None:
        side = math.isqrt(max(self.parallel, 0))
        if side < 1 or side * side != self.parallel or self.grid % side or self.grid <= side:
            raise ValueError(
                f"parallel is {self.parallel} on a grid of {self.grid}; wanted a square number "
                "(1, 4, 16, ...) of equal regions with more than one token each"
            )

    @property
    def side(self) -> int:
        """Regions along each side of the image."""
        return math.isqrt(self.parallel)

    @property
    def tokens(self) -> int:
        """Tokens of an image, and positions that generating them takes."""
        return self.grid * self.grid

    @property
    def steps(self) -> list[int]:
        """How many positions each call of the transformer processes."""
        alone, together = self.parallel, self.tokens // self.parallel - 1
        return [1] * alone + [self.parallel] * together

    def raster(self, device: torch.device | str | None = None) -> Tensor:
        """Raster index of every token of the sequence, int64 [tokens]."""
        place = self.grid // self.side
        index = torch.arange(self.tokens, device=device)
        # [region row, row, region column, column] -> [row, column, region row, region column]
        index = index.view(self.side, place, self.side, place).permute(1, 3, 0, 2)
        return index.reshape(-1)

    def step(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """The call of the transformer that processes each of ``count`` positions, int64 [count]."""
        position = torch.arange(count, device=device)
        alone = position < self.parallel
        return torch.where(alone, position, self.parallel - 1 + position // self.parallel)

    def paper_groups(self) -> tuple[int, ...]:
        """The paper's token group of each position: every single step, the special tokens' step,
        and the rest. The boundary of the last two is where this step ends for any ``parallel``."""
        p = self.parallel
        return tuple(min(i, p) if i < 2 * p else p + 1 for i in range(self.tokens))

    def runs(self) -> tuple[int, ...]:
        """Positions of alike inputs: the class; the tokens read one by one; the special tokens'
        step; then one run per row of a region.

        Single steps hold too few values to estimate a range from (one token per image, of thousands
        in the vocabulary), and statistics of hundreds of them would fill the memory; from one step
        to the next the inputs change little. With one token at a time there are no special ones.
        """
        p, row = self.parallel, self.grid * self.side
        first = (0, *(1,) * (p - 1), *(2,) * p) if p > 1 else (0,)
        run = max(first) + 1
        return (*first, *(run + (i - p) // row for i in range(len(first), self.tokens)))

    def rotation(self, head_dim: int, base: float) -> Tensor:
        """Rotary factors of every position, complex64 [tokens + parallel, head_dim / 2].

        The first half of the factors turns with the row, the second with the column of the token
        that is read. Class and special tokens have no place: their factors are zero, and with them
        their queries and keys. On the CPU. ValueError unless head_dim is a multiple of 4.
        """
        if head_dim % 4:
            raise ValueError(f"the dimension of a head is {head_dim}; wanted a multiple of 4")
        half = head_dim // 2
        exponent = torch.arange(0, half, 2, device="cpu").float() / half
        frequency = 1.0 / base**exponent  # [head_dim / 4]
        raster = self.raster("cpu")
        place = torch.stack([raster // self.grid, raster % self.grid], 1)  # [tokens, 2]
        angle = (place[..., None] * frequency).flatten(1)  # [tokens, head_dim / 2]
        factor = torch.complex(angle.cos(), angle.sin())
        p, none = self.parallel, torch.zeros(1, half, dtype=factor.dtype, device="cpu")
        return torch.cat([none, factor[:p], none.expand(p - 1, -1), factor[p:]])
