"""The conveyor: brings the weights of the unit that is about to run, and meanwhile those that will follow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from .arena import Arena
from .prefetch import Mark, Prefetcher, Ticket
from .units import Unit

AHEAD = 24
"""Units looked ahead at most. The arena ends the look much sooner wherever units are large."""

Read = Callable[[Unit, Tensor], None]
"""(unit, memory on the compute device) -> fills the memory with the unit's weights, at their places."""


@dataclass(eq=False)
class Load:
    """A unit whose weights are in memory on the compute device, or on their way there."""

    unit: Unit
    memory: Tensor
    ticket: Ticket
    left: Mark | None = None
    ready: bool = False
    used: bool = False
    shown: bool = False


class Conveyor:
    """Knows which units are in the arena and moves them through it; weights are dropped, never copied back.

    What follows a unit is what followed it last time; before that, what was declared after it. A wrong guess costs a
    wait and nothing else. Every state between two calls of `arrive` is one from which any unit can arrive, so that an
    exception or Ctrl-C anywhere in a forward leaves nothing to clean up.

    Units enter and leave in one order. `resident` units come once and stay, in memory of their own.
    """

    def __init__(
        self, units: Iterable[Unit], read: Read, arena: Arena, prefetcher: Prefetcher, *,
        resident: Iterable[Unit] = (), own_memory: Callable[[int], Tensor], ahead: bool = True,
    ) -> None:  # fmt: skip
        units = list(units)
        self._read, self._arena, self._prefetcher = read, arena, prefetcher
        self._resident, self._own_memory = set(resident), own_memory
        self._follower = dict(zip(units, [*units[1:], *units[:1]], strict=True)) if ahead else {}
        self._last: Unit | None = None
        self._current: Load | None = None
        self._loads: dict[Unit, Load] = {}  # in the arena, oldest first
        self._kept: set[Unit] = set()  # resident ones that have come
        self._lock = threading.RLock()

    def arrive(self, unit: Unit) -> None:
        """Have the unit's weights in its modules, and fetch what should come next. Raises what reading raises."""
        current = self._current
        if (current is not None and current.unit is unit and current.shown) or unit in self._kept:
            return
        with self._lock:
            if unit in self._resident:
                self._settle(unit)
                return
            self._leave()
            self._learn(unit)
            load = self._loads.get(unit) or self._start(unit, *self._make_room(unit))
            self._finish(load)
            self._current = load  # before its weights are shown: from here on leaving takes them back
            for weight, begin in unit.places:
                weight.show(weight.view(load.memory, begin))
            load.shown = load.used = True
            self._look_ahead(load)

    def clear(self) -> None:
        """Let every unit leave and free its memory; resident ones too."""
        with self._lock:
            self._leave()
            while self._loads:
                self._evict()
            for unit in self._kept:
                _show_masters(unit)
            self._kept.clear()
            self._last = None

    def close(self) -> None:
        """`clear`, and let go of the prefetcher. The conveyor can not be used afterwards."""
        self.clear()
        self._prefetcher.close()

    # -- one step --------------------------------------------------------------------------------------------------

    def _settle(self, unit: Unit) -> None:
        memory = self._own_memory(unit.nbytes)
        fill = self._prefetcher.start(lambda: self._read(unit, memory), [self._prefetcher.mark()])
        self._prefetcher.wait(fill)
        for weight, begin in unit.places:
            weight.show(weight.view(memory, begin))
        self._kept.add(unit)

    def _leave(self) -> None:
        """The current unit has run: its modules hold the masters again."""
        if self._current is not None:
            load, self._current = self._current, None
            load.left, load.shown = self._prefetcher.mark(), False
            _show_masters(load.unit)

    def _learn(self, unit: Unit) -> None:
        if self._last is not None and self._follower:
            self._follower[self._last] = unit
        self._last = unit

    def _start(self, unit: Unit, memory: Tensor, after: list[Mark]) -> Load:
        load = Load(unit, memory, None)
        self._loads[unit] = load  # before it is started: what is in the arena and what is noted must agree
        try:
            load.ticket = self._prefetcher.start(lambda: self._read(unit, memory), after)
        except BaseException:
            self._drop(load)
            raise
        return load

    def _finish(self, load: Load) -> None:
        if not load.ready:
            try:
                self._prefetcher.wait(load.ticket)
            except BaseException:  # Ctrl-C too: what was being read may be half there
                self._drop(load)
                raise
            load.ready = True

    def _drop(self, load: Load) -> None:
        """Forget what could not be read, and everything else with it: memory only comes back in order."""
        load.ready = False
        while self._loads:
            self._evict()

    def _make_room(self, unit: Unit) -> tuple[Tensor, list[Mark]]:
        """Memory for a unit that is needed now, and the marks after which it may be written."""
        after = [self._prefetcher.mark()]  # memory may be fresh, and its former owner's work still under way
        while (memory := self._take(unit)) is None:
            after += self._evict()
        return memory, after

    def _take(self, unit: Unit) -> Tensor | None:
        if not self._loads:
            self._arena.reset()  # Ctrl-C between taking memory and noting it may have left some out
        return self._arena.take(unit.nbytes)

    def _evict(self) -> list[Mark]:
        unit, load = next(iter(self._loads.items()))
        if load.ticket is not None and not load.ready:
            self._prefetcher.abandon(load.ticket)
        del self._loads[unit]
        self._arena.give()
        return [] if load.left is None else [load.left]

    def _look_ahead(self, current: Load) -> None:
        """Start what follows, as far as it fits without taking memory from the current unit or from what follows."""
        wanted = current.unit
        for _ in range(AHEAD):
            wanted = self._follower.get(wanted)
            if wanted is None or wanted is current.unit:
                return
            if wanted in self._loads or wanted in self._resident:
                continue
            after: list[Mark] = []
            while (memory := self._take(wanted)) is None:
                oldest = next(iter(self._loads.values()))
                if oldest is current or not oldest.used:
                    return
                after += self._evict()
            self._start(wanted, memory, after)


def _show_masters(unit: Unit) -> None:
    for weight in unit.weights:
        weight.show(weight.master)
