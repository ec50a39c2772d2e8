"""The C library's allocator, told to give freed memory back.

glibc serves large blocks straight from the system and gives them back when they are freed, but every one that is freed
raises the size from which it does so, up to 32 MiB (mallopt(3), "dynamic mmap threshold"). Blocks below that stay with
the process, and work that allocates and frees buffers of many sizes then peaks higher than it needs.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from .fork import Lock, renew_in_child
from .shapes import is_traced, tell_trimmed

LARGE = 4 << 20
"""Bytes from which blocks are given back. Asking the system for them anew takes a few percent of a sliced decode's
time."""

MEDIUM = 16 << 20
"""The same where that takes more time, as a quarter of a step's and half of a tiled decode's on a virtual machine:
smaller blocks are left with the process."""

HIGHEST = 32 << 20
"""Bytes from which blocks are given back by glibc of itself, once it has seen some: where its threshold's rise ends, of
64-bit glibc; heaps are trimmed at twice that."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


@contextmanager
def freed_at_once(size: int = LARGE) -> Iterator[None]:
    """Until this ends, in every thread, freed blocks of that many bytes or more go back to the system at once.

    Afterwards the thresholds are those that glibc comes to by itself once it has seen blocks of that size; glibc cannot
    report the previous ones, nor adapt them again. Nothing happens on other C libraries, where the user chose a
    threshold in the environment, or while shapes are traced, which allocates nothing.
    """
    if is_traced():
        yield
        return
    asked = threading.get_ident(), size
    _asked.change(_asked.sizes.append, asked)
    try:
        yield
    finally:
        _asked.change(_asked.sizes.remove, asked)


def trim() -> None:
    """Give back what is free now, as far as the C library can. A tracer of shapes is told instead."""
    if not tell_trimmed():
        _give_back()


def _give_back() -> None:
    give = getattr(_libc(), "malloc_trim", None)  # musl has none
    if give is not None:
        give(0)


class TrimsAtEnd:
    """The last attribute of an object that takes much memory: returns it to the system when the object is freed.

    Attributes are freed in the order in which they were set. A copy of the object has its own.
    """

    def __copy__(self) -> TrimsAtEnd:
        return TrimsAtEnd()

    def __deepcopy__(self, memo: Any) -> TrimsAtEnd:
        return TrimsAtEnd()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            _give_back()  # whose object this is no tracer knows: it may be freed while one happens to be on


class _Asked:
    """Threads and the sizes that they ask for now; the smallest counts."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._lock = Lock()
        renew_in_child(self)

    def change(self, how: Callable[[tuple[int, int]], None], asked: tuple[int, int]) -> None:
        with self._lock:
            before = self._smallest
            how(asked)
            if self._smallest != before:
                _set_threshold(self._smallest)

    def renew(self) -> None:
        """In a forked child: forget what the parent's other threads asked for, which nobody would take back."""
        others = [asked for asked in self.sizes if asked[0] != threading.get_ident()]
        for asked in others:
            self.sizes.remove(asked)
        if others:
            _set_threshold(self._smallest)

    @property
    def _smallest(self) -> int:
        return min((size for _, size in self.sizes), default=HIGHEST)


_asked = _Asked()


def _set_threshold(size: int) -> None:
    if _is_chosen() or not hasattr(_libc(), "gnu_get_libc_version"):
        return
    _libc().mallopt(_MMAP_THRESHOLD, size)
    _libc().mallopt(_TRIM_THRESHOLD, 2 * size)


def _is_chosen() -> bool:
    """Whether the user set thresholds (mallopt(3), "Environment variables", and glibc's tunables)."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(
        f"MALLOC_{name.upper()}_" in os.environ or f"malloc.{name}" in tunables
        for name in ("mmap_threshold", "trim_threshold")
    )


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
