"""Threads that compute: how many there may be."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

import torch

from ..core.fork import is_forked, renew_in_child

T = TypeVar("T")

MOST = 4
"""Threads that read beside each other: more of them move bytes no faster."""


class _Threads:
    """Of this process: one only, from the moment on in which it was forked.

    OpenMP's threads stay behind in the parent, and whatever the child computes with more than one would wait for them
    for ever (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=58378).
    """

    def __init__(self) -> None:
        self.were_more = False
        renew_in_child(self)

    def renew(self) -> None:
        """Be one."""
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            self.were_more = True

    def say(self) -> None:
        """Warn once, where one thread is fewer than there were."""
        self.renew()  # if more were asked for in the child
        if self.were_more:
            self.were_more = False
            warnings.warn(
                "this process was forked: it draws with one thread, since the threads that compute do not survive a "
                "fork. To use all cores, start workers with multiprocessing's 'spawn' method and open the pipeline in "
                "each.",
                RuntimeWarning,
                stacklevel=7,
            )


_threads = _Threads()


def in_forked_child() -> None:
    """Compute with one thread in a forked child, with a warning; nothing elsewhere."""
    if is_forked():
        _threads.say()


def compute_alone() -> None:
    """Have the calling thread compute without helpers from now on, where torch computes with OpenMP.

    Otherwise it would get helpers of its own, which stay as long as it does. With more threads than processors GCC's
    OpenMP lets those that wait sleep at once instead of spinning, so that each operation of whoever computes beside
    would first wake its helpers (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
    """
    torch.get_num_threads()  # a thread's first question sets its number
    if (set_number := getattr(_library(), "omp_set_num_threads", None)) is not None:
        set_number(1)


def compute_aside(work: Callable[[threading.Event], T]) -> T:
    """`work(interrupted)` in a thread that ends with it, and its helpers too: so that a thread which computes once, and
    leaves the rest to another, does not slow that down (see `compute_alone`). The event is set where the caller was
    interrupted, who waits until the work is over."""
    interrupted = threading.Event()
    with ThreadPoolExecutor(1, "leandiffusion-aside") as pool:
        try:
            return pool.submit(copy_context().run, work, interrupted).result()
        except BaseException:
            interrupted.set()
            raise


def threads_beside() -> int:
    """In how many threads `compute_beside` works."""
    return min(torch.get_num_threads(), MOST)


def compute_beside(works: Sequence[Callable[[], object]], at_once: int | None = None) -> None:
    """Run all of these, which mostly wait for memory, beside each other: in as many threads as the calling one computes
    with unless told, which end with it, and in inference mode where that one is. Raises what one of them raises, or an
    interrupt, once none is under way."""
    count = min(threads_beside() if at_once is None else at_once, len(works))
    if count < 2:
        for work in works:
            work()
        return
    with ThreadPoolExecutor(count, "leandiffusion-beside", initializer=compute_alone) as pool:
        try:
            inference = torch.is_inference_mode_enabled()
            for done in [pool.submit(copy_context().run, _run_in, inference, work) for work in works]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_in(inference: bool, work: Callable[[], object]) -> None:
    """Tensors that were made in inference mode are written to in that mode only."""
    with torch.inference_mode(inference):
        work()


@cache
def _library() -> Any:
    """torch's own, through which the libraries that it was linked with are found."""
    return ctypes.CDLL(torch._C.__file__)
