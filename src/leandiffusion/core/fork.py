"""Locks in forked child processes: the parent's other threads do not exist there, and never release what they held.

https://docs.python.org/3/library/os.html#os.fork: only the thread that forked goes on in the child.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol
from weakref import WeakSet


class Renewed(Protocol):
    """Something that is reset in a forked child."""

    def renew(self) -> None:
        """Reset state that only the parent's other threads could have completed."""
        ...


_renewed: WeakSet[Any] = WeakSet()
_parent = os.getpid()


def renew_in_child(thing: Renewed) -> None:
    """Have `thing.renew()` called in every forked child, for as long as it lives. No-op where there is no fork."""
    _renewed.add(thing)


def is_forked() -> bool:
    """Whether this process was forked from one in which Lean Diffusion was imported."""
    return os.getpid() != _parent


class Lock:
    """A re-entrant lock as a context manager, free in a forked child unless the thread that forked holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        renew_in_child(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Become free, if another thread of the parent held it."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # what threading.Condition asks
            self._lock = threading.RLock()


def _renew_all() -> None:
    for thing in list(_renewed):
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
