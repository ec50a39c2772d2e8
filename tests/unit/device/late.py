"""A double of an accelerator's streams, on which anything runs in any order that the events allow.

Work is put into queues and runs when somebody waits for it, or before, as the double pleases. So a wait that is missing
shows: what should have come first comes second in one of the orders. Nothing here knows what the work is.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

ORDERS = ("copies last", "copies first", "any")


class Event:
    """A point in a queue; passed when everything before it ran."""

    passed = False


class Queue:
    """A stream: what it was given and did not do yet. `computes` is false for those that only copy."""

    def __init__(self, computes: bool) -> None:
        self.computes = computes
        self.left: deque[Callable[[], object] | Event | tuple[Event]] = deque()

    @property
    def can_go_on(self) -> bool:
        """Whether there is something to do that waits for no event."""
        return bool(self.left) and not (isinstance(self.left[0], tuple) and not self.left[0][0].passed)

    def go_on(self) -> None:
        """Do one thing."""
        match self.left.popleft():
            case Event() as event:
                event.passed = True
            case tuple():
                pass
            case work:
                work()


class LateDevice:
    """`device.streams.Streams` of an accelerator that takes its time.

    'copies last': a copy runs when something that must come after it is waited for. 'copies first': a copy runs the
    moment it may, before computation that was asked for earlier. 'any': by the seed.
    """

    def __init__(self, order: str, seed: int = 0) -> None:
        self._order, self._random = order, random.Random(seed)
        self._queues = [Queue(computes=True)]
        self._current = self._queues[0]
        self._users: dict[int, set[Queue]] = {}

    # -- Streams -----------------------------------------------------------------------------------------------------

    def new(self) -> Queue:
        self._queues.append(Queue(computes=False))
        return self._queues[-1]

    def current(self) -> Queue:
        return self._current

    @contextmanager
    def on(self, stream: Queue) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def mark(self, stream: Queue) -> Event:
        event = Event()
        self._add(stream, event)
        return event

    def wait(self, stream: Queue, event: Event) -> None:
        self._add(stream, (event,))

    def keep(self, memory: Tensor, stream: Queue) -> None:
        self._users.setdefault(memory.data_ptr(), set()).add(stream)

    def finish(self, stream: Queue) -> None:
        while stream.left:
            self._one()

    # -- what tests do with it -----------------------------------------------------------------------------------------

    def another(self) -> Queue:
        """A stream that computes, for a second thread's work."""
        self._queues.append(Queue(computes=True))
        return self._queues[-1]

    def launch(self, work: Callable[[], object]) -> None:
        """Have the current stream do it."""
        self._add(self._current, work)

    def allocate(self, memory: Tensor, stream: Queue) -> None:
        """Give memory that was freed to the stream that it was first given to, as torch's allocators do: at once, but
        after the streams that `keep` named."""
        for user in self._users.pop(memory.data_ptr(), ()):
            self.wait(stream, self.mark(user))

    def finish_all(self) -> None:
        """Return when nothing is left to do."""
        for queue in self._queues:
            self.finish(queue)

    @property
    def copies_left(self) -> int:
        """How much the streams that only copy have not done yet."""
        return sum(len(queue.left) for queue in self._queues if not queue.computes)

    def _add(self, queue: Queue, thing: Any) -> None:
        queue.left.append(thing)
        if self._order == "copies first":
            while (copying := self._ready(computes=False)) is not None:
                copying.go_on()
        elif self._order == "any":
            while self._random.random() < 0.4 and any(queue.can_go_on for queue in self._queues):
                self._one()

    def _one(self) -> None:
        """One step of whichever stream is next in the double's order."""
        ready = [queue for queue in self._queues if queue.can_go_on]
        assert ready, "every stream waits for another"
        if self._order == "any":
            self._random.choice(ready).go_on()
        else:
            first = self._order == "copies first"
            min(ready, key=lambda queue: queue.computes == first).go_on()

    def _ready(self, computes: bool) -> Queue | None:
        return next((queue for queue in self._queues if queue.computes == computes and queue.can_go_on), None)
