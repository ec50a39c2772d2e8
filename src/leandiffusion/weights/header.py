"""The header of a safetensors file, read strictly, and where each tensor's bytes lie.

Format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length N, little-endian; N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}`, offsets counted from the header's end; then the data, with
no gaps and no overlaps.

What the safetensors library (0.8) takes and what is taken here is the same, but for what no program writes. Both refuse
metadata that are not texts by name, NaN and Infinity, halves of surrogate pairs, integers written as 2.0 or -0,
overlaps, gaps, and bytes that no tensor covers. The differences, all of them refused here:

| in the header | the library | here, because |
|---|---|---|
| more than 32 MB | up to 100 MB | a thousand tensors take 0.1 MB; parsing takes several times the size |
| more than 100,000 tensors | taken | the same |
| a name twice, equal or not | the last counts | one of the two is not what its writer meant |
| more than 64 axes | taken | no operation of torch takes more |
| `["F32", [2], [0, 8]]`, `{"F32": null}` | taken, as a struct and an enum | not the published format |
| F4, F6 and other dtypes below a byte | taken | torch has no such tensors to read them into |
| nesting beyond 40, in keys that nobody reads | beyond 127 | one limit for all JSON |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointNotFound, MalformedFile, UnsafeFormat
from ..core.jsons import BadJSON, parse_json
from ..core.once import once
from ..core.wording import show
from .recognize import AGAIN, what_it_is

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_MAX_HEADER = 32_000_000  # bytes
_MAX_TENSORS = 100_000
_MAX_AXES = 64


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
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_headers(files: list[Path]) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint's shards together. MalformedFile when two shards hold the same name."""
    together: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in read_header(file).entries.items():
            if name in together:
                raise MalformedFile(f"tensor {show(name)} is in both {together[name].file} and {file}. {AGAIN}")
            together[name] = entry
    return together


@once
def read_header(file: Path) -> Header:
    """The header of one safetensors file; no tensor data is read.

    Raises CheckpointNotFound, UnsafeFormat for pickles, and MalformedFile for: a file of another kind (which one is
    said), too short, a header length that cannot be, text that is not JSON, unknown dtypes, offsets that overlap, leave
    gaps or pass the end of the file, metadata that are not texts. The time is linear in the header's size.
    """
    refuse_pickle(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = _header_length(file, stream.read(128), size)
            stream.seek(8)
            text = stream.read(length)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise CheckpointNotFound(f"{file} does not exist or is not a file.") from None
    described = _parsed(file, text)
    metadata = described.pop("__metadata__", None)
    if len(described) > _MAX_TENSORS:
        raise MalformedFile(f"{file} describes {len(described)} tensors, the limit is {_MAX_TENSORS}.")
    entries = {name: _entry(file, name, value, 8 + length) for name, value in described.items()}
    _check_layout(file, entries, 8 + length, size)
    return Header(file, entries, _texts(file, metadata))


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    try:
        described = parse_json(text, strict=True, most=2 * _MAX_TENSORS)
    except BadJSON as error:
        raise MalformedFile(f"{file}: the safetensors header is not valid JSON ({error}). {AGAIN}") from error
    if not isinstance(described, dict):
        raise MalformedFile(f"{file}: the safetensors header is a {type(described).__name__}, expected a JSON object.")
    return described


def _texts(file: Path, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFile(f"{file}: __metadata__ is {show(metadata)}, expected texts by name. {AGAIN}")
    return metadata


def refuse_pickle(file: Path) -> None:
    """UnsafeFormat when the name says that the file is a pickle."""
    if file.suffix in PICKLE_SUFFIXES:
        raise UnsafeFormat(
            f"{file} is a pickle: opening one can run any code, so it is refused. Look for .safetensors of the same "
            f"model, or convert a file that you trust: {CONVERT_PICKLE}"
        )


CONVERT_PICKLE = (
    "python -c \"import torch, safetensors.torch as s; d = torch.load('IN', weights_only=True); "
    "d = d.get('state_dict', d); s.save_file({k: v.clone().contiguous() for k, v in d.items() "
    "if torch.is_tensor(v)}, 'OUT.safetensors', {'format': 'pt'})\""
)


def _header_length(file: Path, first: bytes, size: int) -> int:
    """What the first 8 bytes say, if the file can hold as much. `first` is enough of it to recognise its kind."""
    length = int.from_bytes(first[:8], "little")
    fits = len(first) >= 8 and length <= _MAX_HEADER and 8 + length <= size
    if not (fits and first[8:9] == b"{") and (kind := what_it_is(first)):
        raise MalformedFile(f"{file} is not a safetensors file. It looks like {kind}.")
    if len(first) < 8:
        raise MalformedFile(f"{file} holds {size} bytes, too few for a safetensors file (at least 10). {AGAIN}")
    if length > _MAX_HEADER:
        raise MalformedFile(
            f"{file} is not a safetensors file: it claims a header of {length} bytes, the limit is {_MAX_HEADER}."
        )
    if 8 + length > size:
        raise MalformedFile(
            f"{file} is truncated or not a safetensors file: it claims a header of {length} bytes, and {size - 8} "
            f"bytes follow. {AGAIN}"
        )
    return length


def _entry(file: Path, name: str, value: Any, data: int) -> TensorEntry:
    """Check one tensor's description. `data` is where the data begins in the file."""
    where = f"{file}: tensor {show(name)}"
    if not isinstance(value, Mapping) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise MalformedFile(f"{where} is described by {show(value)}, expected dtype, shape and data_offsets. {AGAIN}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MalformedFile(f"{where} has dtype {show(dtype)}; supported are {', '.join(DTYPES)}.")
    if not _naturals(shape, _MAX_AXES) or not _naturals(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedFile(
            f"{where} has shape {show(shape)} and data_offsets {show(offsets)}, expected non-negative integers, at "
            f"most {_MAX_AXES} of a shape, and [begin, end] with begin <= end. {AGAIN}"
        )
    expected = math.prod(shape) * DTYPES[dtype].itemsize  # at most 64 factors below 2^63: quick
    if offsets[1] - offsets[0] != expected:
        raise MalformedFile(
            f"{where}: {dtype} {show(tuple(shape))} takes {show(expected)} bytes, its offsets {show(offsets)} span "
            f"{show(offsets[1] - offsets[0])}. {AGAIN}"
        )
    return TensorEntry(file, name, DTYPES[dtype], tuple(shape), data + offsets[0], data + offsets[1])


def _naturals(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_layout(file: Path, entries: dict[str, TensorEntry], data: int, size: int) -> None:
    """The data must be covered without overlap or gap and end with the file."""
    position, before = data, None
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.stop)):
        if entry.start != position:
            problem = "overlaps" if entry.start < position else "leaves a gap after"
            after = f"tensor {show(before)}" if before else "the header"
            raise MalformedFile(
                f"{file}: tensor {show(entry.name)} {problem} {after} (data offset {entry.start - data}, expected "
                f"{position - data}). {AGAIN}"
            )
        position, before = entry.stop, entry.name
    if position > size:
        raise MalformedFile(
            f"{file} is truncated: its header describes {position} bytes, the file holds {size}. {AGAIN}"
        )
    if position < size:
        raise MalformedFile(f"{file} has {size - position} bytes after its last tensor, expected none. {AGAIN}")
