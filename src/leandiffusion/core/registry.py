"""One registry for everything that is chosen by name.

A registry belongs to a folder: each file of the folder registers what it defines, and the folder is imported on the
first look-up, so adding a thing is adding one file.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from .errors import ConfigError
from .wording import show

T = TypeVar("T")


def did_you_mean(name: str, names: list[str]) -> str:
    """' Did you mean …?' for the closest of `names`, or an empty string when none is close."""
    if len(name) > 100:  # no name of ours is, and comparing takes as long as both together
        return ""
    close = get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    original = {n.lower(): n for n in names}
    return f" Did you mean {original[close[0]]!r}?" if close else ""


class Registry(Generic[T]):
    """Names to things. `kind` is the word used in messages; `package` the folder whose files register themselves."""

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._loading = False
        self._entries: dict[str, T] = {}
        self._lock = threading.RLock()  # re-entrant: the files register themselves while they are imported

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`. A second entry of the same name is a programming error: ValueError."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""
        return lambda entry: self.add(name, entry)

    def get(self, name: str) -> T:
        """The entry called `name`; ConfigError with the known names when there is none."""
        self._load()
        if not isinstance(name, str) or name not in self._entries:
            names = list(self._entries)
            raise ConfigError(
                f"unknown {self.kind} {show(name)}.{did_you_mean(str(name), names)} Known: {', '.join(sorted(names))}."
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """Every registered name, in order of registration."""
        self._load()
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load(self) -> None:
        if self._package is None:
            return
        with self._lock:
            package, loading = self._package, self._loading
            if package is None or loading:
                return
            self._loading = True
            try:
                for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                    importlib.import_module(f"{package}.{module.name}")
                self._package = None
            finally:
                self._loading = False
