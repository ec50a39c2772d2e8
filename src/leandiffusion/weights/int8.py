"""Weights in eight bits in place of the exact ones, and layers computed with them by oneDNN's integer kernels.

A row or filter of a weight has one scale, so that its largest number is the largest that eight bits hold. Inputs are
rounded when a layer gets them: tokens by a scale each, feature maps by a scale and a zero for each sample. Sums are
exact, in 32 bits. Where kernels add two products up in 16 bits (CPUs without VNNI), inputs have seven.

An `Int8Tensor` looks like the exact weight to everybody but the functions that layers call, and gives it back bit for
bit: from the checkpoint, where that has it, or from memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device.capabilities import int8_inputs, is_unobserved
from .build import as_parameter, swap
from .header import TensorEntry
from .residence import has_other_users, is_on_disk
from .stored import StoredTensor, numbers_of, plain

_WHERE = Path("eight bits")
_LARGEST = 127  # of a weight's numbers
_TINY = torch.finfo(torch.float32).tiny
_LINEAR, _CONV2D = F.linear, F.conv2d


@dataclass(frozen=True)
class Numbers:
    """A weight as signed bytes, plain or in oneDNN's order, times `scales` (C_out,): a matrix (C_out, C_in), or filters
    (C_out, C_in, h, w) larger than one pixel."""

    bytes: Tensor
    scales: Tensor
    is_packed: bool = False

    def rounded(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """What they stand for, as a plain weight."""
        whole = self.bytes
        if self.is_packed:
            whole = whole.to_dense()
            whole = whole.t() if whole.ndim == 2 else whole  # of matrices that order is the transpose's
        return (whole.float() * _along(self.scales, whole)).to(dtype).view(shape)


@dataclass(eq=False)
class Rounded:
    """The weight in eight bits, made of the `exact` one at its first use. It stands where others have their file.

    `inputs`: whether the layer's inputs are rounded too; otherwise it computes in floating point.
    """

    exact: Tensor
    inputs: bool
    numbers: Numbers | None = None
    path: Path = field(default=_WHERE, init=False)

    def read(self, entry: TensorEntry, into: Tensor) -> None:
        """Fill `into` with the exact weight."""
        into.copy_(numbers_of(self.exact))

    def made(self) -> Numbers:
        """The numbers, plain or in oneDNN's order."""
        if self.numbers is None:  # two threads would make the same
            self.numbers = to_int8(numbers_of(self.exact))
        return self.numbers

    def packed(self) -> Numbers:
        """The numbers in oneDNN's order."""
        numbers = self.made()
        if not numbers.is_packed:
            ops, whole = torch.ops.onednn, numbers.bytes
            if whole.ndim == 2:
                order = ops.qlinear_prepack(whole, None)
            else:  # an order for any geometry; inputs have these scale and zero or others
                order = ops.qconv_prepack(whole, numbers.scales, 1.0, 0, [1, 1], [1, 1], [1, 1], 1, None)
            self.numbers = numbers = replace(numbers, bytes=order, is_packed=True)
        return numbers


class Int8Tensor(StoredTensor):
    """A weight in eight bits, or once somebody could write to it, the exact one as it is held in memory."""

    file: Rounded  # type: ignore[assignment]

    @property
    def on_disk(self) -> bool:
        return False

    def rounded_weight(self) -> Tensor:
        """What the eight bits stand for, as a plain weight."""
        return self.file.made().rounded(self.shape, self.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (_LINEAR, _CONV2D) and is_int8(args[1]) and is_unobserved(args[0]) and not kwargs:
            return (linear if func is _LINEAR else convolve)(*args)
        return super().__torch_function__(func, types, args, kwargs)


def is_int8(weight: Tensor) -> TypeGuard[Int8Tensor]:
    """Whether layers compute with the weight in eight bits."""
    return isinstance(weight, Int8Tensor) and weight.held.value is None


def put_int8(layer: nn.Module, *, inputs: bool) -> None:
    """Have the layer's weight be one in eight bits, from its first use on; it stays the same object.

    Nothing changes while something else refers to its memory, such as a view: what is written through that has to
    count.
    """
    weight: Any = layer.weight
    if isinstance(weight, Int8Tensor):
        return
    if not is_on_disk(weight):
        numbers = numbers_of(weight)
        if has_other_users(numbers, weight):
            return
    entry = TensorEntry(_WHERE, "weight", weight.dtype, tuple(weight.shape), 0, weight.nbytes)
    rounded = Rounded(weight, inputs)
    fresh = Int8Tensor(entry, rounded, weight.dtype, weight.stride())  # type: ignore[arg-type]
    if swap(weight, as_parameter(fresh, weight.requires_grad)):
        rounded.exact = fresh  # which has become the weight that was


def take_int8(layer: nn.Module) -> None:
    """Make the layer's weight the exact one again; it stays the same object."""
    weight: Any = layer.weight
    if not isinstance(weight, Int8Tensor):
        return
    held = weight.held.value  # what somebody wrote to
    exact = weight.file.exact if held is None else held.detach()
    exact = as_parameter(exact, weight.requires_grad)
    if not swap(weight, exact):
        layer.weight = exact  # type: ignore[assignment]


def to_int8(weight: Tensor) -> Numbers:
    """A weight (C_out, ...) of any floating-point dtype, rounded to the nearest numbers in eight bits."""
    weight = weight.float()
    weight = weight.flatten(1) if weight.shape[2:].numel() == 1 else weight.contiguous()
    scales = weight.flatten(1).abs().amax(1).div_(_LARGEST).clamp_(min=_TINY)
    return Numbers((weight / _along(scales, weight)).round_().to(torch.int8), scales)


def linear(x: Tensor, weight: Int8Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., C_in) -> (..., C_out) in the dtype of x."""
    bias = None if bias is None else plain(bias)
    if not weight.file.inputs:
        rounded = weight.file.made().rounded(weight.shape, torch.float32)
        return F.linear(x.float(), rounded, None if bias is None else bias.float()).to(x.dtype)
    return _project(x, weight.file.packed(), bias)


def _project(x: Tensor, numbers: Numbers, bias: Tensor | None) -> Tensor:
    """Tokens (..., C_in) -> (..., C_out), each rounded by a scale of its own."""
    tokens = x.reshape(-1, x.shape[-1]).float()
    middle = (int8_inputs() + 1) // 2
    scales = tokens.abs().amax(-1, keepdim=True).div_(middle - 1).clamp_(min=_TINY)
    whole = torch.addcmul(_half(middle), tokens, scales.reciprocal()).to(torch.uint8)
    zeros = torch.zeros_like(numbers.scales, dtype=torch.int32)
    y = torch.ops.onednn.qlinear_pointwise(
        whole, 1.0, middle, numbers.bytes, numbers.scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    y = y.mul_(scales) if bias is None else torch.addcmul(bias.float(), y, scales, out=y)
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def convolve(x: Tensor, weight: Int8Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """`F.conv2d`: (B, C, H, W) -> (B, C_out, H', W') in the dtype of x, channels-last."""
    stride, padding, dilation, groups = geometry
    bias = None if bias is None else plain(bias)
    whole = weight.file.inputs and groups == 1
    if whole and weight.shape[2:].numel() == 1 and (*stride, *padding) == (1, 1, 0, 0):  # whose pixels are tokens
        return _project(x.permute(0, 2, 3, 1), weight.file.packed(), bias).permute(0, 3, 1, 2)
    if not whole or weight.shape[2:].numel() == 1:
        return F.conv2d(x, weight.rounded_weight(), bias, stride, padding, dilation, groups)
    return _filter(x, weight, bias, (list(stride), list(padding), list(dilation), groups))


def _filter(x: Tensor, weight: Int8Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
    """(B, C, H, W) -> (B, C_out, H', W'), each sample rounded by a scale and a zero of its own."""
    numbers, bias = weight.file.packed(), None if bias is None else bias.float()
    zeros = torch.zeros_like(numbers.scales, dtype=torch.int32)
    settings = bias, *geometry, 1.0, 0, torch.float32, "none", [], ""
    done = []
    for one in x.float().split(1):
        low, high = (float(end) for end in one.aminmax())
        scale = (max(high, 0.0) - min(low, 0.0)) / (int8_inputs() - 1) or 1.0  # of which rounding the zero takes one
        if not math.isfinite(scale):
            done.append(F.conv2d(one, weight.rounded_weight().float(), bias, *geometry))
            continue
        zero = round(-min(low, 0.0) / scale)
        whole = torch.add(_half(zero), one, alpha=1 / scale).to(torch.uint8, memory_format=torch.channels_last)
        done.append(
            torch.ops.onednn.qconv2d_pointwise(whole, scale, zero, numbers.bytes, numbers.scales, zeros, *settings)
        )
    return (done[0] if len(done) == 1 else torch.cat(done)).to(x.dtype)


def _along(scales: Tensor, weight: Tensor) -> Tensor:
    """Scales (C_out,) as a factor of a weight (C_out, ...)."""
    return scales.view(-1, *[1] * (weight.ndim - 1))


def _half(whole: int) -> Tensor:
    """What is added so that cutting digits off rounds to the nearest."""
    return torch.tensor(whole + 0.5)
