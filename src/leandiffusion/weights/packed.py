"""Weights of convolutions and linear layers as oneDNN lays them out in blocks, in place of the plain ones.

oneDNN computes with weights in an order of its own, which belongs to the layer, the input's size and the processor. A
plain weight of a convolution it brings into that order in every call, which on small feature maps takes longer than the
convolution; plain ones of linear layers it reads line by line from where they lie, which takes longer where they come
from memory. A `PackedTensor` holds the weight in that order only; to everybody but its layer it is the plain tensor,
which it gives back bit for bit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..core.fork import Lock
from .build import as_parameter, swap
from .header import TensorEntry
from .residence import has_other_users
from .stored import StoredTensor, numbers_of

_WHERE = Path("oneDNN's order")

_OWN_REFERENCES = 2  # to what a stored tensor holds, by itself and by who counts them

_packing = Lock()


@dataclass(eq=False)
class Packed:
    """A weight (C_out, C / groups, h, w), or (C_out, C), in oneDNN's order. It stands where others have the file that
    they lie in."""

    parts: tuple[Tensor, ...]
    """Each of so many outputs."""
    geometry: tuple[Any, ...]
    """Padding, stride, dilation and groups, as oneDNN's operations take them; none of a linear layer."""
    size: tuple[int, ...]
    """Shape (B, C, H, W), or number (rows,), of the inputs for which the order is the best."""
    path: Path = field(default=_WHERE, init=False)
    _asked: tuple[int, ...] = field(default=(), init=False)

    def read(self, entry: TensorEntry, into: Tensor) -> None:
        """Fill `into` with the plain weight."""
        parts = self.parts  # another thread may have it in others, meanwhile
        for place, part in zip(into.chunk(len(parts)), parts, strict=True):
            place.copy_(part.to_dense())

    def for_inputs(self, size: tuple[int, ...], count: int) -> tuple[Tensor, ...]:
        """The weight in `count` parts, for inputs of that shape: in another order if the last inputs had maps of that
        size too.

        So two sizes in turn, such as strips of a picture and the last one, do not bring it into another order each
        time. Nor do batches: guidance that ends in the midst of a drawing halves them, and the order for two samples
        was measured to be as fast for one. A convolution is right with any.
        """
        parts = self.parts
        if len(parts) != count or (size[1:] != self.size[1:] and size[1:] == self._asked[1:]):
            plain = [part.to_dense() for part in parts]
            whole = plain[0] if len(plain) == 1 else torch.cat(plain)
            self.parts = parts = _parts(whole, count, self.geometry, size)
            self.size = size
        self._asked = size
        return parts


class PackedTensor(StoredTensor):
    """A weight in oneDNN's order, or once somebody could write to it, as it is held in memory."""

    file: Packed  # type: ignore[assignment]

    @property
    def on_disk(self) -> bool:
        return False

    @property
    def packed(self) -> Packed | None:
        """The weight in oneDNN's order; None once it is held in memory as a plain tensor."""
        return self.file if self.held.value is None else None


def is_packed(weight: Tensor) -> TypeGuard[StoredTensor]:
    """Whether a weight was packed, and is so or held in memory since."""
    return isinstance(weight, StoredTensor) and isinstance(weight.file, Packed)


def packed_weight(layer: nn.Conv2d | nn.Linear, size: tuple[int, ...], parts: int = 1) -> tuple[Tensor, ...] | None:
    """The layer's weight, in so many parts of its outputs, for `torch.ops.mkldnn._convolution_pointwise` and inputs of
    shape `size` (B, C, H, W), or for `_linear_pointwise` and so many rows.

    It is packed now if it was not. None, and nothing changes, while something else refers to its memory, such as a
    view: what is written through that has to count. One without numbers, on the meta device, stands for itself.
    """
    weight = layer.weight
    if weight.is_meta:
        return (weight,) if parts == 1 else weight.chunk(parts)
    packed = weight.packed if isinstance(weight, PackedTensor) else None
    if packed is None:
        with _packing:
            packed = _pack(layer, size, parts)
    return None if packed is None else packed.for_inputs(size, parts)


def _pack(layer: nn.Conv2d | nn.Linear, size: tuple[int, ...], parts: int) -> Packed | None:
    weight = layer.weight
    if isinstance(weight, PackedTensor) and weight.packed is not None:  # by another thread, meanwhile
        return weight.packed
    numbers = numbers_of(weight)
    aliased = isinstance(weight, StoredTensor) and sys.getrefcount(weight.held) > _OWN_REFERENCES
    if aliased or has_other_users(numbers, weight):
        return None
    geometry: tuple[Any, ...] = ()
    if isinstance(layer, nn.Conv2d):
        geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
    packed = Packed(_parts(numbers, parts, geometry, size), geometry, size)
    entry = TensorEntry(_WHERE, "weight", weight.dtype, tuple(weight.shape), 0, weight.nbytes)
    fresh = PackedTensor(entry, packed, weight.dtype, weight.stride())  # type: ignore[arg-type]
    return packed if swap(weight, as_parameter(fresh, weight.requires_grad)) else None


def _parts(weight: Tensor, count: int, geometry: tuple[Any, ...], size: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(_reorder(part, geometry, size) for part in weight.chunk(count))


def _reorder(weight: Tensor, geometry: tuple[Any, ...], size: tuple[int, ...]) -> Tensor:
    if not geometry:
        return torch.ops.mkldnn._reorder_linear_weight(weight, size[0])
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(size))


def unpack(layer: nn.Module) -> None:
    """Make the layer's weight a plain one again, if it is packed; it stays the same object."""
    with _packing:
        weight: Any = layer.weight
        if is_packed(weight):
            plain = as_parameter(weight.read().detach(), weight.requires_grad)
            if not swap(weight, plain):
                layer.weight = plain  # type: ignore[assignment]
