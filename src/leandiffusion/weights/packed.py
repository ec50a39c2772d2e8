"""Weights of convolutions as oneDNN lays them out in blocks, in place of the plain ones.

oneDNN computes with weights in an order of its own, which belongs to the layer, the input's size and the processor. A
plain weight it brings into that order in every call, which on small feature maps takes longer than the convolution. A
`PackedTensor` holds the weight in that order only; to everybody but the convolution it is the plain tensor, which it
gives back bit for bit.
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
    """A weight (C_out, C / groups, h, w) in oneDNN's order. It stands where others have the file that they lie in."""

    opaque: Tensor
    geometry: tuple[Any, ...]
    """Padding, stride, dilation and groups, as oneDNN's operations take them."""
    size: tuple[int, ...]
    """Shape (B, C, H, W) of the inputs for which the order is the best."""
    path: Path = field(default=_WHERE, init=False)
    _asked: tuple[int, ...] = field(default=(), init=False)

    def read(self, entry: TensorEntry, into: Tensor) -> None:
        """Fill `into` with the plain weight."""
        into.copy_(self.opaque.to_dense())

    def for_inputs(self, size: tuple[int, ...]) -> Tensor:
        """The weight for inputs of that shape: in another order if the last inputs had maps of that size too.

        So two sizes in turn, such as strips of a picture and the last one, do not bring it into another order each
        time. Nor do batches: guidance that ends in the midst of a drawing halves them, and the order for two samples
        was measured to be as fast for one. A convolution is right with any.
        """
        if size[1:] != self.size[1:] and size[1:] == self._asked[1:]:
            self.opaque, self.size = _reorder(self.opaque.to_dense(), self.geometry, size), size
        self._asked = size
        return self.opaque


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


def packed_weight(layer: nn.Conv2d, size: tuple[int, ...]) -> Tensor | None:
    """The layer's weight for `torch.ops.mkldnn._convolution_pointwise` and inputs of shape `size` (B, C, H, W).

    It is packed now if it was not. None, and nothing changes, while something else refers to its memory, such as a
    view: what is written through that has to count. One without numbers, on the meta device, stands for itself.
    """
    weight = layer.weight
    if weight.is_meta:
        return weight
    packed = weight.packed if isinstance(weight, PackedTensor) else None
    if packed is None:
        with _packing:
            packed = _pack(layer, size)
    return None if packed is None else packed.for_inputs(size)


def _pack(layer: nn.Conv2d, size: tuple[int, ...]) -> Packed | None:
    weight = layer.weight
    if isinstance(weight, PackedTensor) and weight.packed is not None:  # by another thread, meanwhile
        return weight.packed
    numbers = numbers_of(weight)
    aliased = isinstance(weight, StoredTensor) and sys.getrefcount(weight.held) > _OWN_REFERENCES
    if aliased or has_other_users(numbers, weight):
        return None
    geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
    packed = Packed(_reorder(numbers, geometry, size), geometry, size)
    entry = TensorEntry(_WHERE, "weight", weight.dtype, tuple(weight.shape), 0, weight.nbytes)
    fresh = PackedTensor(entry, packed, weight.dtype, weight.stride())  # type: ignore[arg-type]
    return packed if swap(weight, as_parameter(fresh, weight.requires_grad)) else None


def _reorder(weight: Tensor, geometry: tuple[Any, ...], size: tuple[int, ...]) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(size))


def unpack(layer: nn.Conv2d) -> None:
    """Make the layer's weight a plain one again; it stays the same object."""
    with _packing:
        weight = layer.weight
        if is_packed(weight):
            plain = as_parameter(weight.read().detach(), weight.requires_grad)
            if not swap(weight, plain):
                layer.weight = plain  # type: ignore[assignment]
