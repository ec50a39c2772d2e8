"""Files that describe a checkpoint are read once while it is opened, by however many parts ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_read: ContextVar[dict[Any, Any] | None] = ContextVar("what was read since opening began", default=None)


@contextmanager
def opening() -> Iterator[None]:
    """Context manager or decorator for what opens one checkpoint: within it, `once` caches."""
    if _read.get() is not None:  # already inside
        yield
        return
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def once(read: Callable[P, R]) -> Callable[P, R]:
    """Decorator of functions that read files: during `opening`, results are cached by their arguments.

    Arguments must be hashable, and nobody may change what is returned. Errors are not cached.
    """

    @wraps(read)
    def ask(*args: P.args, **kwargs: P.kwargs) -> R:
        known = _read.get()
        if known is None:
            return read(*args, **kwargs)
        asked = (read, args, tuple(sorted(kwargs.items())))
        if asked not in known:
            known[asked] = read(*args, **kwargs)
        return known[asked]

    return ask
