"""Checkpoint files that stay open, and notice when their bytes are no longer those that were read before."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import WeightsError
from .header import TensorEntry
from .read import TensorReader

Stamp = tuple[int, int]
"""A file's size and modification time in ns."""

_ROW = 512  # words that are summed as one before their place is counted


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A checkpoint file that is read now and then, by any number of threads and forked processes.

    It stays open, so that replacing or deleting it does no harm. That its bytes were changed in place is told by
    `stamp`, or where that was kept, by a digest of each tensor that was read before.
    """

    path: Path
    stream: FileIO
    stamp: Stamp
    reader: TensorReader = field(default_factory=lambda: TensorReader(None, torch.device("cpu")))
    digests: dict[tuple[int, int, int], int] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, stamp: Stamp | None = None) -> OpenFile:
        """Open `path`, whose stamp should be `stamp`; WeightsError when it is gone or another."""
        try:
            stream = FileIO(path)
        except OSError as error:
            raise WeightsError(f"{path} can not be opened again ({error.strerror}): open the network again.") from error
        opened = cls(path, stream, stamp_of(stream) if stamp is None else stamp)
        weakref.finalize(opened, stream.close)
        opened.check()
        return opened

    def check(self) -> None:
        """WeightsError when the file was written since it was opened, as its stamp tells."""
        try:
            same = stamp_of(self.stream) == self.stamp
        except OSError as error:  # a network share that went away
            raise WeightsError(
                f"{self.path} cannot be read ({error.strerror}): see to the disk, then try again."
            ) from error
        if not same:
            raise self._changed()

    def read(self, entry: TensorEntry, into: Tensor) -> None:
        """Fill `into` with the entry's numbers; raises WeightsError's kinds when the file can not give them."""
        self.check()
        digest = _Digest()
        self.reader.read_into(self.stream, entry, into, digest.update)
        # A digest goes by the pieces in which bytes are read, so it is held against those of the same pieces alone.
        if self.digests.setdefault((entry.start, entry.stop, digest.pieces), digest.value) != digest.value:
            raise self._changed()

    def _changed(self) -> WeightsError:
        return WeightsError(f"{self.path} was changed while its weights were in use: open the network again.")


class _Digest:
    """Sums of 64-bit words and of rows of them times their place: tells accidents, at the speed of memory."""

    def __init__(self) -> None:
        self.value = 0
        self.pieces = 0

    def update(self, piece: memoryview) -> None:
        """Take in the next bytes."""
        whole = len(piece) // (8 * _ROW) * (8 * _ROW)
        rows = np.frombuffer(piece[:whole], np.int64).reshape(-1, _ROW).sum(1)
        placed = (rows * np.arange(1, len(rows) + 1)).sum()
        self.value = hash((self.value, int(rows.sum()), int(placed), bytes(piece[whole:])))
        self.pieces += 1


def stamp_of(file: FileIO | Path) -> Stamp:
    """The stamp of an open file, or of what lies at a path. OSError when it is gone."""
    status = os.stat(file) if isinstance(file, Path) else os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
