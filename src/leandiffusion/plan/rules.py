"""Shapes, strides and dtypes of what operations give, for the meta device.

torch has rules of its own for all of them. Many are in Python: they take hundreds of microseconds, and the first one
that runs imports symbolic algebra, which takes 2 seconds and 70 MB of the memory that is being planned. These are the
ones that drawing needs; whatever is not here is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.shapes import is_channels_last

_aten = torch.ops.aten

RULES: dict[Any, Callable[..., Any]] = {}
"""Operation -> what gives its result on the meta device, called as the operation is."""


def rule(*operations: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the rule of these operations."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _like(x: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Dense, in the order of dimensions that x has in memory."""
    shape = x.shape if shape is None else shape
    dtype = x.dtype if dtype is None else dtype
    if x.is_contiguous():
        return _empty(shape, dtype)
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda d: (strides[d], -d))  # among ties the last one varies fastest
    return _in_order(shape, order, dtype)


def _in_order(shape: Sequence[int], order: Sequence[int], dtype: torch.dtype) -> Tensor:
    strides, step = [0] * len(shape), 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return torch.empty_strided(tuple(shape), strides, dtype=dtype, device="meta")


def _maps(shape: Sequence[int], dtype: torch.dtype, *, last: bool) -> Tensor:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=form)


# -- element by element ----------------------------------------------------------------------------------------------


@rule(
    _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.addcmul.default,
)  # fmt: skip
def _pointwise(x: Tensor, *others: Any, **_: Any) -> Tensor:
    shape, dtype, whole = x.shape, x.dtype, x
    for other in others:
        if not isinstance(other, Tensor):
            if isinstance(other, float) and not dtype.is_floating_point:
                dtype = torch.get_default_dtype()
            continue
        if other.dtype != dtype:
            dtype = torch.result_type(x, other)
        if other.shape != shape:
            joined = _broadcast(shape, other.shape)
            whole = whole if joined == whole.shape else other
            shape = joined
    return _like(whole, dtype=dtype) if whole.shape == shape else _empty(shape, dtype)


def _broadcast(one: Sequence[int], other: Sequence[int]) -> torch.Size:
    """torch's own function imports what this file is there to avoid."""
    if len(one) < len(other):
        one, other = other, one
    padded = [1] * (len(one) - len(other)) + list(other)
    return torch.Size(n if m == 1 else m for n, m in zip(one, padded, strict=True))


@rule(_aten.silu.default, _aten.gelu.default, _aten.sigmoid.default, _aten.rsqrt.default, _aten.empty_like.default)
def _unary(x: Tensor, **options: Any) -> Tensor:
    if x.is_floating_point():
        return _like(x)
    return _empty(x.shape, torch.get_default_dtype())


@rule(_aten.exp.default, _aten.cos.default, _aten.sin.default)
def _function(x: Tensor) -> Tensor:
    return _like(x, dtype=x.dtype if x.is_floating_point() else torch.get_default_dtype())


@rule(_aten.pow.Tensor_Scalar)
def _pow(x: Tensor, _: float) -> Tensor:
    return _like(x)


@rule(_aten.eq.Scalar)
def _compare(x: Tensor, _: Any) -> Tensor:
    return _like(x, dtype=torch.bool)


# -- products --------------------------------------------------------------------------------------------------------


@rule(_aten.mm.default)
def _mm(x: Tensor, y: Tensor) -> Tensor:
    return _empty((x.shape[0], y.shape[1]), x.dtype)


@rule(_aten.bmm.default)
def _bmm(x: Tensor, y: Tensor) -> Tensor:
    return _empty((x.shape[0], x.shape[1], y.shape[2]), x.dtype)


@rule(_aten.addmm.default)
def _addmm(_: Tensor, x: Tensor, y: Tensor, **__: Any) -> Tensor:
    return _mm(x, y)


@rule(torch.ops.mkldnn._linear_pointwise.default)
def _linear(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _empty((*x.shape[:-1], weight.shape[0]), x.dtype)


@rule(_aten._scaled_dot_product_flash_attention_for_cpu.default)
def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    B, nh, T = q.shape[:3]
    out = _empty((B, T, nh, v.shape[-1]), q.dtype).transpose(1, 2)
    return out, _empty((B, T, nh), torch.float32).transpose(1, 2)


@rule(_aten.convolution.default)
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], *_: Any,
) -> Tensor:  # fmt: skip
    last = is_channels_last(x) or is_channels_last(weight)
    return _maps(_convolved(x, weight, stride, padding, dilation), x.dtype, last=last)


@rule(torch.ops.mkldnn._convolution_pointwise.default)
def _packed_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int], *_: Any,
) -> Tensor:  # fmt: skip
    return _maps(_convolved(x, weight, stride, padding, dilation), x.dtype, last=True)


def _convolved(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Shape of the result."""
    sides = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    )
    return (x.shape[0], weight.shape[0], *sides)


# -- norms and sums --------------------------------------------------------------------------------------------------


@rule(_aten.native_group_norm.default)
def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, ...]:
    out = _maps(x.shape, x.dtype, last=True) if is_channels_last(x) else _empty(x.shape, x.dtype)
    return out, _empty((N, group), torch.float32), _empty((N, group), torch.float32)


@rule(_aten.native_layer_norm.default)
def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    sums = x.shape[: x.dim() - len(shape)] + (1,) * len(shape)
    return _empty(x.shape, x.dtype), _empty(sums, torch.float32), _empty(sums, torch.float32)


@rule(_aten._softmax.default)
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return _like(x)


@rule(_aten.mean.dim, _aten.sum.dim_IntList)
def _sum(x: Tensor, dim: Sequence[int], keepdim: bool = False, **_: Any) -> Tensor:
    gone = {d % x.dim() for d in dim}
    return _empty([1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone], x.dtype)


@rule(_aten.argmax.default)
def _argmax(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    shape = list(x.shape)
    shape[dim : dim + 1 or None] = [1] if keepdim else []
    return _empty(shape, torch.int64)


# -- copies ----------------------------------------------------------------------------------------------------------


@rule(_aten.cat.default)
def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    parts = [t for t in tensors if t.dim() > 1 or t.numel()]
    shape = list(parts[0].shape)
    shape[dim] = sum(t.shape[dim] for t in parts)
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return _maps(shape, dtype, last=True) if all(map(is_channels_last, parts)) else _empty(shape, dtype)


@rule(_aten.clone.default)
def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    if memory_format in (None, torch.preserve_format):
        return _like(x)
    return torch.empty(x.shape, dtype=x.dtype, device="meta", memory_format=memory_format)


@rule(_aten._to_copy.default)
def _to_copy(x: Tensor, *, dtype: torch.dtype | None = None, memory_format: Any = None, **_: Any) -> Tensor:
    if memory_format in (None, torch.preserve_format):
        return _like(x, dtype=dtype)
    return torch.empty(x.shape, dtype=dtype or x.dtype, device="meta", memory_format=memory_format)


@rule(_aten.repeat.default)
def _repeat(x: Tensor, counts: Sequence[int]) -> Tensor:
    shape = [1] * (len(counts) - x.dim()) + list(x.shape)
    return _empty([n * count for n, count in zip(shape, counts, strict=True)], x.dtype)


@rule(_aten.upsample_nearest2d.default)
def _upsample(x: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return _maps((*x.shape[:2], *size), x.dtype, last=is_channels_last(x))


@rule(_aten.constant_pad_nd.default)
def _pad(x: Tensor, pad: Sequence[int], *_: Any) -> Tensor:
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    return _maps(shape, x.dtype, last=is_channels_last(x))


@rule(_aten.embedding.default)
def _embedding(weight: Tensor, ids: Tensor, *_: Any) -> Tensor:
    return _empty((*ids.shape, weight.shape[1]), weight.dtype)


@rule(_aten.index.Tensor)
def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    shape: Sequence[int] = ()
    for index in indices:
        if index is None:
            return _aten.index.Tensor(x, indices)
        shape = _broadcast(shape, index.shape)
    return _empty((*shape, *x.shape[len(indices) :]), x.dtype)


@rule(_aten.new_zeros.default)
def _new(x: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _empty(shape, dtype or x.dtype)


@rule(_aten.arange.default)
def _arange(end: int, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
    return torch.arange(end, dtype=dtype) if device != torch.device("meta") else _empty((end,), dtype or torch.int64)
