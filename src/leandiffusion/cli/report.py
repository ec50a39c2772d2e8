"""What the command says beside its result: notes, failures in one line. All of it on standard error."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from ..core.errors import LeanError
from ..core.units import format_bytes, format_seconds

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def say(text: str) -> None:
    """A line for the person at the terminal, kept out of standard output."""
    typer.echo(text, err=True)


@contextmanager
def in_one_line(verbose: bool) -> Iterator[None]:
    """Run a command's work: warnings become notes, an error one line and exit code 1, Ctrl-C exit code 130.

    With `verbose` an error's trace is printed above its line. Wrong usage passes through: typer reports it, code 2.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _note
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if verbose:
                say(traceback.format_exc().rstrip())
            say(f"Error: {_first_line(error)}" + ("" if verbose else " (--verbose shows where)"))
            raise typer.Exit(1) from None


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
