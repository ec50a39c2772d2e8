"""Linear layers; and half precision on CPUs without instructions for it, which layers compute in float32.

What oneDNN multiplies fastest goes to its own operation: it takes weights as they lie or in its own order, and adds the
bias while it multiplies, where `F.linear` in half precision first makes a result of copies of the bias.

Torch would multiply such numbers one at a time. Here weights, and all that is between layers, stay in half precision. A
layer makes its input and its weights wide, a part at a time, and rounds what comes out, once. That is what
instructions for half precision do, which add up in float32 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.shapes import alike
from ..device.capabilities import (
    is_full_float32,
    is_unobserved,
    is_widened,
    onednn_computes,
    onednn_multiplies_faster,
)
from ..weights.int8 import is_int8
from ..weights.packed import is_packed, packed_weight
from ..weights.stored import plain

PART_BYTES, INPUT_BYTES = 16 << 20, 48 << 20
"""Weights in float32 at a time, and inputs: so many bytes."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., C_in), weight (C_out, C_in), bias (C_out,) -> (..., C_out), in the dtype of x.

    That may be float32 too where weights in half precision are made wide.
    """
    if is_for_onednn(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if not is_widened(weight):
        return F.linear(x, weight, bias)
    outs, ins = weight.shape
    bias = None if bias is None else bias.float()
    inputs = x.reshape(-1, ins)
    if not is_unobserved(x) or 4 * ins * max(len(inputs), outs) <= PART_BYTES:
        return F.linear(x.float(), weight.float(), bias).to(x.dtype)
    out = x.new_empty(len(inputs), outs)
    weight = weight.float() if 4 * weight.numel() <= PART_BYTES else weight  # once for all inputs
    tokens = max(INPUT_BYTES // (4 * ins), 1)
    for first in alike(range(0, len(inputs), tokens)):
        some = slice(first, first + tokens)
        _fill(out[some], inputs[some].float(), weight, bias)
    return out.view(*x.shape[:-1], outs)


def gated(x: Tensor, halves: Sequence[Tensor], bias: Tensor) -> Tensor:
    """The first half of the outputs (..., C_out / 2) times GELU of the second, for weights that are for oneDNN: each
    half is a product of its own, and GELU is taken of its sums before they are rounded."""
    multiply, shift = torch.ops.mkldnn._linear_pointwise, bias.chunk(2)
    gate = multiply(x, halves[1], shift[1], "gelu", [], "none")  # the exact one, by the error function
    return gate.mul_(multiply(x, halves[0], shift[0], "none", [], ""))


def is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether oneDNN's own operation multiplies x (..., C_in) with a weight (C_out, C_in) the fastest, and may.

    What does not fit together is left to torch, which says what does not. Of a bias oneDNN reads as many numbers as
    there are outputs, from its first one on, wherever the others are.
    """
    known = type(weight) in (Tensor, nn.Parameter) or is_packed(weight)
    if not is_unobserved(x) or not known or x.dtype != weight.dtype:
        return False
    if bias is not None:
        fits = type(bias) in (Tensor, nn.Parameter) and bias.dtype == x.dtype and bias.shape == weight.shape[:1]
        if not (fits and bias.is_contiguous()):
            return False
    faster = x.dtype != torch.float32 or (onednn_multiplies_faster() and is_full_float32(x.device, convolutions=False))
    fits = x.dim() > 1 and x.numel() > 0 and x.shape[-1] == weight.shape[-1]
    return faster and onednn_computes(x.dtype) and fits and weight.is_contiguous()  # it copies others number by number


def _fill(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The outputs of x in float32, with weights made wide in parts: of the outputs or, where they are fewer, of the
    inputs, since each product reads all of the other."""
    outs, ins = weight.shape
    step = max(PART_BYTES // (4 * min(outs, ins)), 1)
    if outs >= ins:
        for first in alike(range(0, outs, step)):
            part = slice(first, first + step)
            out[:, part] = F.linear(x, weight[part].float(), None if bias is None else bias[part])
        return
    total = x.new_zeros(len(x), outs) if bias is None else bias.repeat(len(x), 1)
    for first in alike(range(0, ins, step)):
        part = slice(first, first + step)
        total.addmm_(x[:, part], weight[:, part].float().t())
    out.copy_(total)


class Linear(nn.Linear):
    """A linear layer of a network. With `packs`, where oneDNN multiplies, its weight is kept in oneDNN's order from its
    first use on (`weights.packed`)."""

    packs: bool = False
    output_dim: ClassVar[int] = -1
    """Where the outputs are that each row of the weight gives (`offload.parts`)."""

    def forward(self, x: Tensor, gate: bool = False) -> Tensor:
        """(..., ins) -> (..., outs); with `gate`, where oneDNN multiplies and all of the weight is there, `gated`."""
        if is_int8(self.weight):
            return super().forward(x)
        bias = None if self.bias is None else plain(self.bias)
        gate = gate and bias is not None and len(self.weight) == self.out_features
        parts = self._packed(x, bias, 2 if gate else 1)
        if parts is None:
            weight = plain(self.weight)
            if not gate or not is_for_onednn(x, weight, bias):
                return linear(x, weight, bias)
            parts = weight.chunk(2)
        if gate:
            return gated(x, parts, bias)  # type: ignore[arg-type]
        return torch.ops.mkldnn._linear_pointwise(x, parts[0], bias, "none", [], "")

    def _packed(self, x: Tensor, bias: Tensor | None, parts: int) -> Sequence[Tensor] | None:
        """The weight in oneDNN's order, in so many parts; None where it is not to be, or may not be now."""
        if not self.packs or "forward" in vars(self) or not is_for_onednn(x, self.weight, bias):
            return None
        return packed_weight(self, (x.shape[:-1].numel(),), parts)
