"""The queue: order, position, time left, cancelling, bounds, and that no job takes the worker down."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leandiffusion.core.errors import BudgetError, ConfigError
from leandiffusion.server.errors import ApiError, Cancelled, QueueFull, ShuttingDown
from leandiffusion.server.jobs import Job, State, Stopped
from leandiffusion.server.queue import JobQueue


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue(most=3)
    yield queue
    queue.close(5)


def result_of(job: Job) -> Any:
    return asyncio.run(job.wait(20))


class Gate:
    """Work that waits at each of its steps until it is let on."""

    def __init__(self, steps: int = 1) -> None:
        self.steps, self.began, self.left = steps, threading.Event(), threading.Event()
        self._open = threading.Semaphore(0)

    def __call__(self, job: Job) -> str:
        self.began.set()
        try:
            for _ in range(self.steps):
                assert self._open.acquire(timeout=20)
                job.step()
        finally:
            self.left.set()
        return job.id

    def let(self, steps: int = 1) -> None:
        self._open.release(steps)


def quick(name: str, **more: Any) -> Job:
    return Job(name, "model", lambda job: job.id, **more)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def held(queue: JobQueue, steps: int = 1) -> tuple[Job, Gate]:
    """A job that runs, and waits."""
    gate = Gate(steps)
    job = Job("held", "model", gate, steps=steps)
    queue.submit(job)
    assert gate.began.wait(20)
    return job, gate


def test_jobs_run_one_after_the_other_in_the_order_they_came(queue: JobQueue):
    first, gate = held(queue)
    ran: list[str] = []
    others = [Job(name, "model", lambda job: ran.append(job.id)) for name in "abc"]
    for job in others:
        queue.submit(job)
    assert [queue.position(job) for job in (first, *others)] == [0, 1, 2, 3]
    assert not ran
    gate.let()
    for job in others:
        result_of(job)
    assert ran == ["a", "b", "c"]


def test_the_time_left_follows_from_what_ran_before(queue: JobQueue):
    unknown, gate = held(queue)
    assert queue.seconds_left(unknown) is None
    known = quick("known", predicted=4.0)
    queue.submit(known)
    assert queue.seconds_left(known) is None  # what runs is before it
    gate.let()
    result_of(known)
    queue._rates["model"] = 0.5
    _, gate = held(queue, steps=4)
    waiting = quick("waiting", units=6.0)
    queue.submit(waiting)
    gate.let(2)
    until(lambda: queue.find("held").done == 2)  # type: ignore[union-attr]
    left = queue.seconds_left(waiting)
    assert left is not None
    assert 3.0 < left < 20.0  # three seconds of its own, and as long again as the half that is done took
    gate.let(2)


def test_more_than_may_wait_are_turned_away_and_told_when_to_come_again(queue: JobQueue):
    _, gate = held(queue)
    for name in "abc":
        queue.submit(quick(name, predicted=2.0))
    with pytest.raises(QueueFull, match="3 requests are waiting") as caught:
        queue.submit(quick("d"))
    assert caught.value.status == 429
    assert int(caught.value.headers["Retry-After"]) >= 1
    gate.let()


def test_a_running_job_that_is_cancelled_ends_at_its_next_step(queue: JobQueue):
    job, gate = held(queue, steps=100)
    assert job.cancel(Cancelled())
    with pytest.raises(Cancelled):  # who waits is told before the step is over
        result_of(job)
    assert not gate.left.is_set()
    gate.let(1)
    assert gate.left.wait(20)
    assert job.done == 0
    assert result_of_next(queue) == "next"


def result_of_next(queue: JobQueue) -> Any:
    job = quick("next")
    queue.submit(job)
    return result_of(job)


def test_a_waiting_job_that_is_cancelled_leaves_its_place_at_once(queue: JobQueue):
    _, gate = held(queue)
    jobs = [quick(name) for name in "abc"]
    for job in jobs:
        queue.submit(job)
    jobs[0].cancel(Cancelled())
    assert queue.length == 2
    queue.submit(quick("d"))
    gate.let()
    assert result_of(jobs[2]) == "c"
    assert jobs[0].state == State.CANCELLED


def test_each_job_is_told_to_have_ended_once_also_one_that_never_began():
    ended: list[tuple[str, State]] = []
    queue = JobQueue(3, lambda job: ended.append((job.id, job.state)))
    _, gate = held(queue)
    waiting, last = quick("waiting"), quick("last")
    queue.submit(waiting)
    queue.submit(last)
    waiting.cancel(Cancelled())
    assert ended == [("waiting", State.CANCELLED)]
    gate.let()
    result_of(last)
    until(lambda: len(ended) == 3)
    assert ended[1:] == [("held", State.DONE), ("last", State.DONE)]
    queue.close(5)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConfigError("steps: no."), 400, "invalid_value"),
        (BudgetError("the least that would do is 3 GiB"), 400, "does_not_fit"),
        (MemoryError("cannot allocate"), 503, "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 503, "out_of_memory"),
        (RuntimeError("surprise"), 500, "internal_error"),
        (SystemExit(3), 500, "internal_error"),
        (KeyboardInterrupt(), 500, "internal_error"),
    ],
)
def test_a_job_that_fails_says_how_and_the_next_one_runs(queue: JobQueue, error: BaseException, status: int, code: str):
    def fail(job: Job) -> None:
        raise error

    job = Job("failing", "model", fail)
    queue.submit(job)
    with pytest.raises(ApiError) as caught:
        result_of(job)
    assert (caught.value.status, caught.value.code, job.state) == (status, code, State.FAILED)
    assert "surprise" not in caught.value.message
    assert result_of_next(queue) == "next"


def test_what_a_failed_job_held_is_let_go(queue: JobQueue):
    class Large:
        alive = 0

        def __init__(self) -> None:
            Large.alive += 1

        def __del__(self) -> None:
            Large.alive -= 1

    def fail(job: Job) -> None:
        held = Large()
        raise MemoryError(f"no room beside {type(held).__name__}")

    job = Job("failing", "model", fail)
    queue.submit(job)
    with pytest.raises(ApiError):
        result_of(job)
    result_of_next(queue)
    assert Large.alive == 0


def test_a_wait_ends_when_its_time_is_up(queue: JobQueue):
    job, gate = held(queue)
    with pytest.raises(ApiError, match=r"not there after 0\.05 s") as caught:
        asyncio.run(job.wait(0.05))
    assert (caught.value.status, caught.value.code) == (504, "timed_out")
    assert job.state == State.CANCELLED
    gate.let()


def test_draining_takes_no_more_and_lets_those_that_are_there_end(queue: JobQueue):
    job, gate = held(queue)
    queue.drain()
    with pytest.raises(ShuttingDown) as caught:
        queue.submit(quick("late"))
    assert caught.value.status == 503
    gate.let()
    assert result_of(job) == "held"


def test_closing_tells_everybody_and_ends_the_worker():
    queue = JobQueue(most=3)
    job, gate = held(queue, steps=5)
    waiting = quick("waiting")
    queue.submit(waiting)
    queue.close()
    for each in (job, waiting):
        with pytest.raises(ShuttingDown):
            result_of(each)
    gate.let()
    queue._thread.join(20)
    assert not queue._thread.is_alive()
    assert gate.left.is_set()


def test_an_id_belongs_to_one_job_at_a_time(queue: JobQueue):
    _, gate = held(queue)
    with pytest.raises(ApiError, match="there is a job 'held' already"):
        queue.submit(quick("held"))
    gate.let()
    until(lambda: queue.find("held") is None)
    queue.submit(quick("held"))


def test_work_sees_that_it_is_not_wanted():
    job = quick("a")
    job.begin()
    job.step()
    job.cancel(Cancelled())
    with pytest.raises(Stopped):
        job.step()
    assert not job.succeed("late")
    assert job.state == State.CANCELLED


def together(name: str, key: Any, ran: list[list[str]], most: int = 8, fails: bool = False) -> Job:
    def all_of(jobs: Any) -> list[str]:
        ran.append([job.id for job in jobs])
        if fails:
            raise RuntimeError("one of them is wrong")
        return [job.id.upper() for job in jobs]

    def alone(job: Job) -> str:
        ran.append([job.id])
        return job.id.upper()

    return Job(name, "model", alone, key=key, most=most, together=all_of)


def test_jobs_of_a_kind_that_wait_are_worked_on_at_once_up_to_so_many(queue: JobQueue):
    queue.most = 9
    _, gate = held(queue)
    ran: list[list[str]] = []
    jobs = [together(name, name.isupper() or name == "c", ran, most=3) for name in "abcdefg"]
    none = together("none", None, ran)
    cancelled = together("cancelled", False, ran)
    for job in (*jobs[:2], none, cancelled, *jobs[2:]):
        queue.submit(job)
    cancelled.cancel(Cancelled())
    gate.let()
    assert [result_of(job) for job in (*jobs, none)] == ["A", "B", "C", "D", "E", "F", "G", "NONE"]
    assert ran == [["a", "b", "d"], ["none"], ["c"], ["e", "f", "g"]]


def test_what_fails_together_is_worked_on_one_by_one(queue: JobQueue):
    _, gate = held(queue)
    ran: list[list[str]] = []
    jobs = [together(name, 1, ran, fails=True) for name in "abc"]
    for job in jobs:
        queue.submit(job)
    gate.let()
    assert [result_of(job) for job in jobs] == ["A", "B", "C"]
    assert ran == [["a", "b", "c"], ["a"], ["b"], ["c"]]
