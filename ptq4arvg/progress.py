"""Showing progress: a bar with the time left on a terminal, a line per 10 % elsewhere, or nothing.

Library functions take any callable ``progress(phase, done, total)`` and know nothing of displays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, TextIO

__all__ = ["BarProgress", "PlainProgress", "Progress", "SilentProgress", "make_progress"]


class Progress(Protocol):
    """What library functions call: ``done`` of ``total`` steps of ``phase`` are finished."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...


class _Display(AbstractContextManager):
    """Common to all displays: a context manager, a callable, and a way to say a line in between."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.prefix = ""

    def within(self, prefix: str) -> _Display:
        """Put ``prefix`` before the names of the phases that follow."""
        self.prefix = prefix
        return self

    def __call__(self, phase: str, done: int, total: int) -> None:
        self.show(f"{self.prefix} {phase}".strip(), done, max(total, 1))

    def show(self, phase: str, done: int, total: int) -> None:
        """Display that ``done`` of ``total`` steps of ``phase`` are finished."""

    def say(self, text: str) -> None:
        """Print a line without disturbing the display."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


class SilentProgress(_Display):
    """For --quiet."""


class PlainProgress(_Display):
    """A line whenever a phase begins, passes another tenth, or ends; for logs and pipes."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self.clock = clock
        self._phase = ""
        self._tenth = -1
        self._start = 0.0
        self._first = 0

    def show(self, phase: str, done: int, total: int) -> None:
        now = self.clock()
        if phase != self._phase or done < self._first:
            # The first call reports steps that are finished already: time is counted from here.
            self._phase, self._tenth, self._start, self._first = phase, -1, now, done
        tenth = 10 * done // total
        if tenth == self._tenth:
            return
        self._tenth = tenth
        line = f"{phase}: {done}/{total} ({100 * done // total} %)"
        if self._first < done < total:
            left = (now - self._start) / (done - self._first) * (total - done)
            line += f", about {left:.0f} s left"
        self.say(line)

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class BarProgress(_Display):
    """A bar per phase with the time left, on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=self.stream),
            transient=True,
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            # One bar at a time: finished phases would push the running one off the screen.
            for task in self._tasks.values():
                self._bars.update(task, visible=False)
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total, visible=True)

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


def make_progress(quiet: bool = False, stream: TextIO | None = None) -> _Display:
    """The display for ``stream`` (default: standard error): silent, a bar, or plain lines."""
    stream = stream or sys.stderr
    if quiet:
        return SilentProgress(stream)
    return BarProgress(stream) if stream.isatty() else PlainProgress(stream)
