"""Threads that compute: how many there may be."""

from __future__ import annotations

import warnings

import torch

from ..core.fork import is_forked

_settled = False


def in_forked_child() -> None:
    """Compute with one thread in a forked child, with a warning; nothing elsewhere.

    OpenMP's threads stay behind in the parent, and the child would wait for them for ever
    (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=58378).
    """
    global _settled
    if _settled or not is_forked():
        return
    _settled = True
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            "this process was forked: it draws with one thread, since the threads that compute do not survive a fork. "
            "To use all cores, start workers with multiprocessing's 'spawn' method and open the pipeline in each.",
            RuntimeWarning,
            stacklevel=6,
        )
