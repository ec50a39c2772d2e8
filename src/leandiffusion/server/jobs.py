"""A job: work for a device that somebody waits for. It may be cancelled at any time, and is then told so at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .errors import ApiError, TimedOut


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (State.DONE, State.FAILED, State.CANCELLED)


current: ContextVar[Job | None] = ContextVar("the job that this thread works on", default=None)


class Stopped(Exception):
    """Raised in a job's work, at its next step after it was cancelled."""


@dataclass(eq=False)
class Job:
    """`work(job)` runs in the worker and returns the result; it calls `job.step()` after each of its `steps`.

    `units` says how much work it is, in millions of pixels times steps, and `predicted` how many seconds that takes, as
    far as anybody knows. `hear`, if there is one, gets what the work tells meanwhile, in the worker's thread. Who waits
    is told of the end by `wait`. `notes` are warnings that came up, for the answer.

    Up to `most` jobs of an equal `key` may be worked on at once: then `together(jobs)` of the first returns the results
    of all, and `load` is whatever it needs of each.
    """

    id: str
    model: str
    work: Callable[[Job], Any]
    steps: int = 1
    units: float = 0.0
    predicted: float | None = None
    hear: Callable[[Any], None] | None = None
    key: Any = None
    most: int = 1
    together: Callable[[Sequence[Job]], list[Any]] | None = None
    load: Any = None
    created: float = field(default_factory=time.time)
    state: State = State.QUEUED
    done: int = 0
    notes: list[str] = field(default_factory=list)
    result: Any = None
    error: ApiError | None = None
    started: float | None = None  # time.monotonic(), as `ended`
    ended: float | None = None
    stepped: Callable[[float], None] | None = None  # is told the seconds of each step
    _last: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _waiting: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def begin(self) -> bool:
        """From queued to running. False where it was cancelled before."""
        with self._lock:
            if self.state != State.QUEUED:
                return False
            self.state, self.started = State.RUNNING, time.monotonic()
            return True

    def next_picture(self) -> None:
        """Another picture begins: what its first step takes is not a step's time alone. Raises as `check`."""
        self.check()
        self._last = None

    def step(self) -> None:
        """A step is done. Raises Stopped where the job was cancelled meanwhile."""
        self.check()
        now = time.monotonic()
        self.done = min(self.done + 1, self.steps)
        if self.stepped is not None and self._last is not None:
            self.stepped(now - self._last)
        self._last = now

    def check(self) -> None:
        """Raises Stopped where the job was cancelled."""
        if self.state in ENDED:
            raise Stopped

    def tell(self, event: Any) -> None:
        """Something for who listens."""
        if self.hear is not None:
            self.hear(event)

    def succeed(self, result: Any) -> bool:
        """It is done. False where it had ended otherwise before, as for `fail` and `cancel`."""
        return self._end(State.DONE, result=result)

    def fail(self, error: ApiError) -> bool:
        """It ended in an error."""
        return self._end(State.FAILED, error=error)

    def cancel(self, error: ApiError) -> bool:
        """It is not wanted any more, because of `error`: who waits is told now, the work ends at its next step."""
        return self._end(State.CANCELLED, error=error)

    def _end(self, state: State, result: Any = None, error: ApiError | None = None) -> bool:
        with self._lock:
            if self.state in ENDED:
                return False
            self.state, self.result, self.error, self.ended = state, result, error, time.monotonic()
            waiting, self._waiting = self._waiting, []
        for told in waiting:
            told()
        return True

    def when_ended(self, told: Callable[[], None]) -> None:
        """Call `told` once it has ended, in whichever thread ends it; now if it has."""
        with self._lock:
            if self.state not in ENDED:
                self._waiting.append(told)
                return
        told()

    async def wait(self, timeout: float | None = None) -> Any:
        """The result. Raises the ApiError that the job ended with, and ends it with TimedOut after so many seconds."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def told() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        self.when_ended(told)
        try:
            async with asyncio.timeout(timeout):
                await ended.wait()
        except TimeoutError:
            self.cancel(TimedOut(timeout or 0.0))
        if self.error is not None:
            raise self.error
        return self.result
