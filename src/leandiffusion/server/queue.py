"""The queue of a device: one worker thread, jobs one after the other, in the order they came."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .errors import ApiError, QueueFull, ShuttingDown, as_api_error
from .jobs import ENDED, Job, State, Stopped, current

log = logging.getLogger(__name__)

_LEARNING = 0.3  # share of the newest job in what is known of a model's speed


class JobQueue:
    """Jobs for one device. At most `most` wait; whatever one of them does, the worker goes on with the next. Jobs of an
    equal key may be worked on at once.

    `ended` is called with each job once its work is over, in the worker's thread; with one that ended before its turn,
    in the thread that ended it.
    """

    def __init__(self, most: int = 32, ended: Callable[[Job], None] = lambda job: None) -> None:
        self.most, self._ended = most, ended
        self._waiting: deque[Job] = deque()
        self._current: list[Job] = []
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
        if job.started is None:
            self._ended(job)

    def find(self, job_id: str) -> Job | None:
        """The job of that id that runs or waits."""
        return next((job for job in self.jobs() if job.id == job_id), None)

    def jobs(self) -> list[Job]:
        """The jobs that run, and those that wait, in order."""
        with self._changed:
            return [*(job for job in self._current if job.state not in ENDED), *self._waiting]

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
                self._current = self._next()
            begun = [job for job in self._current if job.begin()]
            if begun:
                self._run(begun)
            while begun:  # what they hold should not wait for the next ones
                self._ended(begun.pop())
            with self._changed:
                self._current = []

    def _next(self) -> list[Job]:
        """The job whose turn it is, and those that may be worked on with it: they overtake others."""
        first = self._waiting.popleft()
        mates = [job for job in self._waiting if first.key is not None and job.key == first.key][: first.most - 1]
        for job in mates:
            self._waiting.remove(job)
        return [first, *mates]

    def _run(self, jobs: Sequence[Job]) -> None:
        """Work on them: each has ended afterwards."""
        first = jobs[0]
        current.set(first)
        try:
            several = first.together if len(jobs) > 1 else None
            results = [first.work(first)] if several is None else several(jobs)
        except Stopped:
            return
        except BaseException as error:  # whatever happens, the next job has its turn
            told = as_api_error(error)
            if told.status >= 500:
                log.error("job failed", extra={"job": first.id, "trace": traceback.format_exc(limit=-20)})
            traceback.clear_frames(error.__traceback__)  # they hold tensors
        else:
            self._learn(jobs)
            for job, result in zip(jobs, results, strict=True):
                job.succeed(result)
            return
        finally:
            current.set(None)
        if len(jobs) == 1:
            first.fail(told)
        for job in jobs if len(jobs) > 1 else ():  # what is wrong with one is not the others' fault
            self._run([job])

    def _learn(self, jobs: Sequence[Job]) -> None:
        """How long their model takes for a unit of work."""
        units, started = sum(job.units for job in jobs), jobs[0].started
        if units > 0 and started is not None:
            rate = (time.monotonic() - started) / units
            known = self._rates.get(jobs[0].model, rate)
            self._rates[jobs[0].model] = known + _LEARNING * (rate - known)

    # -- how long ----------------------------------------------------------------------------------------------------

    def _ahead_of(self, job: Job | None) -> list[Job]:
        jobs = self.jobs()
        return jobs[: jobs.index(job)] if job in jobs else jobs

    def _seconds(self, jobs: list[Job]) -> float | None:
        """Until all of them are done: those that run do so at once."""
        running = [self._left(job) for job in jobs if job.state == State.RUNNING]
        each = [*running, *(self._left(job) for job in jobs if job.state != State.RUNNING)]
        known = [seconds for seconds in each if seconds is not None]
        if len(known) < len(each):
            return None
        return max(known[: len(running)], default=0.0) + sum(known[len(running) :])

    def _left(self, job: Job) -> float | None:
        rate = self._rates.get(job.model)
        expected = job.predicted if rate is None else rate * job.units
        if job.state != State.RUNNING or job.started is None:
            return expected
        elapsed, share = time.monotonic() - job.started, job.done / job.steps
        if share > 0:
            return elapsed * (1 - share) / share
        return None if expected is None else max(expected - elapsed, 0.0)
