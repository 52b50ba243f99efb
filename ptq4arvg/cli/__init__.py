"""The command line. Commands import what they need when they run, so that help is immediate."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

__all__ = ["main"]

SHARED = ("calibrate", "evaluate", "generate", "quantize")  # commands that run under torchrun


def _fail(text: str, code: int = 2) -> int:
    rank = os.environ.get("RANK")
    who = "ptq4arvg" if rank is None else f"ptq4arvg: rank {rank}"
    print(f"{who}: {text}", file=sys.stderr)
    return code


def _interrupted() -> int:
    return _fail("interrupted; nothing was left half-written", 130)


def _unknown_command(arguments: Sequence[str], known: Sequence[str]) -> str | None:
    from ..errors import closest

    name = next((a for a in arguments if not a.startswith("-")), None)
    if name is None or name in known:
        return None
    return (
        f"there is no command {name!r}; wanted one of {', '.join(known)}. {closest(name, known)}. "
        "Type: ptq4arvg --help"
    )


@contextlib.contextmanager
def _processes(command: str | None) -> Iterator[None]:
    """Share the command's work among the processes of torchrun, of which rank 0 alone prints.

    ValueError for a command that does not share its work.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    from ..distributed import joined

    with joined() as group, contextlib.ExitStack() as stack:
        if group.world > 1 and command not in SHARED:
            raise ValueError(
                f"{command} does not share its work among processes; type the same without "
                f"torchrun, which is for {', '.join(SHARED)}"
            )
        if group.rank:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit status.

    0: done. 1, by typer's SystemExit: nobody reads the output any more. 2: what was asked for
    cannot be done, said in one line on standard error (PTQ4ARVG_DEBUG=1 raises instead, with the
    traceback). 130: interrupted; nothing half-written.
    """
    import typer

    from .app import COMMANDS, app

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    unknown = _unknown_command(arguments, COMMANDS)
    if unknown:
        return _fail(unknown)
    try:
        with _processes(next((a for a in arguments if not a.startswith("-")), None)):
            status = app(args=arguments, prog_name="ptq4arvg", standalone_mode=False)
        if status == 130:  # what newer typer makes of an interrupt
            return _interrupted()
        return status if isinstance(status, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        if os.environ.get("PTQ4ARVG_DEBUG") == "1":
            raise
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # usage: typer explains itself
            error.show()
            return error.exit_code
        expected = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
        if not isinstance(error, expected):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return _fail(" ".join(line.strip() for line in lines))
