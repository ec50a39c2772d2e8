"""Threads that compute: how many there may be."""

from __future__ import annotations

import warnings

import torch

from ..core.fork import is_forked, renew_in_child


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
