"""Order and time of an accelerator's work: streams run side by side, events order them and tell when they passed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from .host import is_host
from .kinds import kind_of

Stream = Any
"""A queue of work on a device, first in, first out. Equal and hashable by the queue it names."""

Event = Any
"""A point in a stream's work."""


class Streams(Protocol):
    """The streams of one device, and what orders them. Nothing here but `finish` makes the host wait."""

    def new(self) -> Stream:
        """A stream beside those that there are."""
        ...

    def current(self) -> Stream:
        """The stream that this thread's work goes to."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Inside it this thread's work goes to the stream."""
        ...

    def mark(self, stream: Stream) -> Event:
        """The point that the stream has reached once everything it was given so far is done."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """What the stream is given from here on runs after the event."""
        ...

    def keep(self, memory: Tensor, stream: Stream) -> None:
        """The stream uses the memory: once it is freed, torch gives it out again only when the stream is done."""
        ...

    def finish(self, stream: Stream) -> None:
        """Return when everything that the stream was given is done."""
        ...


class AcceleratorStreams:
    """Of torch's accelerator, whichever it is."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def new(self) -> torch.Stream:
        return torch.Stream(self._device)

    def current(self) -> torch.Stream:
        return torch.accelerator.current_stream(self._device)

    def on(self, stream: torch.Stream) -> AbstractContextManager[Any]:
        return stream

    def mark(self, stream: torch.Stream) -> torch.Event:
        event = torch.Event(self._device)
        event.record(stream)
        return event

    def wait(self, stream: torch.Stream, event: torch.Event) -> None:
        stream.wait_event(event)

    def keep(self, memory: Tensor, stream: torch.Stream) -> None:
        memory.record_stream(stream)

    def finish(self, stream: torch.Stream) -> None:
        stream.synchronize()


def streams_of(device: torch.device) -> Streams | None:
    """The device's streams; None for a CPU, and for an accelerator whose ordering is not known to hold."""
    return AcceleratorStreams(device) if kind_of(device).ordered else None


def why_no_overlap(device: torch.device) -> str | None:
    """Why nothing is copied to the device while it computes; None where it is, and for a CPU."""
    if is_host(device) or kind_of(device).ordered:
        return None
    return (
        f"copies to {device.type} are not known to be ordered by events as CUDA's are, so each waits for the "
        "computation and the computation for it"
    )


def synchronize(device: torch.device) -> None:
    """Return when everything the device was asked for is done; at once on a CPU, which is done when it returns."""
    if not is_host(device):
        torch.accelerator.synchronize(device)


def can_be_timed(device: torch.device) -> bool:
    """Whether `tick` tells the device's own time: on CPUs, and on accelerators whose events do."""
    return is_host(device) or kind_of(device).ordered


def tick(device: torch.device) -> Any:
    """A point in the time of the device's current stream, without waiting for it. See `seconds_between`."""
    if is_host(device):
        return time.perf_counter()
    event = torch.Event(device, enable_timing=True)
    event.record(torch.accelerator.current_stream(device))
    return event


def seconds_between(first: Any, second: Any) -> float:
    """Seconds from one `tick` to another, by the device's clock. Waits until the second has passed."""
    if isinstance(first, float):
        return second - first
    second.synchronize()
    return first.elapsed_time(second) / 1000
