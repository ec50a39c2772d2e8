"""What each operation computes, moves and takes for itself while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.openvino import KEYS, QUERIES
from ..core.shapes import is_channels_last
from .rules import RULES

_aten = torch.ops.aten


class Kernel(NamedTuple):
    """One operation: its kind as in `work.Ops`, floating-point operations, bytes read and written, bytes that it takes
    beside its inputs and results while it runs, and those of weights that it brings into an order of its own."""

    kind: str
    flops: float
    nbytes: float
    workspace: int
    reordered: int = 0


_VIEWS = (_aten._unsafe_view.default, _aten._reshape_alias.default, _aten.lift_fresh.default)
"""Those that do not declare that they are."""

_UNFILLED = (
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
)  # fmt: skip

_OVERWRITING = (_aten.copy_.default, _aten.fill_.Scalar, _aten.zero_.default)

_BY_RESULT = {
    _aten.new_zeros.default: 1, _aten.zeros_like.default: 1, _aten.full_like.default: 1, _aten.embedding.default: 2,
}  # fmt: skip
"""How often the result's bytes are moved, where inputs say what it is like, or are read in parts."""

_FURTHER = {_aten.native_group_norm.default: 1, _aten.native_layer_norm.default: 1}
"""How often what goes in is read again: norms look at it before they change it."""

Count = Callable[[Any, Any], tuple[str, float, int, int]]
"""(arguments, result) -> kind, floating-point operations, workspace, weights brought into another order."""


class Gives(Enum):
    """What an operation gives: its input's memory in another shape, its first argument or `out`, written to, or memory
    of its own."""

    VIEW = 0
    INPUT = 1
    OUT = 2
    OWN = 3


class Operation(NamedTuple):
    """What is known of an operation whatever it is called with.

    `run` gives its result on the meta device; `moves`: whether numbers are read or written; `overwrites`: whether what
    it writes to is not read; `by_result`: how often the result's bytes are moved where no others are, else 0;
    `further`: how often its first argument is read again; `count`: None for kind 'other'.
    """

    gives: Gives
    run: Callable[..., Any]
    moves: bool
    overwrites: bool
    by_result: int
    further: int
    count: Count | None


def operation_of(func: Any) -> Operation:
    """The operation that a dispatch mode calls `func`."""
    found = _operations.get(func)
    if found is None:
        gives = _gives(func)
        overwrites = gives is Gives.OUT or func in _OVERWRITING
        run, by_result = RULES.get(func) or func, _BY_RESULT.get(func, 0)
        found = Operation(
            gives, run, func not in _UNFILLED, overwrites, by_result, _FURTHER.get(func, 0), _COUNTS.get(func)
        )
        _operations[func] = found
    return found


_operations: dict[Any, Operation] = {}


def _gives(func: Any) -> Gives:
    returns, arguments = func._schema.returns, func._schema.arguments
    views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if views or func in _VIEWS:
        return Gives.VIEW
    if any(argument.name == "out" and argument.is_out for argument in arguments):
        return Gives.OUT
    first = arguments[0].alias_info if arguments else None
    return Gives.INPUT if first is not None and first.is_write else Gives.OWN


def kernel_of(operation: Operation, args: Any, kwargs: Any, result: Any, *, on_host: bool) -> Kernel:
    """The operation on these arguments, which gave `result`."""
    if operation.by_result:
        return Kernel("other", 0.0, operation.by_result * result.nbytes, 0)
    nbytes = _bytes(args)
    if kwargs:
        nbytes += _bytes(kwargs.values())
    if not operation.overwrites:  # else it is among the arguments
        nbytes += result.nbytes if isinstance(result, Tensor) else _bytes(result)
    if operation.further:
        nbytes += operation.further * args[0].nbytes
    if operation.count is None:
        return Kernel("other", 0.0, nbytes, 0)
    kind, flops, workspace, reordered = operation.count(args, result)
    return Kernel(kind, flops, nbytes, *((workspace, reordered) if on_host else (0, 0)))


def _bytes(values: Iterable[Any]) -> int:
    """Of all tensors among the values."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.nbytes
        elif isinstance(value, list | tuple):
            total += _bytes(value)
    return total


def _convolution(args: Any, out: Tensor) -> tuple[str, float, int, int]:
    """torch's own, by oneDNN, which computes larger than 1x1 ones with weights in blocks of channels: plain weights it
    brings into that order in each call. torch makes maps and weights channels-last first, if either is; if neither is,
    oneDNN computes on maps in blocks too, from a copy of what goes in to one of the result, before that has memory.
    1x1 ones need no room for that, but time all the same."""
    x, weight = args[:2]
    of_maps, of_weights = is_channels_last(x), is_channels_last(weight)
    copied = 0 if of_maps else x.nbytes
    if weight.shape[2:].numel() == 1:
        workspace = copied if of_weights else 0
    elif of_maps or of_weights:
        workspace = copied + weight.nbytes * (1 if of_weights else 2)
    else:
        workspace = max(x.nbytes + weight.nbytes, out.nbytes)
    return "conv", 2.0 * out.numel() * weight[0].numel(), workspace, weight.nbytes


def _packed_convolution(args: Any, out: Tensor) -> tuple[str, float, int, int]:
    """Of channels-last maps, which others are made first. In the first step the packed weights are made while the plain
    ones are still there."""
    x, weight = args[:2]
    copied = 0 if is_channels_last(x) else x.nbytes
    return "conv", 2.0 * out.numel() * weight[0].numel(), copied + weight.nbytes, 0


def _attention(args: Any, result: Any) -> tuple[str, float, int, int]:
    """Long ones by themselves: they may have a kernel of their own."""
    q, k = args[:2]
    kind = "long attention" if q.shape[2] >= QUERIES and k.shape[2] >= KEYS else "attention"
    return kind, 4.0 * q.numel() * k.shape[2], 0, 0


def _layer(x: Tensor, weight: Tensor) -> tuple[str, float, int, int]:
    """Of a linear layer."""
    return "matmul", 2.0 * x.numel() * weight.shape[0], 0, 0


def _product(x: Tensor, y: Tensor) -> tuple[str, float, int, int]:
    """Of matrices."""
    return "matmul", 2.0 * x.numel() * y.shape[-1], 0, 0


_COUNTS: dict[Any, Count] = {
    _aten.convolution.default: _convolution,
    torch.ops.mkldnn._convolution_pointwise.default: _packed_convolution,
    torch.ops.mkldnn._linear_pointwise.default: lambda args, out: _layer(args[0], args[1]),
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    _aten.mm.default: lambda args, out: _product(args[0], args[1]),
    _aten.bmm.default: lambda args, out: _product(args[0], args[1]),
    _aten.addmm.default: lambda args, out: _product(args[1], args[2]),
}
