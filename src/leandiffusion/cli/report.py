"""What a command prints: its result on standard output; notes, and errors in one line, on standard error.

What is printed holds names from files and folders, so that control characters in it are written out.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from ..core.errors import LeanError
from ..core.units import format_bytes, format_seconds
from ..core.wording import printable

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_POLITE_ENDS = ("SIGTERM", "SIGHUP")  # from a system that shuts down, a terminal that is closed


class Ended(KeyboardInterrupt):
    """A signal asked the process to end: it cleans up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def say(text: str) -> None:
    """Print a line for the user on standard error."""
    typer.echo(printable(text), err=True)


def give(result: object) -> None:
    """Print a line of the result on standard output; on a terminal with control characters written out."""
    text = str(result)
    typer.echo(printable(text) if sys.stdout.isatty() else text)


def print_whatever_comes() -> None:
    """Make printing never fail: characters that the console's encoding lacks are escaped, or '?' on standard error."""
    streams: list[tuple[TextIO, str]] = [(sys.stdout, "backslashreplace"), (sys.stderr, "replace")]
    for stream, errors in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]


@contextmanager
def in_one_line(verbose: bool) -> Iterator[None]:
    """Run a command's work: warnings become notes, an error one line and exit code 1, Ctrl-C exit code 130, and being
    asked to end by a signal 128 and its number.

    With `verbose` an error's trace is printed above its line. Wrong usage passes through: typer reports it, code 2.
    """
    with warnings.catch_warnings(), _signals_as_ctrl_c():
        warnings.showwarning = _note
        try:
            yield
        except typer.BadParameter as error:
            error.message = printable(error.message)
            raise
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            say("Interrupted.")
            raise typer.Exit(error.code if isinstance(error, Ended) else INTERRUPTED) from None
        except Exception as error:
            if verbose:
                say(traceback.format_exc().rstrip())
            say(f"Error: {_first_line(error)}" + ("" if verbose else " (--verbose shows where)"))
            raise typer.Exit(1) from None


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    def end(number: int, _: Any) -> None:
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may be told of signals
        yield
        return
    numbers = [getattr(signal, name) for name in _POLITE_ENDS if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_cost(seconds: Mapping[str, float], peak_memory: Mapping[str, int]) -> str:
    """'load 0.2 s · denoise 1.3 s · 1.5 s in all · peak memory 410 MiB'."""
    stages = [f"{stage} {format_seconds(taken)}" for stage, taken in seconds.items()]
    peaks = [
        f"peak memory {format_bytes(count)}" + ("" if where == "process" else f" on {where}")
        for where, count in peak_memory.items()
    ]
    return " · ".join([*stages, f"{format_seconds(sum(seconds.values()))} in all", *peaks])


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    """Stands in for `warnings.showwarning`: people at a terminal have no use for a file name and line number."""
    say(f"Note: {message}")


def _first_line(error: Exception) -> str:
    """The message on one line; with the error's class if it is not one of ours, which speak for themselves."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LeanError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")
