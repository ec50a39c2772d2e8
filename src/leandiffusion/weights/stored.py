"""Weights that stay on disk: tensors that know where their bytes lie and read them when they are used.

A `StoredTensor` has shape, dtype, strides and device of the tensor it stands for, and takes no memory. Whatever is done
with it outside an offload engine (`weight[5]`, `weight.norm()`, a forward) reads it first, so code that looks at
weights needs not know where they are. Casting it, or laying it out channels-last, only changes how it will be read. An
embedding reads just the rows that it looks up. One that is written to, or indexed (`weight[5].add_(1)` would write),
keeps its value in memory from then on.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..core.errors import WeightsError
from .build import put_tensor
from .header import TensorEntry
from .read import TensorReader


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A checkpoint file that is read now and then, by one thread at a time.

    It stays open, so that replacing or deleting it does no harm; `stamp` (size, modification time in ns) tells when
    its bytes were changed in place.
    """

    path: Path
    stream: FileIO
    stamp: tuple[int, int]
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: TensorReader = field(default_factory=lambda: TensorReader(None, torch.device("cpu")))

    @classmethod
    def at(cls, path: Path, stamp: tuple[int, int] | None = None) -> OpenFile:
        """Open `path`, whose stamp should be `stamp`; WeightsError when it is gone or another."""
        try:
            stream = FileIO(path)
        except OSError as error:
            raise WeightsError(f"{path} can not be opened again ({error.strerror}): open the network again.") from error
        opened = cls(path, stream, _stamp(stream) if stamp is None else stamp)
        weakref.finalize(opened, stream.close)
        opened.check()
        return opened

    def check(self) -> None:
        """WeightsError when the bytes are no longer those that were opened."""
        if _stamp(self.stream) != self.stamp:
            raise WeightsError(f"{self.path} was changed while its weights were in use: open the network again.")

    def read(self, entry: TensorEntry, into: Tensor) -> None:
        """Fill `into` with the entry's numbers; raises WeightsError's kinds when the file can not give them."""
        with self.lock:
            self.check()
            self.reader.read_into(self.stream, entry, into)


@dataclass(eq=False)
class Held:
    """The numbers of a stored tensor that were written to, None while the file's hold. Shared by its aliases."""

    value: Tensor | None = None


class StoredTensor(Tensor):
    """A tensor whose numbers lie at `entry` of `file`, or in `held` once they were written to."""

    entry: TensorEntry
    file: OpenFile
    held: Held

    @staticmethod
    def __new__(cls, entry: TensorEntry, file: OpenFile, dtype: torch.dtype, strides: tuple[int, ...] | None = None):
        strides = torch.empty(entry.shape, device="meta").stride() if strides is None else strides
        stored = Tensor._make_wrapper_subclass(cls, entry.shape, strides=strides, dtype=dtype, device="cpu")  # type: ignore[attr-defined]
        stored.entry, stored.file, stored.held = entry, file, Held()
        return stored

    def read(self) -> Tensor:
        """The numbers in memory: a new tensor, or the one that was written to."""
        if self.held.value is not None:
            return self.held.value
        tensor = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype)
        self.read_into(tensor)
        return tensor

    def read_into(self, into: Tensor) -> None:
        """Fill `into`, of this shape and any dtype, device and strides."""
        if self.held.value is not None:
            into.copy_(self.held.value)
        else:
            self.file.read(self.entry, into)

    def hold(self) -> Tensor:
        """The numbers in memory, where they stay, so that writing to them is remembered."""
        self.held.value = self.read()
        return self.held.value

    def rows(self, indices: Tensor) -> Tensor:
        """`self[indices]` for a matrix (N, C) and whole numbers of any shape: reads those rows alone."""
        if self.held.value is not None or self.entry.transpose:
            return self.read()[indices]
        unique, places = indices.unique(return_inverse=True)
        found = torch.empty(len(unique), self.shape[1], dtype=self.dtype)
        for row, index in zip(found, unique.tolist(), strict=True):
            if not 0 <= index < self.shape[0]:
                raise IndexError(f"index {index} is out of range: {self.entry.name} has {self.shape[0]} rows.")
            self.file.read(self.entry.rows(index, index + 1), row[None])
        return found[places]

    def like(self, dtype: torch.dtype, strides: tuple[int, ...]) -> StoredTensor:
        """The same numbers, to be read as another dtype or with other strides."""
        other = StoredTensor(self.entry, self.file, dtype, strides)
        if self.held.value is not None:
            other.held.value = torch.empty_strided(self.shape, strides, dtype=dtype).copy_(self.held.value)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTensor:
        twin = self.like(self.dtype, self.stride())
        return nn.Parameter(twin, self.requires_grad) if isinstance(self, nn.Parameter) else twin  # type: ignore[return-value]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StoredTensor({tuple(self.shape)}, {self.dtype}, {self.entry.name!r} of {self.file.path.name})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], StoredTensor):
            args = (args[0].hold(), *args[1:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, StoredTensor):
            if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
                return _alias(first)
            if func is torch.ops.aten._to_copy.default and (relaid := _relaid(first, kwargs)) is not None:
                return relaid
            if func is torch.ops.aten.embedding.default:
                return first.rows(args[1])
        if func._schema.is_mutable:
            return _write(func, args, kwargs)
        args, kwargs = tree_map(_in_memory, (args, kwargs))
        return func(*args, **kwargs)


def _alias(stored: StoredTensor) -> StoredTensor:
    """The same tensor to autograd's eyes; a value that is written through one is seen through the other."""
    other = StoredTensor(stored.entry, stored.file, stored.dtype, stored.stride())
    other.held = stored.held
    return other


def _relaid(stored: StoredTensor, kwargs: Mapping[str, Any]) -> StoredTensor | None:
    """What `stored.to(...)` gives when it stays in place; None when it has to be read."""
    if torch.device(kwargs.get("device") or "cpu").type != "cpu" or kwargs.get("pin_memory"):
        return None
    dtype, form = kwargs.get("dtype") or stored.dtype, kwargs.get("memory_format")
    if not dtype.is_floating_point:
        return None
    strides = stored.stride()
    if form not in (None, torch.preserve_format):
        strides = torch.empty(stored.shape, device="meta").to(memory_format=form).stride()
    return stored.like(dtype, strides)


def _write(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation that writes to its arguments: those are read, and keep what was written."""
    written: list[tuple[StoredTensor, Tensor]] = []

    def take(value: Any) -> Any:
        if isinstance(value, StoredTensor):
            written.append((value, value.hold()))
            return value.hold()
        return value

    result = func(*tree_map(take, args), **tree_map(take, kwargs))
    return next((stored for stored, value in written if value is result), result)


def _in_memory(value: Any) -> Any:
    return value.read() if isinstance(value, StoredTensor) else value


def _stamp(stream: FileIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


# -- whole networks --------------------------------------------------------------------------------------------------


def stored_names(network: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are on disk."""
    return [name for name, tensor in _tensors(network).items() if isinstance(tensor, StoredTensor)]


def bring_up(network: nn.Module, device: torch.device | None = None) -> None:
    """Read every weight that is on disk into memory, the CPU's unless `device` says otherwise.

    Weights already read stay read if a later one fails.
    """
    for names, tensor in _by_identity(network):
        if isinstance(tensor, StoredTensor):
            put_tensor(network, names, tensor.read().detach().to(device or "cpu"))


def put_down(
    network: nn.Module,
    entries: Mapping[str, TensorEntry],
    stamps: Mapping[Path, tuple[int, int]],
    progress: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """Leave on disk every parameter whose numbers are there as they are in memory; returns the others' names.

    A weight that was changed since it was loaded differs from its file, so each is compared before its memory is given
    back. `progress` is told the bytes done.
    """
    files = {path: OpenFile.at(path, stamps.get(path)) for path in {entry.file for entry in entries.values()}}
    kept: list[str] = []
    for names, tensor in _by_identity(network):
        name = next((n for n in names if n in entries), None)
        if isinstance(tensor, StoredTensor) or not isinstance(tensor, nn.Parameter):
            continue
        entry = None if name is None else entries[name].reshaped(tuple(tensor.shape))
        stored = None if entry is None else StoredTensor(entry, files[entry.file], tensor.dtype, tensor.stride())
        if stored is None or not _same_bits(stored.read(), tensor.detach().cpu()):
            kept.append(names[0])
        else:
            put_tensor(network, names, stored)
        progress(tensor.nbytes)
    return kept


def cast(network: nn.Module, dtype: torch.dtype) -> list[tuple[list[str], Tensor]]:
    """Give every floating-point weight that dtype; returns what was replaced, as names and tensor.

    Those on disk stay there and are read as `dtype`; putting the old ones back (`build.put_tensor`) undoes this.
    """
    replaced = [(names, tensor) for names, tensor in _by_identity(network) if tensor.is_floating_point()]
    for names, tensor in replaced:
        stored = isinstance(tensor, StoredTensor)
        put_tensor(network, names, tensor.like(dtype, tensor.stride()) if stored else tensor.detach().to(dtype))
    return replaced


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype hold the same numbers, NaN being the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict(keep_vars=True)


def _by_identity(network: nn.Module) -> Iterable[tuple[list[str], Tensor]]:
    """Every parameter and buffer once, with all the names it goes by."""
    tensors = _tensors(network)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return [(aliases, tensors[aliases[0]]) for aliases in names.values()]
