"""Filling memory with weights while the device computes: by a thread on the CPU, by a side stream on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import torch

Fill = Callable[[], None]
Mark = Any
Ticket = Any
Place = Any


class Prefetcher(Protocol):
    """Runs fills in the order in which they were started, beside the computation."""

    def place(self) -> Place:
        """Where the calling thread computes: a stream of the device, None where computing returns when it is done."""
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

    def abandon(self, ticket: Ticket) -> None:
        """Its memory will be filled anew: afterwards the fill does not write to it, or is ordered before the next."""
        ...

    def renew(self) -> None:
        """Go on in a forked child, where no thread of the parent's is; every ticket is void."""
        ...

    def close(self) -> None:
        """Let go of threads and streams; every ticket has been waited for or abandoned."""
        ...


class ThreadPrefetcher:
    """One thread. Computing on a CPU returns when it is done, so marks carry nothing."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="leandiffusion-offload")

    def place(self) -> None:
        return None

    def mark(self, place: None = None) -> None:
        return None

    def start(self, fill: Fill, after: Sequence[Mark]) -> Future[None]:
        return self._pool.submit(fill)

    def wait(self, ticket: Future[None]) -> None:
        ticket.result()

    def abandon(self, ticket: Future[None]) -> None:
        if not ticket.cancel():
            with suppress(CancelledError):
                ticket.exception()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class StreamPrefetcher:
    """A CUDA stream beside the computing one; events order the two, and nothing waits on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def renew(self) -> None:
        return None  # torch refuses CUDA in a forked child, and says why

    def place(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)

    def mark(self, place: torch.cuda.Stream | None = None) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(place or self.place())
        return event

    def start(self, fill: Fill, after: Sequence[torch.cuda.Event]) -> torch.cuda.Event:
        for event in after:
            self._stream.wait_event(event)
        with torch.cuda.stream(self._stream):
            fill()
            event = torch.cuda.Event()
            event.record(self._stream)
        return event

    def wait(self, ticket: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(ticket)

    def abandon(self, ticket: torch.cuda.Event) -> None:
        return None  # the next fill comes after it in the same stream

    def close(self) -> None:
        self._stream.synchronize()
