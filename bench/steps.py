"""The steps of a benchmark: a failure costs one of them, an interrupt those that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from device import Device

__all__ = ["first_line", "take_steps"]

Step = TypeVar("Step")


def first_line(error: Exception) -> str:
    """What an error says first; the name of its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def take_steps(
    steps: Sequence[Step],
    measured: Callable[[Step, Callable[[], None]], Iterable[Mapping[str, Any]]],
    identity: Callable[[Step], Mapping[str, Any]],
    rows: list[dict[str, Any]],
    shared: Mapping[str, Any],
    display: Any,
    device: str,
) -> int:
    """Append the rows that ``measured(step, tick)`` gives for each step, with the columns of
    ``shared``; tick moves the display on. Returns the exit status of the benchmark.

    0; 1 where a step failed, which has a row of its ``identity`` with the reason as a note, and a
    device that no longer answers ends the run; 130 after an interrupt.
    """
    status = 0
    for number, step in enumerate(steps):
        named = identity(step)
        phase = str(named.get("model") or named.get("op") or "measure")

        def tick(number: int = number, phase: str = phase) -> None:
            display(phase, number, len(steps))

        tick()
        try:
            for row in measured(step, tick):
                rows.append({**shared, **row})
        except KeyboardInterrupt:
            display.say("interrupted; this is what was measured until then")
            return 130
        except Exception as error:  # of a kernel, torch or another library
            reason = first_line(error)
            what = ", ".join(f"{name} {value}" for name, value in named.items() if value != "")
            display.say(f"failed: {what}: {reason}")
            rows.append({**shared, **named, "candidate": "none", "note": f"failed: {reason}"})
            status = 1
            if not Device(device).answers():
                display.say(f"{device} no longer answers; this is what was measured until then")
                return status
    display("measure", len(steps), len(steps))
    return status
