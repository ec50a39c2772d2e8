"""Filling memory with weights while the device computes: by a thread on the CPU, by a side stream on an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from ..device.host import is_host
from ..device.streams import Event, Stream, Streams, streams_of, synchronize
from ..device.threads import compute_alone

Fill = Callable[[], None]
Mark = Any
Ticket = Any
Place = Any


class Prefetcher(Protocol):
    """Runs fills in the order in which they were started, beside the computation."""

    def place(self) -> Place:
        """Where the calling thread computes: a stream of the device, None where there is one place only."""
        ...

    def mark(self, place: Place = None) -> Mark:
        """A point in the computation: everything asked for so far, at that place or where the calling thread computes.
        Memory used until there is free once it passed."""
        ...

    def start(self, fill: Fill, after: Sequence[Mark]) -> Ticket:
        """Run `fill` when the computation has passed the marks."""
        ...

    def wait(self, ticket: Ticket) -> None:
        """The computation may use what was filled from here on. Raises what `fill` raised."""
        ...

    def share(self, memory: Tensor) -> None:
        """The calling thread computes with the memory at another place than the one that it was taken at: whoever gives
        it out again has to wait for that place too."""
        ...

    def abandon(self, ticket: Ticket) -> None:
        """Its memory will be filled anew or given back: afterwards the fill does not write to it, or is ordered before
        the next fill and what is computed here."""
        ...

    def renew(self) -> None:
        """Go on in a forked child, where no thread of the parent's is; every ticket is void."""
        ...

    def close(self, after: Sequence[Mark] = ()) -> None:
        """Let go of threads and streams when the computation has passed the marks; every ticket has been waited for or
        abandoned. Nothing is on its way afterwards, so all memory can be given back."""
        ...


class ThreadPrefetcher:
    """One thread. Computing on a CPU returns when it is done, so marks carry nothing."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._pool = ThreadPoolExecutor(1, "leandiffusion-offload", initializer=compute_alone)

    def place(self) -> None:
        return None

    def mark(self, place: None = None) -> None:
        return None

    def start(self, fill: Fill, after: Sequence[Mark]) -> Future[None]:
        return self._pool.submit(fill)

    def wait(self, ticket: Future[None]) -> None:
        ticket.result()

    def share(self, memory: Tensor) -> None:
        return None

    def abandon(self, ticket: Future[None]) -> None:
        if not ticket.cancel():
            with suppress(CancelledError):
                ticket.exception()

    def close(self, after: Sequence[Mark] = ()) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class StreamPrefetcher:
    """A stream beside the computing one; events order the two, and nothing waits on the host."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._side = streams.new()

    def renew(self) -> None:
        return None  # torch refuses an accelerator in a forked child, and says why

    def place(self) -> Stream:
        return self._streams.current()

    def mark(self, place: Stream | None = None) -> Event:
        return self._streams.mark(self.place() if place is None else place)

    def start(self, fill: Fill, after: Sequence[Event]) -> Event:
        for event in after:
            self._streams.wait(self._side, event)
        with self._streams.on(self._side):
            fill()
        return self._streams.mark(self._side)

    def wait(self, ticket: Event) -> None:
        self._streams.wait(self.place(), ticket)

    def share(self, memory: Tensor) -> None:
        self._streams.keep(memory, self.place())

    def abandon(self, ticket: Event) -> None:
        self.wait(ticket)  # the next fill comes after it in the same stream, but fresh memory goes by this one

    def close(self, after: Sequence[Event] = ()) -> None:
        for event in after:
            self._streams.wait(self._side, event)
        self._streams.finish(self._side)


class InTurn:
    """Nothing beside the computation: a fill begins when the device is done and is done when it returns. For whole
    networks on a CPU, and accelerators whose ordering is not known."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def renew(self) -> None:
        return None

    def place(self) -> None:
        return None

    def mark(self, place: None = None) -> None:
        return None

    def start(self, fill: Fill, after: Sequence[Mark]) -> None:
        synchronize(self._device)
        fill()
        synchronize(self._device)

    def wait(self, ticket: None) -> None:
        return None

    def share(self, memory: Tensor) -> None:
        return None

    def abandon(self, ticket: None) -> None:
        return None

    def close(self, after: Sequence[Mark] = ()) -> None:
        synchronize(self._device)


def prefetcher_for(device: torch.device, *, ahead: bool = True) -> Prefetcher:
    """What brings weights to the device beside its computation, or in turn with it where that cannot be ordered. On a
    CPU also where nothing is brought `ahead`: then the threads that compute are free to read."""
    if is_host(device):
        return ThreadPrefetcher() if ahead else InTurn(device)
    streams = streams_of(device)
    return InTurn(device) if streams is None else StreamPrefetcher(streams)
