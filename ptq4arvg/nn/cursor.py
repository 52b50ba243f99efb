"""Where in the sequence a model is: what every static per-position table is read by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Cursor"]


class Cursor:
    """Where in the sequence the rows that a model is processing sit.

    A model owns one cursor and moves it before each step; every quantized linear of that model
    reads its static scales at ``begin .. begin + tokens - 1``. ``position`` is the same ``begin``
    as a one-element int32 tensor, which is what the ops take, so that a captured CUDA graph can be
    replayed for every step.

    rows: what picks these positions from a table over all of them. mask: None, or what a step that
    reads its position from the device adds to the scores of all keys (see ``on_device``).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.begin = 0
        self.tokens = 0
        with torch.inference_mode(False):  # or no step outside of it could move the cursor
            self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self._index: Tensor | None = None
        self.mask: Tensor | None = None

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move to the device that ``fn`` moves tensors to, as ``nn.Module._apply`` gives it."""
        device = fn(torch.empty(0, device=self.position.device)).device
        with torch.inference_mode(False):
            self.position = self.position.to(device)

    def set(self, begin: int, tokens: int) -> None:
        """Declare that the next rows are ``tokens`` positions per image, from ``begin`` on."""
        self.begin = begin
        self.tokens = tokens
        self.position.fill_(begin)

    @property
    def rows(self) -> slice | Tensor:
        """The positions as a slice, or on the device as int64 [tokens]."""
        return slice(self.begin, self.begin + self.tokens) if self._index is None else self._index

    @contextmanager
    def on_device(self, length: int, dtype: torch.dtype) -> Iterator[None]:
        """Within, ``position`` alone says where the rows are, and ``begin`` is not read.

        That is what a step needs that is captured once for all positions: it attends to all
        ``length`` keys of a cache, and ``mask`` [1, 1, tokens, length] hides those behind its last
        row: 0 or -inf, in dtype.
        """
        device = self.position.device
        self._index = self.position.long() + torch.arange(self.tokens, device=device)
        hidden = torch.arange(length, device=device) > self._index[-1]
        mask = torch.zeros(length, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
        self.mask = mask.expand(1, 1, self.tokens, length)
        try:
            yield
        finally:
            self._index = self.mask = None
