"""3x3 convolutions of small feature maps as one matrix product: im2col (Chellapilla et al. 2006).

Every output reads nine pixels. Laid out side by side they are a row of a matrix, which is multiplied with the weights
as they lie in the checkpoint. A direct convolution first brings plain weights into an order of its own, beside
themselves and in each call: for a map of a few pixels that takes longer than computing, and twice the weights' memory.
"""

from __future__ import annotations

from torch import Tensor

from ..core.repeats import made_once
from ..core.shapes import is_channels_last
from ..device.capabilities import widened
from .linear import linear


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1) -> Tensor:
    """Convolution of padding 1: x (B, C, H, W), weight (C_out, C, 3, 3) -> (B, C_out, H', W'), channels-last.

    Beside its result it takes the pixels that are read, B * H' * W' * 9 * C numbers.
    """
    last = is_channels_last(weight)
    columns = made_once("columns", lambda: _columns(x, stride, channels_last=last))
    weight = weight.permute(0, 2, 3, 1) if last else weight
    y = linear(columns.flatten(0, 2), weight.reshape(weight.shape[0], -1), bias)
    return y.to(x.dtype).view(*columns.shape[:3], -1).permute(0, 3, 1, 2)


def _columns(x: Tensor, stride: int, *, channels_last: bool) -> Tensor:
    """x (B, C, H, W) -> (B, H', W', 9 * C): what each output reads, in the order of the weights' numbers."""
    B, C, H, W = x.shape
    padded = x.new_zeros(B, H + 2, W + 2, C, dtype=widened(x.dtype))
    padded[:, 1:-1, 1:-1].copy_(x.permute(0, 2, 3, 1))
    columns = padded.unfold(1, 3, stride).unfold(2, 3, stride)  # (B, H', W', C, 3, 3)
    columns = columns.permute(0, 1, 2, 4, 5, 3) if channels_last else columns
    return columns.reshape(*columns.shape[:3], 9 * C)


def outputs_of(x: Tensor, *, stride: int = 1) -> int:
    """Pixels of the results for all maps of x (B, C, H, W)."""
    B, _, H, W = x.shape
    return B * -(-H // stride) * -(-W // stride)
