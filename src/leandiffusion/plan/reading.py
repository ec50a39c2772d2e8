"""Measures how fast a CPU reads weights from a checkpoint that the system has in memory."""

from __future__ import annotations

import errno
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..device.threads import compute_beside, threads_beside
from ..weights.header import TensorEntry
from ..weights.opened import OpenFile

FILE_BYTES = 72 << 20
"""Of the checkpoint: more than a cache keeps."""

WRITTEN_BYTES = 16 << 10
"""Written at a time, so that the system keeps the file in pieces like those of files that came by and by: from the
larger ones that one write leaves it is read half as fast again."""

NUMBERS = b"\x3c"
"""What the file consists of: 0.0115 in float32 and bfloat16, 1.06 in float16, with which products stay finite."""

READ_BYTES = 8 << 20
"""Read at a time, from one end of the checkpoint to the other and again."""

WHOLE_BYTES, ROUNDS = 128 << 20, 4
"""Read into memory that the system gives anew, and how often."""


@contextmanager
def checkpoint() -> Iterator[OpenFile]:
    """A checkpoint of FILE_BYTES, gone afterwards. Where the folder for temporary files has no room for it, or there is
    none, it lies in memory alone. OSError where the system knows no such files either."""
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "weights")
            with path.open("wb", buffering=0) as file:
                _fill(file.write)
        except OSError:
            stack.close()  # what is there of it takes room
            if not hasattr(os, "memfd_create"):
                raise
            descriptor = os.memfd_create("weights")
            stack.callback(os.close, descriptor)
            _fill(partial(os.write, descriptor))
            path = Path(f"/proc/self/fd/{descriptor}")
        file = OpenFile.at(path)
        stack.enter_context(closing(file.stream))
        yield file


def _fill(write: Callable[[bytes], int]) -> None:
    for _ in range(FILE_BYTES // WRITTEN_BYTES):
        if write(NUMBERS * WRITTEN_BYTES) < WRITTEN_BYTES:
            raise OSError(errno.ENOSPC, "there is room for a part of the file only")


def reads(file: OpenFile, pool: Tensor) -> Iterator[tuple[int, Callable[[], object]]]:
    """(bytes, what reads as many) of a linear layer's weights and of a convolution's, to one place after the other in
    the pool, a flat tensor of their dtype, from a `checkpoint`."""
    side = int((READ_BYTES / pool.itemsize) ** 0.5)
    for shape in ((side, side), (side // 3, 3, 3, side // 3)):
        size = math.prod(shape)
        places = [part.view(shape) for part in pool[: len(pool) // size * size].split(size)]
        if len(shape) == 4:  # channels-last
            places = [place.permute(0, 3, 1, 2) for place in places]
        turn = zip(itertools.cycle(places), _starts(), strict=False)
        yield places[0].nbytes, lambda turn=turn: _read(file, *next(turn))


def measure_load(file: OpenFile, dtype: torch.dtype) -> float:
    """Bytes/s of weights that are read as whole networks are, by all threads into memory that the system gives anew,
    from a `checkpoint`. The time is that of the processor, which others on the machine do not lengthen.

    On average over ROUNDS, each of which gives its memory back, as networks do that take turns. The first may wait for
    a virtual machine's host to find the memory, as part of a network does that is read minutes after the last one.
    """
    seconds = sum(_seconds_of_whole(file, dtype) for _ in range(ROUNDS))
    return ROUNDS * WHOLE_BYTES * threads_beside() / max(seconds, 1e-6)


def _seconds_of_whole(file: OpenFile, dtype: torch.dtype) -> float:
    parts = torch.empty(WHOLE_BYTES // dtype.itemsize, dtype=dtype).split(READ_BYTES // dtype.itemsize)
    works = [partial(_read, file, part, start) for part, start in zip(parts, _starts(), strict=False)]
    begun = time.process_time()
    compute_beside(works)
    return time.process_time() - begun


def _starts() -> Iterator[int]:
    """Where to read, each time."""
    return itertools.cycle(range(0, FILE_BYTES - READ_BYTES + 1, READ_BYTES))


def _read(file: OpenFile, target: Tensor, start: int) -> None:
    entry = TensorEntry(file.path, "weight", target.dtype, tuple(target.shape), start, start + target.nbytes)
    file.read(entry, target)
