"""What the contracts share: orders become jobs of the queue, and their makers wait for them while they stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from .errors import Cancelled
from .jobs import Job, State
from .metrics import Metrics
from .models import Models, Settings
from .orders import Order
from .queue import JobQueue

T = TypeVar("T")

ADMITTING = 16
"""Requests that are looked at at once. They take turns in planning."""


@dataclass(frozen=True)
class Limits:
    """Seconds that a request may take from coming to answer, how many may wait, and seconds to end them in."""

    timeout: float = 600.0
    queue: int = 32
    drain: float = 30.0


@dataclass(eq=False)
class Service:
    """The models, their queue and the metrics of one server."""

    sources: dict[str, str]
    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.queue.length, lambda: len(self.models.opened))
        self.models = Models(self.sources, self.settings, lambda name: self.metrics.evictions.labels(name).inc())
        self.queue = JobQueue(self.limits.queue, self._ended)
        self._limits: dict[int, anyio.CapacityLimiter] = {}

    async def aside(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)` on pictures in a thread, so that others are answered meanwhile. One at a time: a large one
        takes memory."""
        return await self._in_thread(1, work, *args)

    async def admit(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)` in a thread: what it takes until a request is a job, or refused. Several at a time, since
        a size that is new is planned for seconds."""
        return await self._in_thread(ADMITTING, work, *args)

    async def _in_thread(self, most: int, work: Callable[..., T], *args: Any) -> T:
        limiter = self._limits.setdefault(most, anyio.CapacityLimiter(most))  # of the loop that it is made in
        return await anyio.to_thread.run_sync(lambda: work(*args), limiter=limiter)

    def submit(self, request: Request, order: Order, hear: Callable[[Any], None] | None = None) -> Job:
        """The order as a job of the queue. Raises what `JobQueue.submit` does."""
        job = order.as_job(request.state.id, self.models, hear)
        job.stepped = self.metrics.step.labels(job.model).observe
        self.queue.submit(job)
        return job

    async def answer(self, request: Request, order: Order) -> tuple[Job, Any]:
        """The job of the order and its result, as `wait`."""
        job = self.submit(request, order)
        return job, await self.wait(request, job)

    async def wait(self, request: Request, job: Job) -> Any:
        """The job's result, once it is done. A client that leaves has it cancelled."""
        watching = asyncio.create_task(_cancel_when_gone(request, job))
        try:
            return await job.wait(self.limits.timeout)
        finally:
            watching.cancel()
            job.cancel(Cancelled("the client left."))  # nothing, where it has ended

    def _ended(self, job: Job) -> None:
        self.metrics.job_ended(job)
        if job.state == State.DONE:
            self.metrics.pictures.labels(job.model).inc(len(job.result))


async def _cancel_when_gone(request: Request, job: Job) -> None:
    with suppress(Exception):  # a body that comes late and is wrong does not matter any more
        while (await request.receive())["type"] != "http.disconnect":
            pass
    job.cancel(Cancelled("the client left."))
