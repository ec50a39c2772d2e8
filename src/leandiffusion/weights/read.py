"""Tensor data from files straight into tensors, without an intermediate copy.

Positioned reads, not a memory map: mapped pages count as resident until the kernel takes them back, so that loading
through a map peaks at twice the weights. A position belongs to the read and not to the file, so that threads and forked
processes may read one open file at once.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from io import FileIO

import torch
from torch import Tensor

from ..core.errors import MalformedFile, WeightsError
from ..core.fork import Lock
from ..device.host import is_host
from ..device.pinning import staging_buffer
from .header import TensorEntry

CHUNK_BYTES = 2 << 20  # read at a time: what tensors pass through when their dtype, device or layout changes

Seen = Callable[[memoryview], None]
"""Called with every piece of the file that was read, in order."""


class TensorReader:
    """Reads entries as tensors of one dtype and device. Holds one small buffer per thread and kind of device."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._buffers = threading.local()

    def read_all(self, entries: dict[str, TensorEntry]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every entry, in the order of the files' bytes.

        Raises MalformedFile when a file ends before a tensor does, WeightsError when the disk cannot give it.
        """
        for file, group in _by_file(entries):
            with FileIO(file) as stream:
                for name, entry in group:
                    yield name, self._read(stream, entry)

    def target_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What a tensor of this dtype in the file becomes: only floating point is cast."""
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    def _read(self, stream: FileIO, entry: TensorEntry) -> Tensor:
        tensor = torch.empty(entry.shape, dtype=self.target_dtype(entry.dtype), device=self.device)
        self.read_into(stream, entry, tensor)
        return tensor

    def read_into(self, stream: FileIO, entry: TensorEntry, tensor: Tensor, seen: Seen | None = None) -> None:
        """Fill `tensor` of the entry's shape, of any dtype, device and strides, from the open file.

        Raises MalformedFile when the file ends first, WeightsError when the disk cannot give it.
        """
        if not entry.nbytes:
            return
        plain = tensor.is_contiguous() and not entry.transpose
        if is_host(tensor.device) and tensor.dtype == entry.dtype and plain:
            flat = tensor.view(-1).view(torch.uint8)
            for begin in range(0, flat.numel(), CHUNK_BYTES):
                _fill(stream, flat[begin : begin + CHUNK_BYTES], entry, begin, seen)
        else:
            self._read_through_buffer(stream, entry, tensor.t() if entry.transpose else tensor, seen)

    def _read_through_buffer(self, stream: FileIO, entry: TensorEntry, target: Tensor, seen: Seen | None) -> None:
        """Read a few rows of the file's layout at a time, then cast, move and, if asked, reorder them into place."""
        target = target.view(-1) if target.is_contiguous() else target
        row_shape = tuple(target.shape[1:])
        row_bytes = math.prod(row_shape) * entry.dtype.itemsize
        rows = max(1, CHUNK_BYTES // row_bytes)
        for begin in range(0, target.shape[0], rows):
            part = target[begin : begin + rows]
            chunk = self._bytes(part.shape[0] * row_bytes, target.device)
            _fill(stream, chunk, entry, begin * row_bytes, seen)
            part.copy_(chunk.view(entry.dtype).view(-1, *row_shape))

    def _bytes(self, count: int, device: torch.device) -> Tensor:
        buffers = vars(self._buffers)
        if device.type not in buffers or buffers[device.type].numel() < count:
            buffers[device.type] = staging_buffer(count, device)
        return buffers[device.type][:count]


def _by_file(entries: dict[str, TensorEntry]) -> Iterator[tuple[str, Iterable[tuple[str, TensorEntry]]]]:
    files: dict[str, list[tuple[str, TensorEntry]]] = {}
    for name, entry in entries.items():
        files.setdefault(str(entry.file), []).append((name, entry))
    for file, group in files.items():
        yield file, sorted(group, key=lambda item: item[1].start)


def _fill(stream: FileIO, chunk: Tensor, entry: TensorEntry, begin: int, seen: Seen | None) -> None:
    """Read as many bytes as `chunk` holds, from byte `begin` of the entry's. The kernel may give fewer at a time."""
    whole = view = memoryview(chunk.numpy())  # type: ignore[arg-type]
    while view:
        count = _read_at(stream, view, entry.start + begin + len(whole) - len(view), entry)
        if not count:
            missing = entry.nbytes - begin - len(whole) + len(view)
            raise MalformedFile(
                f"{entry.file} is truncated: it ends {missing} bytes before the data of tensor {entry.name!r} does. "
                "Download or save it again."
            )
        view = view[count:]
    if seen is not None:
        seen(whole)


def _read_at(stream: FileIO, view: memoryview, position: int, entry: TensorEntry) -> int:
    """Read at a position of the file; how many bytes came. Disk errors become a WeightsError that names the file."""
    while True:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(stream.fileno(), [view], position)
            with _one_position:
                stream.seek(position)
                return stream.readinto(view) or 0
        except InterruptedError:  # a signal came; nothing was read
            continue
        except OSError as error:
            raise WeightsError(
                f"{entry.file} cannot be read ({error.strerror or error}), at tensor {entry.name!r}: see to the disk "
                "or the network share that it lies on, then try again."
            ) from error


_one_position = Lock()  # of files, on systems without positioned reads
