"""Convolutions, computed in the way that is fastest where they run."""

from __future__ import annotations

import platform
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.shapes import is_channels_last
from ..device.capabilities import (
    X86,
    fast_int8,
    is_full_float32,
    is_unobserved,
    is_widened,
    onednn_computes,
    onednn_multiplies_faster,
    widened,
)
from ..weights.int8 import is_int8
from ..weights.packed import is_packed, packed_weight, unpack
from ..weights.stored import plain
from . import im2col, winograd
from .linear import PART_BYTES, linear

FEWEST_CHANNELS = 96
FEWEST_TILES = 64
"""Below these the matrix products of Winograd's algorithm are too small to pay for its transforms."""

MOST_TRANSFORMED, OF_WEIGHTS = 0.0145, 1.2
"""Where oneDNN multiplies as fast as it convolves: what Winograd's algorithm transforms per product, up to which it is
faster than a direct convolution with packed weights. Of a weight so much as of so many tiles."""

FEWEST_NUMBERS = 1 << 14
"""Of a weight that is worth packing."""

MOST_OUTPUTS = 128
"""Pixels of small maps, all of a batch together, up to which one matrix product is faster than a direct convolution
with plain weights."""

LEAST_WEIGHT = 3 << 20
"""Bytes of a weight, in the dtype it is computed with, that takes time to bring into another order, as the smallest of
Stable Diffusion's inner levels."""

LARGE_WEIGHT, MOST_OUTPUTS_OF_LARGE = 32 << 20, 512
"""Such bytes from which on it is as fast up to so many, and saves twice the weight."""

MOST_THREADS = 16


class Conv2d(nn.Conv2d):
    """A convolution of UNet and VAE. On a CPU it is computed in the way that is fastest for what it is given.

    3x3 ones of large float32 maps go by Winograd's algorithm: the same numbers to float32's rounding. With `packs` the
    others keep their weights in oneDNN's order from their first use on (`weights.packed`). Without, those of small
    float32 maps are one matrix product. Weights in eight bits (`weights.int8`) have kernels of their own. All else
    is torch's own.
    """

    packs: bool = False
    output_dim: ClassVar[int] = -3
    """Where the outputs are that each row of the weight gives (`offload.parts`)."""

    def __init__(
        self, ins: int, outs: int, size: int = 3, *, stride: int = 1, padding: int = 1, bias: bool = True
    ) -> None:
        super().__init__(ins, outs, size, stride=stride, padding=padding, bias=bias)

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H', W'). With `double`, x is first enlarged to (2H, 2W) by nearest neighbour."""
        weight = self.weight if is_packed(self.weight) or is_int8(self.weight) else plain(self.weight)
        free, wide = _is_free(x, weight), is_widened(x)
        in_float32 = wide or x.dtype == torch.float32
        faster = not (is_int8(weight) and fast_int8())  # than the weight's own kernels
        if free and in_float32 and faster and _is_large(x, self, double=double) and pays():
            if is_packed(weight):  # for a smaller map
                unpack(self)
                weight = self.weight
            elif is_int8(weight):
                weight = weight.rounded_weight()
            return winograd.convolve(x, weight, self._plain_bias(), double=double)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if double else x
        if is_int8(weight):
            return self._conv_forward(x, weight, self.bias)
        packed = packed_weight(self, tuple(x.shape)) if free and weight is self.weight and may_pack(self) else None
        if packed is not None:
            geometry = self.padding, self.stride, self.dilation, self.groups
            return torch.ops.mkldnn._convolution_pointwise(x, packed[0], self.bias, *geometry, "none", [], "")
        if free and in_float32 and _is_small(x, self) and not is_packed(weight):
            return im2col.convolve(x, weight, self._plain_bias(), stride=self.stride[0])
        if wide:
            return self._widened(x, plain(weight))
        return self._conv_forward(x, weight, self.bias)

    def _widened(self, x: Tensor, weight: Tensor) -> Tensor:
        """In float32, with the weights of some outputs at a time: beside them are theirs in oneDNN's order.

        Made wide channels-last, as the maps are, they need no third copy.
        """
        bias = self._plain_bias()
        if self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):  # whose pixels are tokens
            return linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        order = torch.channels_last if is_channels_last(x) else torch.preserve_format
        count = -(-4 * weight.numel() // PART_BYTES) if is_unobserved(x) and self.groups == 1 else 1
        weights = weight.chunk(count)
        biases = [None] * len(weights) if bias is None else bias.float().chunk(count)
        x32 = x.float()
        parts = [
            self._conv_forward(x32, some.to(torch.float32, memory_format=order), shift).to(x.dtype)
            for some, shift in zip(weights, biases, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _plain_bias(self) -> Tensor | None:
        return None if self.bias is None else plain(self.bias)


def _is_large(x: Tensor, conv: Conv2d, *, double: bool) -> bool:
    """Whether Winograd's algorithm is for such a convolution, and pays for a map of this size."""
    keeps_size = conv.kernel_size == (3, 3) and conv.padding == conv.stride == conv.dilation == (1, 1)
    outs, ins = conv.weight.shape[:2]
    tiles = winograd.tiles_of(x.shape, double=double)
    if not keeps_size or min(outs, ins) < FEWEST_CHANNELS or tiles < FEWEST_TILES:
        return False
    direct_is_fast = onednn_multiplies_faster() and may_pack(conv)
    return not direct_is_fast or 1 / outs + 1 / ins + OF_WEIGHTS / tiles <= MOST_TRANSFORMED


def _is_small(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether im2col is for such a convolution, and pays for a map of this size."""
    square = conv.kernel_size == (3, 3) and conv.padding == conv.dilation == (1, 1) and conv.stride[0] == conv.stride[1]
    nbytes = conv.weight.numel() * widened(conv.weight.dtype).itemsize
    most = MOST_OUTPUTS if nbytes < LARGE_WEIGHT else MOST_OUTPUTS_OF_LARGE
    return square and nbytes >= LEAST_WEIGHT and im2col.outputs_of(x, stride=conv.stride[0]) <= most


def _is_free(x: Tensor, weight: Tensor) -> bool:
    """Whether it may be computed as one likes: in memory of the CPU, at full precision, with nobody recording it, and
    with weights that stay where they are."""
    return (
        is_unobserved(x)
        and x.dtype == weight.dtype
        and (type(weight) in (Tensor, nn.Parameter) or is_packed(weight) or is_int8(weight))
        and is_full_float32(x.device, convolutions=True)
    )


def may_pack(conv: Conv2d) -> bool:
    """Whether its weight is to be in oneDNN's order, is worth it, and stays where it is."""
    worth = conv.weight.numel() >= FEWEST_NUMBERS
    return conv.packs and worth and "forward" not in vars(conv) and onednn_computes(conv.weight.dtype)


def pays() -> bool:
    """Whether Winograd's algorithm is faster here than torch's convolution, which on x86 is always a direct one.

    A rule and not a measurement, so that a busy machine draws what an idle one draws. Torch's builds for Arm have a
    Winograd of their own; and with many threads each waits more for the others between the many small steps.
    """
    return platform.machine().lower() in X86 and torch.get_num_threads() <= MOST_THREADS
