"""Calls that repeat with the same inputs, for other parts of the outputs: what they need compute only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_kept: ContextVar[dict[str, Any] | None] = ContextVar("what repeated calls share", default=None)


@contextmanager
def same_inputs() -> Iterator[None]:
    """Meanwhile, in this thread, one function is called again and again with the same inputs."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def once(name: str, make: Callable[[], T]) -> T:
    """`make()`, which depends on the function's inputs alone; from its first call on, among calls that repeat."""
    kept = _kept.get()
    if kept is None:
        return make()
    if name not in kept:
        kept[name] = make()
    return kept[name]
