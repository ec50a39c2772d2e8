"""The 3x3 convolution of resnets and upsampling, computed in the way that is fastest where it runs."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device.capabilities import fewer_bits
from ..device.host import is_host
from . import winograd

FEWEST_CHANNELS = 96
FEWEST_TILES = 64
"""Below these the matrix products of Winograd's algorithm are too small to pay for its transforms."""

MOST_THREADS = 16

_X86 = ("x86_64", "amd64")
_FULL = ("none", "ieee")  # torch's names for float32 that is computed in float32


class Conv2d(nn.Conv2d):
    """3x3 convolution of stride 1 that keeps the size of a feature map.

    In float32 on a CPU it goes by Winograd's algorithm where that is faster: the same numbers to float32's rounding.
    Everything else is torch's own.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H, W). With `double`, x is first enlarged to (2H, 2W) by nearest neighbour."""
        if _plain_float32(x, self) and _large(x, self.weight, double=double) and pays():
            return winograd.convolve(x, self.weight, self.bias, double=double)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest") if double else x)


def _large(x: Tensor, weight: Tensor, *, double: bool) -> bool:
    return min(weight.shape[:2]) >= FEWEST_CHANNELS and winograd.tiles_of(x.shape, double=double) >= FEWEST_TILES


def _plain_float32(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether this is float32 in memory of the CPU, computed as such, with nobody recording the operations."""
    weight = conv.weight
    return (
        x.dtype == weight.dtype == torch.float32
        and is_host(x.device)
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and conv.padding == conv.stride == conv.dilation == (1, 1)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.compiler.is_compiling()
        and fewer_bits(x.device)[0][1].fp32_precision in _FULL
    )


def pays() -> bool:
    """Whether Winograd's algorithm is faster here than torch's convolution, which on x86 is always a direct one.

    A rule and not a measurement, so that a busy machine draws what an idle one draws. Torch's builds for Arm have a
    Winograd of their own; and with many threads each waits more for the others between the many small steps.
    """
    return platform.machine().lower() in _X86 and torch.get_num_threads() <= MOST_THREADS
