"""AdaLN modulations that depend on (class, position) only, computed once per class in a budget.

In RAR they take a third of the multiplications, although they are the same for all images of a
class and the unconditional rows of guidance are all of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["ModulationTable", "checksum"]


def checksum(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """A sum over the bits of every tensor: another tuple once one of them holds other values."""
    sums = []
    for tensor in tensors:
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        sums.append((raw if raw.numel() % 8 else raw.view(torch.int64)).sum(dtype=torch.int64))
    return tuple(torch.stack(sums).tolist())


class ModulationTable:
    """The modulations [M] of every row of a batch, position after position.

    compute: (labels int64 [D], begin, count) -> [D, count, M]. Each distinct label is computed
    once for all positions and stays for later batches, while all that stays takes at most
    ``budget`` bytes. A batch of more distinct labels is served in windows of positions instead.
    """

    def __init__(
        self, compute: Callable[[Tensor, int, int], Tensor], positions: int, budget: int
    ) -> None:
        self.compute, self.positions, self.budget = compute, positions, budget
        self.kept: dict[int, Tensor] = {}  # label -> [positions, M], least recently used first
        self._stamp: tuple[object, ...] = ()
        self.close()

    def open(self, labels: Tensor, position_bytes: int, stamp: tuple[int, ...]) -> None:
        """Begin a batch whose rows have ``labels`` [B].

        position_bytes: size of one [M]; stamp: a checksum of what ``compute`` reads: what was made
        from other weights, or on another device, is forgotten.
        """
        stamp = (labels.device, *stamp)
        if stamp != self._stamp:
            self.kept, self._stamp = {}, stamp
        self._labels, self._row = labels.unique(return_inverse=True)
        names = self._labels.tolist()
        whole = self.positions * position_bytes
        if len(names) * whole > self.budget:
            self.kept, self._end = {}, 0
            self._count = max(self.budget // (len(names) * position_bytes), 1)
            return
        used = {
            name: self.kept.pop(name)
            if name in self.kept
            else self.compute(labels.new_tensor([name]), 0, self.positions)[0]
            for name in names
        }
        while (len(self.kept) + len(used)) * whole > self.budget:
            del self.kept[next(iter(self.kept))]
        self.kept.update(used)
        self._window, self._begin, self._end = list(used.values()), 0, self.positions

    def at(self, position: int) -> Tensor:
        """Modulations [B, M] of the batch's rows; positions come in ascending order."""
        if position >= self._end:
            count = min(self._count, self.positions - position)
            self._window = list(self.compute(self._labels, position, count).unbind())
            self._begin, self._end = position, position + count
        index = position - self._begin
        return torch.stack([rows[index] for rows in self._window])[self._row]

    def __enter__(self) -> ModulationTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the batch: a window does not stay."""
        self._window: list[Tensor] = []  # [count, M] of each distinct label, from _begin on
        self._begin = self._end = self._count = 0
