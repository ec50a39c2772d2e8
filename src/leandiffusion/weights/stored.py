"""Weights that stay on disk: tensors that know where their bytes lie and read them when they are used.

A `StoredTensor` has shape, dtype, strides and device of the tensor it stands for, and takes no memory. Whatever is done
with it outside an offload engine (`weight.norm()`, a forward) reads it first, so code that looks at weights need not
know where they are. Casting it, laying it out channels-last or moving it to a device only changes how it will be read.
An embedding reads just the rows that it looks up.

A weight of a network that was just opened waits for its first use: reading it brings it into memory for good (`held`,
`Held.keeps`). One that stays on disk, because its network travels or it was left out, is read anew each time. Writing
to either, and whatever could lead to a write, loads the values into memory permanently: taking a view
(`weight[5]`, `weight.data.view(-1)`), its memory (`weight.numpy()`, `weight.data_ptr()`) or its storage. That costs the
weight's bytes until its network is opened anew. `weight.data = …` makes it an ordinary tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..core.errors import ConfigError
from ..core.fork import Lock
from .build import swap
from .header import TensorEntry
from .opened import OpenFile

aten = torch.ops.aten

_holding = Lock()

# What reaches the tensor's memory without dispatching an operation, and what may change its shape in place.
_REACH_MEMORY = {
    Tensor.__getitem__, Tensor.__setitem__, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage,
    Tensor._typed_storage, Tensor.storage, Tensor.share_memory_, Tensor.__dlpack__, Tensor.apply_, Tensor.map_,
    Tensor.map2_, Tensor.tolist,
}  # fmt: skip
# What layers do with weights. Torch's own way for a tensor like this one would load its compiler's algebra, which takes
# seconds and 60 MB of memory; and a linear layer would keep its weight, of which it takes a view.
_READ_ONLY = {F.linear, F.conv2d, F.group_norm, F.layer_norm, torch.native_group_norm}
_CHANGE_MEMORY = ("resize_", "resize_as_", "set_")
_UNMARKED_VIEWS = (aten._unsafe_view.default, aten._reshape_alias.default)  # views that their schema does not mark


@dataclass(eq=False)
class Held:
    """Values loaded into memory permanently; None while those on disk are used. Shared by a tensor's aliases.

    `keeps` says that the next use is to load them so.
    """

    value: Tensor | None = None
    keeps: bool = False


class StoredTensor(Tensor):
    """A tensor whose values are at `entry` of `file`, or in `held` once they could be written to.

    `rounded` are the dtypes that the numbers go through when they are read, before the tensor's own: those that it had
    before its first use, which hold fewer digits.
    """

    entry: TensorEntry
    file: OpenFile
    held: Held
    rounded: tuple[torch.dtype, ...]

    @staticmethod
    def __new__(
        cls, entry: TensorEntry, file: OpenFile, dtype: torch.dtype, strides: tuple[int, ...] | None = None,
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        strides = torch.empty(entry.shape, device="meta").stride() if strides is None else strides
        stored = Tensor._make_wrapper_subclass(cls, entry.shape, strides=strides, dtype=dtype, device=device)  # type: ignore[attr-defined]
        stored.entry, stored.file, stored.held, stored.rounded = entry, file, Held(), ()
        return stored

    @property
    def on_disk(self) -> bool:
        """Whether the values are on disk only."""
        return self.held.value is None

    def read(self) -> Tensor:
        """The numbers in memory: a new tensor, or the one that is held."""
        if self.held.value is not None:
            return self.held.value
        tensor = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device=self.device)
        self.read_into(tensor)
        return tensor

    def read_into(self, into: Tensor, span: tuple[int, int] | None = None) -> None:
        """Fill `into`, of this shape and any dtype, device and strides; of `span`, rows [begin, end), if it is given,
        which takes numbers that lie in the file as they are here (`entry.transpose`)."""
        if self.held.value is not None:
            into.copy_(self.held.value if span is None else self.held.value[slice(*span)])
        else:
            self._fill(self.entry if span is None else self.entry.rows(*span), into)

    def _fill(self, entry: TensorEntry, into: Tensor) -> None:
        """Read the entry, which is this tensor's or a part of it."""
        if not self.rounded:
            self.file.read(entry, into)
            return
        narrow = torch.empty_like(into, dtype=self.rounded[0])
        self.file.read(entry, narrow)
        for dtype in self.rounded[1:]:
            narrow = narrow.to(dtype)
        into.copy_(narrow)

    def hold(self) -> Tensor:
        """The values in memory, where they stay from then on, so that writes to them last."""
        if self.held.value is None:
            value = self.read()
            with _holding:  # of two threads that read it, one's numbers count for both
                if self.held.value is None:
                    self.held.value = value
        return self.held.value

    def used(self) -> Tensor:
        """The numbers in memory for an operation that only reads them."""
        return self.hold() if self.held.keeps else self.read()

    def set_to(self, source: Tensor) -> StoredTensor:
        """`self.set_(source)`: share the memory of a tensor like this one; earlier aliases keep theirs."""
        if (source.shape, source.dtype, source.device) != (self.shape, self.dtype, self.device):
            _refuse("set_")
        self.held = Held(source.hold() if isinstance(source, StoredTensor) else source.detach())
        return self

    def rows(self, indices: Tensor) -> Tensor:
        """`self[indices]` for a matrix (N, C) and integers of any shape: reads only those rows."""
        if self.held.value is not None or self.entry.transpose:
            return self.read()[indices]
        unique, places = indices.unique(return_inverse=True)
        found = torch.empty(len(unique), self.shape[1], dtype=self.dtype, device=self.device)
        for row, index in zip(found, unique.tolist(), strict=True):
            if not 0 <= index < self.shape[0]:
                raise IndexError(f"index {index} is out of range: {self.entry.name} has {self.shape[0]} rows.")
            self._fill(self.entry.rows(index, index + 1), row[None])
        return found[places]

    def like(
        self, dtype: torch.dtype, strides: tuple[int, ...], device: torch.device | str | None = None
    ) -> StoredTensor:
        """The same numbers, to be read as another dtype, with other strides, or to another device.

        As the file has them where they stay there; where they wait for their first use, as if they had been read.
        """
        place = self.device if device is None else torch.device(device)
        rounded = self.rounded
        if self.held.keeps and not _holds(self.dtype, rounded[-1] if rounded else self.entry.dtype):
            rounded = (*rounded, self.dtype)
        other = StoredTensor(self.entry, self.file, dtype, strides, place)
        other.held.keeps = self.held.keeps
        other.rounded = rounded[:-1] if rounded and rounded[-1] == dtype else rounded
        if self.held.value is not None:
            other.held.value = torch.empty_strided(self.shape, strides, dtype=dtype, device=place)
            other.held.value.copy_(self.held.value)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTensor:
        twin = self.like(self.dtype, self.stride())
        twin = nn.Parameter(twin, self.requires_grad) if isinstance(self, nn.Parameter) else twin
        memo[id(self)] = twin
        return twin  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = self.read()
        plain = nn.Parameter(plain, self.requires_grad) if isinstance(self, nn.Parameter) else plain
        return plain.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StoredTensor({tuple(self.shape)}, {self.dtype}, {self.entry.name!r} of {self.file.path.name})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            return _assign(*args)
        if getattr(func, "__name__", "") in _CHANGE_MEMORY[:2]:
            _refuse(func.__name__)
        if func is F.embedding and (found := _looked_up(*args, **(kwargs or {}))) is not None:
            return found
        if func in _READ_ONLY and not torch.is_grad_enabled():
            args, kwargs = tree_map(_in_memory, (args, kwargs or {}))
        if func in _REACH_MEMORY and isinstance(args[0], StoredTensor):
            args = (args[0].hold(), *args[1:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, StoredTensor):
            if func in (aten.detach.default, aten.alias.default):
                return _alias(first)
            if func is aten._to_copy.default and (relaid := _relaid(first, kwargs)) is not None:
                return relaid
            if func is aten.embedding.default:
                return first.rows(args[1])
        if func is aten.set_.source_Tensor and isinstance(first, StoredTensor):
            return first.set_to(args[1])
        if func._schema.name.removeprefix("aten::") in _CHANGE_MEMORY:
            _refuse(func._schema.name)
        if func._schema.is_mutable or _gives_view(func):
            return _through(func, args, kwargs)
        args, kwargs = tree_map(_in_memory, (args, kwargs))
        return func(*args, **kwargs)


def plain(tensor: Tensor) -> Tensor:
    """The tensor itself, or the numbers of one on disk, which are read for this use alone unless they are to be kept.

    Of one that asks for a gradient, the tensor itself.
    """
    return tensor.used() if isinstance(tensor, StoredTensor) and not torch.is_grad_enabled() else tensor


def numbers_of(tensor: Tensor) -> Tensor:
    """The tensor's numbers without gradients: those on disk read for this use alone, others where they are."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor.detach()


def _looked_up(indices: Tensor, weight: Tensor, *settings: Any, max_norm: float | None = None, **named: Any) -> Any:
    """The rows of an embedding that no gradient is asked of; None where torch itself has to look them up.

    Torch's own way here would load its compiler's algebra, 40 MB of memory for a process that needs none of it.
    """
    asks_gradient = torch.is_grad_enabled() and weight.requires_grad
    norm = settings[1] if len(settings) > 1 else max_norm
    if not isinstance(weight, StoredTensor) or type(indices) is not Tensor or norm is not None or asks_gradient:
        return None
    return weight.rows(indices)


def _alias(stored: StoredTensor) -> StoredTensor:
    """The same tensor to autograd's eyes; a value that is written through one is seen through the other."""
    other = type(stored)(stored.entry, stored.file, stored.dtype, stored.stride(), stored.device)
    other.rounded = stored.rounded
    other.held = stored.held
    return other


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether every number of the `other` floating-point dtype is one of `dtype`."""
    wide, narrow = torch.finfo(dtype), torch.finfo(other)
    return wide.eps <= narrow.eps and wide.max >= narrow.max and wide.tiny <= narrow.tiny


def _relaid(stored: StoredTensor, kwargs: Mapping[str, Any]) -> Tensor | None:
    """What `stored.to(...)` gives, to be read only when it is used; None when it has to be read now."""
    device = torch.device(kwargs.get("device") or stored.device)
    if kwargs.get("pin_memory"):
        return None
    dtype, form = kwargs.get("dtype") or stored.dtype, kwargs.get("memory_format")
    if not dtype.is_floating_point:
        return None
    strides = stored.stride()
    if form not in (None, torch.preserve_format):
        strides = torch.empty(stored.shape, device="meta").to(memory_format=form).stride()
    if device.type == "meta":  # which has no numbers
        return torch.empty_strided(stored.shape, strides, dtype=dtype, device=device)
    return stored.like(dtype, strides, device)


def _gives_view(func: Any) -> bool:
    """Whether what the operation returns shares memory with what it is given, so that writes to it have to last."""
    return func in _UNMARKED_VIEWS or any(result.alias_info is not None for result in func._schema.returns)


def _through(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation that writes to its arguments or gives views of them: those keep in memory what is written."""
    reached: list[tuple[StoredTensor, Tensor]] = []

    def take(value: Any, hold: bool) -> Any:
        def one(leaf: Any) -> Any:
            if not isinstance(leaf, StoredTensor):
                return leaf
            if not hold:
                return leaf.used()
            reached.append((leaf, leaf.hold()))
            return leaf.hold()

        return tree_map(one, value)

    declared = func._schema.arguments
    aliased = {argument.name for argument in declared if argument.alias_info is not None}
    everything = func in _UNMARKED_VIEWS
    args = [take(value, everything or declared[i].name in aliased) for i, value in enumerate(args)]
    kwargs = {name: take(value, everything or name in aliased) for name, value in kwargs.items()}
    result = func(*args, **kwargs)
    return next((stored for stored, value in reached if value is result), result)


def _refuse(operation: str) -> NoReturn:
    raise ConfigError(
        f"{operation}: a weight on disk has no memory whose size could change. Assign its data, or a new nn.Parameter "
        "to its layer."
    )


def _assign(target: Tensor, value: Tensor) -> None:
    """`target.data = value`, where either is stored: a stored target becomes whatever the value is."""
    if not isinstance(target, StoredTensor):
        target.data = value.read() if isinstance(value, StoredTensor) else value
        return
    fresh = _alias(value) if isinstance(value, StoredTensor) else value.detach()
    fresh = nn.Parameter(fresh, target.requires_grad) if isinstance(target, nn.Parameter) else fresh
    if not swap(target, fresh):
        raise ConfigError(
            f"the data of {target!r} cannot be replaced while something holds a weak reference to it: assign a new "
            "nn.Parameter to its layer instead."
        )


def _in_memory(value: Any) -> Any:
    return value.used() if isinstance(value, StoredTensor) else value
