"""Which networks are being run: while one is, no pipeline that shares it may change how it runs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from ..core.errors import ConfigError
from ..core.fork import Lock, renew_in_child


class Traffic:
    """Calls under way, by network and thread."""

    def __init__(self) -> None:
        self._calls: WeakKeyDictionary[nn.Module, Counter[int]] = WeakKeyDictionary()
        self._lock = Lock()  # held while networks change: calls wait for that before they begin
        renew_in_child(self)

    @contextmanager
    def running(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Around a call that runs these networks; waits while any network of the process is being changed."""
        own, networks = threading.get_ident(), list(networks)
        with self._lock:
            for network in networks:
                self._calls.setdefault(network, Counter())[own] += 1
        try:
            yield
        finally:
            with self._lock:
                for network in networks:
                    self._calls[network][own] -= 1

    @contextmanager
    def resting(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """In the midst of this thread's calls of these networks, which run nothing meanwhile: as if there were none."""
        own = threading.get_ident()
        with self._lock:
            at_rest = {network: self._calls[network].pop(own, 0) for network in networks if network in self._calls}
        try:
            yield
        finally:
            with self._lock:
                for network, count in at_rest.items():
                    self._calls[network][own] += count

    @contextmanager
    def changing(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Around a change of these networks. ConfigError while a call runs one of them."""
        with self._lock:
            if self.is_running(networks):
                raise ConfigError(
                    "techniques cannot change while a picture is being drawn, by this pipeline or by another one that "
                    "shares its networks: wait for the call to end."
                )
            yield

    def is_running(self, networks: Iterable[nn.Module]) -> bool:
        """Whether a call runs one of these networks."""
        return any(self._calls[network].total() for network in networks if network in self._calls)

    def renew(self) -> None:
        """In a forked child: calls in other threads of the parent are not under way here."""
        own = threading.get_ident()
        for calls in self._calls.values():
            for thread in [each for each in calls if each != own]:
                del calls[thread]


traffic = Traffic()
