"""Where in the sequence a model is: what every static per-position table is read by."""

from __future__ import annotations

import torch

__all__ = ["Cursor"]


class Cursor:
    """Where in the sequence the rows that a model is processing sit.

    A model owns one cursor and moves it before each step; every quantized linear of that model
    reads its static scales at ``begin .. begin + tokens - 1``. ``position`` is the same ``begin``
    as a one-element int32 tensor, which is what the ops take, so that a captured CUDA graph can be
    replayed for every step.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.begin = 0
        self.tokens = 0
        self.position = torch.zeros(1, dtype=torch.int32, device=device)

    def set(self, begin: int, tokens: int) -> None:
        """Declare that the next rows are ``tokens`` positions per image, from ``begin`` on."""
        self.begin = begin
        self.tokens = tokens
        self.position.fill_(begin)
