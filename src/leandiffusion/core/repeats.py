"""A layer that is called again and again with the same input, for other parts of its outputs: what all of these calls
compute is made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_kept: ContextVar[dict[str, Any] | None] = ContextVar("what repeated calls share", default=None)


@contextmanager
def same_inputs() -> Iterator[None]:
    """Meanwhile, in this thread, one layer is called again and again with the same input."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def are_repeating() -> bool:
    """Whether calls within `same_inputs` are under way in this thread."""
    return _kept.get() is not None


def made_once(name: str, make: Callable[[], T]) -> T:
    """`make()`, which depends on the layer's input alone. Calls that repeat get what the first of them made under this
    name, until they end."""
    kept = _kept.get()
    if kept is None:
        return make()
    if name not in kept:
        kept[name] = make()
    return kept[name]
