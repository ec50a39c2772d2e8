"""The header of a safetensors file, read strictly, and where each tensor's bytes lie.

Format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length N, little-endian; N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, offsets counted from the header's end; then the data, with
no gaps and no overlaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointNotFound, MalformedFile, UnsafeFormat

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_ADVICE = "Download or save it again."


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: `shape` as it will be loaded, its bytes at [start, stop) of `file`.

    `rows`, `reshaped` and `transposed` describe the same bytes in another way, so that layouts are converted while
    reading and no second copy is made.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    transpose: bool = False

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def rows(self, begin: int, end: int) -> TensorEntry:
        """Rows [begin, end) along the first axis: (R, ...) -> (end - begin, ...)."""
        row = self.nbytes // self.shape[0]
        start = self.start + begin * row
        return replace(self, shape=(end - begin, *self.shape[1:]), start=start, stop=start + (end - begin) * row)

    def reshaped(self, shape: tuple[int, ...]) -> TensorEntry:
        """The same numbers in another shape of as many elements."""
        return self if shape == self.shape else replace(self, shape=shape)

    def transposed(self) -> TensorEntry:
        """(R, C) in the file -> (C, R) when loaded."""
        rows, columns = self.shape
        return replace(self, shape=(columns, rows), transpose=not self.transpose)


@dataclass(frozen=True)
class Header:
    """The tensors of one file by name, and its metadata."""

    file: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_headers(files: list[Path]) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint's shards together. MalformedFile when two shards hold the same name."""
    together: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in read_header(file).tensors.items():
            if name in together:
                raise MalformedFile(f"tensor {name!r} is in both {together[name].file} and {file}. {_ADVICE}")
            together[name] = entry
    return together


def read_header(file: Path) -> Header:
    """The header of one safetensors file; no tensor data is read.

    Raises CheckpointNotFound, UnsafeFormat for pickles, and MalformedFile for: a file too short, a header length that
    can not be, text that is not JSON, unknown dtypes, offsets that overlap, leave gaps or pass the end of the file.
    """
    refuse_pickle(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = _header_length(file, stream.read(8), size)
            text = stream.read(length)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointNotFound(f"{file} does not exist or is not a file.") from None
    try:
        described = json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MalformedFile(f"{file}: the safetensors header is not valid JSON ({error}). {_ADVICE}") from error
    if not isinstance(described, dict):
        raise MalformedFile(f"{file}: the safetensors header is a {type(described).__name__}, expected a JSON object.")
    metadata = described.pop("__metadata__", None) or {}
    tensors = {name: _entry(file, name, value, 8 + length) for name, value in described.items()}
    _check_layout(file, tensors, 8 + length, size)
    return Header(file, tensors, metadata)


def refuse_pickle(file: Path) -> None:
    """UnsafeFormat when the name says that the file is a pickle."""
    if file.suffix in PICKLE_SUFFIXES:
        raise UnsafeFormat(
            f"{file} is a pickle: opening one can run any code, so it is refused. Look for a .safetensors download of "
            f"the same model, or convert a file that you trust: {CONVERT_PICKLE}"
        )


CONVERT_PICKLE = (
    "python -c \"import torch; from safetensors.torch import save_file; d = torch.load('IN', weights_only=True); "
    "d = d.get('state_dict', d); save_file({k: v.clone().contiguous() for k, v in d.items() "
    "if isinstance(v, torch.Tensor)}, 'OUT.safetensors', {'format': 'pt'})\""
)


def _header_length(file: Path, first: bytes, size: int) -> int:
    if len(first) < 8:
        raise MalformedFile(f"{file} holds {size} bytes, too few for a safetensors file (at least 10). {_ADVICE}")
    length = int.from_bytes(first, "little")
    if length > _MAX_HEADER:
        hint = " It looks like a pickle or zip that was renamed." if first[:2] in (b"PK", b"\x80\x02") else ""
        raise MalformedFile(
            f"{file} is not a safetensors file: it claims a header of {length} bytes, the limit is {_MAX_HEADER}.{hint}"
        )
    if 8 + length > size:
        raise MalformedFile(
            f"{file} is truncated or not a safetensors file: it claims a header of {length} bytes, and {size - 8} "
            f"bytes follow. {_ADVICE}"
        )
    return length


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedFile(f"{file}: the safetensors header names {twice!r} twice. {_ADVICE}")
    return result


def _entry(file: Path, name: str, value: Any, data: int) -> TensorEntry:
    """Check one tensor's description. `data` is where the data begins in the file."""
    where = f"{file}: tensor {name!r}"
    if not isinstance(value, Mapping) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise MalformedFile(f"{where} is described by {value!r}, expected dtype, shape and data_offsets. {_ADVICE}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MalformedFile(f"{where} has dtype {dtype!r}; supported are {', '.join(DTYPES)}.")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedFile(
            f"{where} has shape {shape!r} and data_offsets {offsets!r}, expected non-negative integers and "
            f"[begin, end] with begin <= end. {_ADVICE}"
        )
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise MalformedFile(
            f"{where}: {dtype} {tuple(shape)} takes {expected} bytes, its offsets {offsets} span "
            f"{offsets[1] - offsets[0]}. {_ADVICE}"
        )
    return TensorEntry(file, name, DTYPES[dtype], tuple(shape), data + offsets[0], data + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _check_layout(file: Path, tensors: dict[str, TensorEntry], data: int, size: int) -> None:
    """The data must be covered without overlap or gap and end with the file."""
    position, before = data, None
    for entry in sorted(tensors.values(), key=lambda e: (e.start, e.stop)):
        if entry.start != position:
            problem = "overlaps" if entry.start < position else "leaves a gap after"
            after = f"tensor {before!r}" if before else "the header"
            raise MalformedFile(
                f"{file}: tensor {entry.name!r} {problem} {after} (data offset {entry.start - data}, expected "
                f"{position - data}). {_ADVICE}"
            )
        position, before = entry.stop, entry.name
    if position > size:
        raise MalformedFile(
            f"{file} is truncated: its header describes {position} bytes, the file holds {size}. {_ADVICE}"
        )
    if position < size:
        raise MalformedFile(f"{file} has {size - position} bytes after its last tensor, expected none. {_ADVICE}")
