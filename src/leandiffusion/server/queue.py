"""The queue of a device: one worker thread, jobs one after the other, in the order they came."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from .errors import ApiError, QueueFull, ShuttingDown, as_api_error
from .jobs import ENDED, Job, State, Stopped, current

log = logging.getLogger(__name__)

_LEARNING = 0.3  # share of the newest job in what is known of a model's speed


class JobQueue:
    """Jobs for one device. At most `most` wait; whatever one of them does, the worker goes on with the next.

    `ended` is called with each job when its work is over, in the worker's thread.
    """

    def __init__(self, most: int = 32, ended: Callable[[Job], None] = lambda job: None) -> None:
        self.most, self._ended = most, ended
        self._waiting: deque[Job] = deque()
        self._current: Job | None = None
        self._rates: dict[str, float] = {}  # seconds per unit, by model
        self._accepts, self._closed = True, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    # -- asked by many threads ---------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Take the job. QueueFull where too many wait, ShuttingDown after `drain`, ApiError for an id that is taken."""
        with self._changed:
            if not self._accepts:
                raise ShuttingDown
            if len(self._waiting) >= self.most:
                raise QueueFull(len(self._waiting), self._seconds(self._ahead_of(None)))
            if self.find(job.id) is not None:
                raise ApiError(
                    f"there is a job {job.id!r} already: send another X-Client-Request-Id, or none.", status=409,
                    code="id_taken", headers={"x-should-retry": "false"},
                )  # fmt: skip
            self._waiting.append(job)
            self._changed.notify_all()
        job.when_ended(lambda: self._forget(job))

    def _forget(self, job: Job) -> None:
        """Out of those that wait, when it ended before its turn."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def find(self, job_id: str) -> Job | None:
        """The job of that id that runs or waits."""
        return next((job for job in self.jobs() if job.id == job_id), None)

    def jobs(self) -> list[Job]:
        """The job that runs, and those that wait, in order."""
        with self._changed:
            current = self._current
            running = [] if current is None or current.state in ENDED else [current]
            return [*running, *self._waiting]

    @property
    def accepts(self) -> bool:
        """Whether jobs are taken."""
        return self._accepts

    @property
    def length(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def position(self, job: Job) -> int:
        """How many jobs are before this one; 0 for the one that runs, and for one that has ended."""
        jobs = self.jobs()
        return jobs.index(job) if job in jobs else 0

    def seconds_left(self, job: Job) -> float | None:
        """Until it is done, as far as can be told from those before it; None where nothing is known yet."""
        if job.state in ENDED:
            return 0.0
        with self._changed:
            return self._seconds([*self._ahead_of(job), job])

    def describe(self, job: Job) -> Mapping[str, Any]:
        """As the API shows it."""
        left = self.seconds_left(job)
        return {
            "id": job.id, "object": "job", "model": job.model, "state": str(job.state),
            "position": self.position(job), "steps": job.steps, "steps_done": job.done, "created": int(job.created),
            "seconds_left": None if left is None else round(left, 1),
        }  # fmt: skip

    # -- ending ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no more jobs; those that were accepted go on."""
        with self._changed:
            self._accepts = False

    def close(self, patience: float = 0.0) -> None:
        """Tell all jobs that the server is shutting down, and end the worker: waits so many seconds for its last
        step."""
        self.drain()
        for job in self.jobs():
            job.cancel(ShuttingDown())
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(patience)

    # -- the worker --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._current = self._waiting.popleft()
            if job.begin():
                self._run(job)
                self._ended(job)
            with self._changed:
                self._current = None
            del job  # what it holds should not wait for the next one

    def _run(self, job: Job) -> None:
        current.set(job)
        try:
            result = job.work(job)
        except Stopped:
            return
        except BaseException as error:  # whatever happens, the next job has its turn
            told = as_api_error(error)
            if told.status >= 500:
                log.error("job failed", extra={"job": job.id, "trace": traceback.format_exc(limit=-20)})
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            job.fail(told)
        else:
            if job.succeed(result):
                self._learn(job)
        finally:
            current.set(None)

    def _learn(self, job: Job) -> None:
        if job.units > 0 and job.started is not None and job.ended is not None:
            rate = (job.ended - job.started) / job.units
            known = self._rates.get(job.model, rate)
            self._rates[job.model] = known + _LEARNING * (rate - known)

    # -- how long ----------------------------------------------------------------------------------------------------

    def _ahead_of(self, job: Job | None) -> list[Job]:
        jobs = self.jobs()
        return jobs[: jobs.index(job)] if job in jobs else jobs

    def _seconds(self, jobs: list[Job]) -> float | None:
        each = [self._left(job) for job in jobs]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def _left(self, job: Job) -> float | None:
        rate = self._rates.get(job.model)
        expected = job.predicted if rate is None else rate * job.units
        if job.state != State.RUNNING or job.started is None:
            return expected
        elapsed, share = time.monotonic() - job.started, job.done / job.steps
        if share > 0:
            return elapsed * (1 - share) / share
        return None if expected is None else max(expected - elapsed, 0.0)
