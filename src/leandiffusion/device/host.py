"""The CPU among the devices, told without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_host(device: torch.device | str) -> bool:
    """Whether the device, or the one of that name, is the CPU, which computes in the memory where all else lies."""
    name = device if isinstance(device, str) else device.type
    return name == "cpu" or name.startswith("cpu:")
