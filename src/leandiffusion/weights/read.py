"""Tensor data from files straight into tensors, without an intermediate copy.

Positioned reads, not a memory map: mapped pages count as resident until the kernel takes them back, so that loading
through a map peaks at twice the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from io import FileIO

import torch
from torch import Tensor

from ..core.errors import MalformedFile
from .header import TensorEntry

CHUNK_BYTES = 4 << 20  # of the buffer that tensors pass through when their dtype, device or layout changes


class TensorReader:
    """Reads entries as tensors of one dtype and device. Holds one open file and one small buffer."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._buffer = torch.empty(0, dtype=torch.uint8, device="cpu")

    def read_all(self, entries: dict[str, TensorEntry]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every entry, in the order of the files' bytes.

        Raises MalformedFile when a file ends before a tensor does.
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

    def read_into(self, stream: FileIO, entry: TensorEntry, tensor: Tensor) -> None:
        """Fill `tensor` of the entry's shape, of any dtype, device and strides, from the open file.

        Raises MalformedFile when the file ends first.
        """
        if not entry.nbytes:
            return
        stream.seek(entry.start)
        plain = tensor.is_contiguous() and not entry.transpose
        if tensor.device.type == "cpu" and tensor.dtype == entry.dtype and plain:
            _fill(stream, tensor.view(-1), entry)
        else:
            self._read_through_buffer(stream, entry, tensor.t() if entry.transpose else tensor)

    def _read_through_buffer(self, stream: FileIO, entry: TensorEntry, target: Tensor) -> None:
        """Read a few rows of the file's layout at a time, then cast, move and, if asked, reorder them into place."""
        target = target.view(-1) if target.is_contiguous() else target
        row_shape = tuple(target.shape[1:])
        row_bytes = math.prod(row_shape) * entry.dtype.itemsize
        rows = max(1, CHUNK_BYTES // row_bytes)
        for begin in range(0, target.shape[0], rows):
            part = target[begin : begin + rows]
            chunk = self._bytes(part.shape[0] * row_bytes).view(entry.dtype)
            _fill(stream, chunk, entry)
            part.copy_(chunk.view(-1, *row_shape))

    def _bytes(self, count: int) -> Tensor:
        if self._buffer.numel() < count:
            self._buffer = torch.empty(count, dtype=torch.uint8, device="cpu", pin_memory=self.device.type == "cuda")
        return self._buffer[:count]


def _by_file(entries: dict[str, TensorEntry]) -> Iterator[tuple[str, Iterable[tuple[str, TensorEntry]]]]:
    files: dict[str, list[tuple[str, TensorEntry]]] = {}
    for name, entry in entries.items():
        files.setdefault(str(entry.file), []).append((name, entry))
    for file, group in files.items():
        yield file, sorted(group, key=lambda item: item[1].start)


def _fill(stream: FileIO, flat: Tensor, entry: TensorEntry) -> None:
    """Read exactly as many bytes as the flat CPU tensor holds, into it. The kernel may give fewer at a time."""
    view = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while view:
        count = stream.readinto(view)
        if not count:
            raise MalformedFile(
                f"{entry.file} is truncated: it ends {len(view)} bytes before the data of tensor {entry.name!r} does. "
                "Download or save it again."
            )
        view = view[count:]
