"""The CPU among the devices, told without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.shapes import meta_is_host

if TYPE_CHECKING:
    import torch


def is_host(device: torch.device | str) -> bool:
    """Whether the device, or the one of that name, is the CPU, which computes in the memory where all else lies.

    While shapes are traced, so is the meta device if it stands for the CPU.
    """
    name = device if isinstance(device, str) else device.type
    return name == "cpu" or name.startswith("cpu:") or (name == "meta" and meta_is_host())
