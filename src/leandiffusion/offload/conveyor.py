"""The conveyor: brings the weights of the unit that is about to run, and meanwhile those that will follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core.fork import Lock
from .arena import Arena
from .prefetch import Mark, Place, Prefetcher, Ticket
from .units import Unit, Weight

AHEAD = 24
"""Prefetch depth in units, at most. The arena ends it much sooner wherever units are large."""

Read = Callable[[Unit, Tensor], None]
"""(unit, memory on the compute device) -> fills the memory with the unit's weights, at their places."""


@dataclass(eq=False)
class Load:
    """A unit whose weights are in memory on the compute device, or on their way there.

    `places` are those that use it (streams of the device), each of which waited for it to be filled. `versions` are the
    masters' when reading them began.
    """

    unit: Unit
    memory: Tensor
    versions: dict[Weight, int]
    ticket: Ticket = None
    places: set[Place] = field(default_factory=set)
    left: list[Mark] = field(default_factory=list)
    views: dict[Any, list[Tensor]] = field(default_factory=dict)  # of the memory, as its user made them
    is_filled: bool = False


class Conveyor:
    """Knows which units are in the arena and moves them through it; weights are dropped, never copied back.

    What follows a unit is what followed it last time; before that, what was declared after it. A wrong guess costs a
    wait and nothing else. Every state between two calls of `arrive` is one from which any unit can arrive, so that an
    exception or Ctrl-C anywhere in a forward leaves nothing to clean up. Units enter and leave in one order.
    """

    def __init__(
        self, units: Iterable[Unit], read: Read, arena: Arena, prefetcher: Prefetcher, *, ahead: bool = True
    ) -> None:
        units = list(units)
        self._read, self._arena, self._prefetcher = read, arena, prefetcher
        self._follower = dict(zip(units, [*units[1:], *units[:1]], strict=True)) if ahead else {}
        self._last: Unit | None = None
        self._network = ""  # whose units the arena gives memory to
        self._current: Load | None = None
        self._loads: dict[Unit, Load] = {}  # in the arena, oldest first
        self._used: list[Mark] = []  # until which memory that is free again may be in use; the next fill waits for them
        self._lock = Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the arena has."""
        return self._arena.nbytes

    def arrive(self, unit: Unit) -> Load:
        """Have the unit's weights in memory, and fetch what should come next. Raises what reading raises.

        The memory is the unit's until another one arrives.
        """
        current, here = self._current, self._prefetcher.place()
        if current is not None and current.unit is unit and here in current.places:
            return current
        with self._lock:
            current = self._current
            if current is None or current.unit is not unit:
                self._leave()
                self._learn(unit)
                self._turn_to(unit.network)
            load = self._loads.get(unit) or self._start(unit, self._make_room(unit))
            self._current = load  # before anything uses it: from here on leaving notes until when it was used
            self._finish(load)
            if load.places and here not in load.places:
                self._prefetcher.share(load.memory)
            load.places.add(here)
            self._look_ahead(load)
            return load

    def forget(self, unit: Unit) -> None:
        """What was read of the unit is no longer what its masters hold: it will be read anew."""
        with self._lock:
            self._leave()
            if unit in self._loads:
                self._evict_all()

    def clear(self) -> None:
        """Let every unit leave and free its memory."""
        with self._lock:
            self._leave()
            self._evict_all()
            self._last = None

    def close(self) -> None:
        """`clear`, and let go of the prefetcher. The conveyor cannot be used afterwards."""
        self.clear()
        self._prefetcher.close(self._used)

    def renew(self) -> None:
        """In a forked child: nothing is on its way, since what was reading did not come along."""
        self._current = self._last = None
        self._loads.clear()
        self._used.clear()
        self._arena.reset()
        self._prefetcher.renew()

    # -- one step --------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """The current unit has run."""
        load = self._current
        if load is not None:
            load.left = [self._prefetcher.mark(place) for place in load.places]
            self._current = None  # not before: whoever interrupts this finds it as it was

    def _turn_to(self, network: str) -> None:
        if network != self._network:
            self._evict_all()
            self._arena.turn_to(network)
            self._network = network

    def _learn(self, unit: Unit) -> None:
        if self._last is not None and self._follower:
            self._follower[self._last] = unit
        self._last = unit

    def _start(self, unit: Unit, memory: Tensor) -> Load:
        load = Load(unit, memory, {weight: weight.version for weight in unit.weights})
        self._loads[unit] = load  # before it is started: what is in the arena and what is noted must agree
        try:
            load.ticket = self._prefetcher.start(lambda: self._read(unit, memory), self._used)
            self._used = []  # fills run in order, so what one waits for all later ones do
        except BaseException:
            self._give_up()
            raise
        return load

    def _finish(self, load: Load) -> None:
        """Have what computes here wait until the load is filled."""
        try:
            self._prefetcher.wait(load.ticket)
        except BaseException:  # Ctrl-C too: what was being read may be half there
            load.is_filled = False
            self._give_up()
            raise
        load.is_filled = True

    def _make_room(self, unit: Unit) -> Tensor:
        """Memory for a unit that is needed now."""
        self._used.append(self._prefetcher.mark())  # it may be fresh, and its former owner's work still under way
        while (memory := self._take(unit)) is None:
            self._evict()
        return memory

    def _take(self, unit: Unit) -> Tensor | None:
        if not self._loads:
            self._arena.reset()  # Ctrl-C between taking memory and noting it may have left some out
        return self._arena.take(unit.nbytes)

    def _give_up(self) -> None:
        """Let everything leave, since memory only comes back in order; other places may be using what is current."""
        try:
            self._leave()
        finally:
            self._current = None
            self._evict_all()

    def _evict_all(self) -> None:
        while self._loads:
            self._evict()

    def _evict(self) -> None:
        unit, load = next(iter(self._loads.items()))
        if load.ticket is not None and not load.is_filled:
            self._prefetcher.abandon(load.ticket)
        self._used += load.left
        del self._loads[unit]
        self._arena.give()

    def _look_ahead(self, current: Load) -> None:
        """Start what follows in the network, as far as it fits without taking memory from the current unit or from what
        follows."""
        wanted = current.unit
        for _ in range(AHEAD):
            wanted = self._follower.get(wanted)
            if wanted is None or wanted is current.unit or wanted.network != self._network:
                return
            if wanted in self._loads:
                continue
            while (memory := self._take(wanted)) is None:
                oldest = next(iter(self._loads.values()))
                if oldest is current or not oldest.places:
                    return
                self._evict()
            self._start(wanted, memory)
