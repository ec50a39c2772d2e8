"""What is known of each type of accelerator. Of one that is not listed nothing is taken for granted."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Kind:
    """`ordered`: its streams and events order copies and kernels as CUDA's do, and time them. `pins`: host memory can
    be locked for its copies. `registers`: also memory that was allocated before, where it is. `float64`: it has tensors
    of that dtype."""

    ordered: bool = False
    pins: bool = False
    registers: bool = False
    float64: bool = False


KINDS = {
    "cuda": Kind(
        ordered=True, pins=True, registers=True, float64=True
    ),  # AMD's GPUs too: torch for ROCm calls them cuda
    "xpu": Kind(ordered=True, pins=True, float64=True),
    "mps": Kind(),  # one queue; its events are torch.mps's own, and do not order torch.Streams
}


def kind_of(device: torch.device) -> Kind:
    """What is known of the device's type."""
    return KINDS.get(device.type, Kind())
