"""Several processes under ``torchrun``: which of them this is, its share, and what all found.

Nothing is shared before ``joined`` is entered, so that a program which runs under ``torchrun`` for
reasons of its own can call this package from one of its processes. Everything travels through CPU
memory (gloo), whatever device the models are on. Without ``torchrun`` torch.distributed is not
imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .devices import computing_device

__all__ = ["ALONE", "Group", "RankError", "current", "joined", "local_device", "spread"]

JOINING = timedelta(minutes=10)  # until every rank is there
WORKING = timedelta(days=2)  # between two meetings: the slowest rank's share of 50 000 images
GRACE = 1.0  # seconds in which a rank that fails can still say why
MOST_LANES = 64


class RankError(RuntimeError):
    """Another rank is gone, and this one cannot go on without it."""


@dataclass
class Group:
    """Rank ``rank`` of ``world`` processes. Alone (0 of 1) every method answers at once."""

    rank: int = 0
    world: int = 1
    _store: Any = None
    _gloo: Any = None
    _meetings: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"

    def owns(self, number: int) -> bool:
        """Whether batch ``number`` of any list is this rank's."""
        return number % self.world == self.rank

    def barrier(self) -> None:
        """Wait for all ranks. RankError, as in all methods below, if one of them is gone."""
        self.sum_(torch.zeros(1))

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` added up over the ranks, in place. The order is nobody's promise: the result is
        the same for every world only where every partial sum is exact."""
        if self.world > 1:
            with self._meeting():
                self._gloo.allreduce([x]).wait()
        return x

    def gather(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The named CPU tensors of every rank in turn; names, shapes and dtypes may differ."""
        if self.world == 1:
            return [dict(tensors)]
        from safetensors.torch import load, save

        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self._meeting():
            self._gloo.allgather([sizes], [torch.tensor([len(data)])]).wait()
        longest = int(max(sizes))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        mine = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        with self._meeting():
            self._gloo.allgather([parts], [mine]).wait()
        return [load(p[: int(n)].numpy().tobytes()) for p, n in zip(parts, sizes, strict=True)]

    def gather_batches(self, mine: Mapping[int, Tensor]) -> list[Tensor]:
        """The results of all batches in their order; mine: number -> CPU tensor of those that this
        rank owns."""
        parts = self.gather({str(number): tensor for number, tensor in mine.items()})
        found = {int(number): tensor for part in parts for number, tensor in part.items()}
        return [found[number] for number in range(len(found))]

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """All ranks do the same here; if that fails, the error names the rank that does not."""
        number = self._meetings
        self._meetings += 1
        try:
            self._store.set(f"meeting {number} {self.rank}", "")
            yield
        except RuntimeError as error:
            raise RankError(
                f"{self}: {self._absent(number)}. Start the same command again: batches of images "
                "that are on disk are not drawn twice"
            ) from error

    def _absent(self, number: int) -> str:
        """Who is not at meeting ``number``, and why if they said it."""
        end = time.monotonic() + GRACE
        others = [rank for rank in range(self.world) if rank != self.rank]
        try:
            while time.monotonic() < end:
                for rank in others:
                    if self._store.check([f"stopped {rank}"]):
                        return f"rank {rank} stopped: {self._store.get(f'stopped {rank}').decode()}"
                time.sleep(0.1)
            gone = [r for r in others if not self._store.check([f"meeting {number} {r}"])]
        except RuntimeError:
            return "rank 0 is gone, at which the others meet"
        if not gone:
            return "the connection to the other ranks broke"
        names = ", ".join(map(str, gone))
        return f"rank {names} did not come: it was killed, or its machine is gone"

    def _stop(self, error: BaseException) -> None:
        """Tell the others why this rank stops, unless it is because of one of them."""
        if isinstance(error, RankError):
            return
        text = " ".join(str(error).split()) or "interrupted"
        with suppress(RuntimeError):  # nobody may be left who could be told
            self._store.set(f"stopped {self.rank}", f"{type(error).__name__}: {text}")


@dataclass
class _Place:
    """Where the ranks meet: one connection for all entries of ``joined``, since the others may
    connect to rank 0, which must not go away between two of them."""

    key: tuple[Any, ...]
    store: Any
    entries: int = 0


ALONE = Group()
_current = ALONE
_place: _Place | None = None


def current() -> Group:
    """The processes that share work: those of ``joined``, or this one alone."""
    return _current


def _from_environment() -> tuple[int, int]:
    """(rank, world) as torchrun sets them; (0, 1) without it."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if given["WORLD_SIZE"] is None:
        return 0, 1
    try:
        rank, world = int(given["RANK"] or ""), int(given["WORLD_SIZE"])
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise ValueError(
            f"RANK is {given['RANK']!r} and WORLD_SIZE {given['WORLD_SIZE']!r}; wanted what "
            "torchrun sets, or neither. Type: torchrun --nproc-per-node 4 -m ptq4arvg ..."
        )
    return rank, world


def _entry(rank: int, world: int) -> Any:
    """A store whose keys are those of this entry of ``joined`` alone."""
    global _place
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # After a restart torchrun's store still says where the processes of the last attempt listened.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    where = (os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
    key = (rank, world, attempt, *where)
    if _place is None or _place.key != key:
        store, _, _ = next(rendezvous("env://", rank, world, timeout=JOINING))
        _place = _Place(key, store)
    _place.entries += 1
    return PrefixStore(f"attempt {attempt} entry {_place.entries}", _place.store)


@contextmanager
def joined() -> Iterator[Group]:
    """Share the work inside among the processes of ``torchrun``; without it, nothing happens.

    All of them have to do the same: a rank that fails tells the others, whose next meeting raises
    RankError. It may be entered again, and within itself. ValueError if RANK and WORLD_SIZE make no
    sense.
    """
    global _current
    rank, world = _from_environment()
    if world == 1:
        yield ALONE
        return
    from torch.distributed import PrefixStore, ProcessGroupGloo

    store = _entry(rank, world)
    # Not torch's default group: that is the host program's to make, and modules imported while it
    # exists keep it alive, which aborts the process at its end.
    group = Group(rank, world, PrefixStore("ptq4arvg", store))
    group._gloo = ProcessGroupGloo(PrefixStore("gloo", store), rank, world, timeout=WORKING)
    before, _current = _current, group
    try:
        yield group
        group.barrier()  # nobody leaves while another needs it
    except BaseException as error:
        group._stop(error)
        raise
    finally:
        _current, group._gloo = before, None  # its threads end with it


def local_device(device: str) -> torch.device:
    """``device`` of this process: under torchrun "cuda" is the one of its place on the machine.
    ValueError if it is not there."""
    place = os.environ.get("LOCAL_RANK")
    shared = device == "cuda" and current().world > 1 and place
    return computing_device(f"cuda:{place}" if shared else device)


def check_batch_size(size: int) -> None:
    """ValueError unless batches can have that size."""
    if size < 1:
        raise ValueError(f"batch size is {size}; wanted 1 or more")


def spread(count: int, size: int) -> list[Tensor]:
    """Indices int64 of ``count`` images in n batches of at most ``size``: batch b holds the images
    b, b + n, b + 2 n and so on.

    What a batch holds does not depend on the world, because sums of floats in a batch of another
    size may round otherwise. Batch b is that of rank b mod world, and so image i is that of rank
    i mod world where world divides n; n is rounded up so that powers of two do.
    """
    check_batch_size(size)
    n = -(-count // size)
    lanes = min(1 << (n.bit_length() - 1), MOST_LANES)
    n = min(-(-n // lanes) * lanes, count)
    return [torch.arange(b, count, n) for b in range(n)]
