"""Checkpoint files that stay open, and detect changes to their bytes."""

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

_ROW = 512  # 64-bit words per row


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A checkpoint file kept open to be read by any number of threads and forked processes.

    So replacing or deleting it does no harm. Changes in place are detected by `stamp`, or where that was preserved, by
    a digest of each tensor that was read before.
    """

    path: Path
    stream: FileIO
    stamp: Stamp
    reader: TensorReader = field(default_factory=lambda: TensorReader(None, torch.device("cpu")))
    digests: dict[tuple[int, int, int], int] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, stamp: Stamp | None = None) -> OpenFile:
        """Open `path`, whose stamp should be `stamp`; WeightsError when it is gone or has another."""
        try:
            stream = FileIO(path)
        except OSError as error:
            raise WeightsError(f"{path} cannot be opened again ({error.strerror}): open the network again.") from error
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
        """Fill `into` with the entry's values; raises WeightsError's kinds when they cannot be read."""
        self.check()
        digest = _Digest()
        self.reader.read_into(self.stream, entry, into, digest.update)
        # A digest depends on the pieces in which bytes are read: only those of the same pieces are compared.
        if self.digests.setdefault((entry.start, entry.stop, digest.pieces), digest.value) != digest.value:
            raise self._changed()

    def _changed(self) -> WeightsError:
        return WeightsError(f"{self.path} was changed while its weights were in use: open the network again.")


class _Digest:
    """Sums of 64-bit words, and of rows of them times their position: detects accidents at the speed of memory."""

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
