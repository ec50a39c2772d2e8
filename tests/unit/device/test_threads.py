"""Threads that read weights compute alone, so that they leave OpenMP's helpers to those who draw."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from leandiffusion.device import threads
from leandiffusion.device.threads import compute_aside, compute_beside
from leandiffusion.offload.prefetch import ThreadPrefetcher

pytestmark = pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch was built without OpenMP")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_prefetcher_has_no_helpers() -> None:
    """Neither the first time, nor after a fill; whoever draws keeps theirs."""
    prefetcher, seen = ThreadPrefetcher(), []
    for _ in range(2):
        prefetcher.wait(prefetcher.start(lambda: seen.append(torch.get_num_threads()), []))
    prefetcher.close()
    assert seen == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_computing_aside_leaves_no_thread() -> None:
    """With as many threads as were asked for; what it raises comes out, and the work hears of that."""
    before, seen = threading.active_count(), []
    assert compute_aside(lambda _: torch.get_num_threads()) == 2
    with pytest.raises(ZeroDivisionError):
        compute_aside(lambda interrupted: seen.append(interrupted) or 1 / 0)
    assert seen[0].is_set()
    assert threading.active_count() == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A suite in the background is started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_caller_waits_until_work_that_is_not_wanted_ends() -> None:
    def work(interrupted: threading.Event) -> None:
        main = threading.main_thread().ident
        assert main is not None
        time.sleep(0.2)  # until the caller waits
        signal.pthread_kill(main, signal.SIGINT)
        assert interrupted.wait(30)
        ended.append(True)

    ended: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        compute_aside(work)
    assert ended == [True]


@pytest.mark.usefixtures("two_threads")
def test_as_many_work_beside_each_other_as_compute() -> None:
    """Two meet, each computing alone; a third would come too late."""
    meet, alone = threading.Barrier(2, timeout=10), []

    def work() -> None:
        meet.wait()
        alone.append(torch.get_num_threads())

    compute_beside([work] * 4)
    assert alone == [1] * 4
    assert not [each for each in threading.enumerate() if each.name.startswith("leandiffusion-beside")]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("mode", [True, False])
def test_they_write_to_what_was_made_in_inference_mode(mode: bool) -> None:
    with torch.inference_mode(mode):
        numbers = torch.zeros(4)
        compute_beside([lambda row=row: row.add_(1) for row in numbers])
    assert numbers.is_inference() is mode
    assert numbers.tolist() == [1] * 4


@pytest.mark.usefixtures("two_threads")
def test_the_caller_works_where_one_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[threading.Thread] = []

    def work() -> None:
        ran.append(threading.current_thread())

    compute_beside([work])
    compute_beside([work, work], at_once=1)
    monkeypatch.setattr(threads, "MOST", 1)
    compute_beside([work, work])
    compute_beside([])
    assert ran == [threading.current_thread()] * 5


@pytest.mark.usefixtures("two_threads")
def test_what_fails_is_raised_when_none_is_under_way() -> None:
    ended: list[int] = []

    def fail() -> None:
        raise OSError("gone")

    def work(number: int) -> None:
        time.sleep(0.02)
        ended.append(number)

    with pytest.raises(OSError, match="gone"):
        compute_beside([fail, *(lambda number=number: work(number) for number in range(200))])
    count = len(ended)
    assert count < 200
    time.sleep(0.1)
    assert len(ended) == count
