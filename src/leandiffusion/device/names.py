"""Devices by name: the machine's default, and whether one that was asked for is there."""

from __future__ import annotations

from typing import Any

import torch

from ..core.errors import BackendUnavailable, ConfigError
from .host import is_host

HOST = torch.device("cpu")
"""Where weights lie when they lie nowhere else, and where files are read to."""


def default_device() -> torch.device:
    """The machine's accelerator if one runs, else the CPU. Without an index: torch then means the current one."""
    return torch.accelerator.current_accelerator(check_available=True) or HOST


def current_device() -> torch.device:
    """`default_device` with the index that is current now in this thread; the CPU has none."""
    device = default_device()
    return device if is_host(device) else torch.device(device.type, torch.accelerator.current_device_index())


def numbered(index: int) -> torch.device:
    """The accelerator of that number; where torch was built for none, CUDA's, which is not there."""
    accelerator = torch.accelerator.current_accelerator()
    return torch.device("cuda" if accelerator is None else accelerator.type, index)


def check_device(device: Any) -> torch.device:
    """`device` as torch names it; a number means an accelerator's. ConfigError for what is none, BackendUnavailable for
    one that this machine lacks."""
    try:
        number = isinstance(device, int) and not isinstance(device, bool)
        place = numbered(device) if number else torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"device={device!r} is not a device: use 'cpu', 'cuda', 'cuda:1' or 'mps'. ({reason})"
        ) from None
    if (reason := why_unusable(place)) is not None:
        raise BackendUnavailable(
            f"device {str(place)!r} cannot be used on this machine: {reason} There is {', '.join(device_names())}."
        )
    return place


def why_unusable(device: torch.device) -> str | None:
    """What torch says when memory on the device is asked for, as a sentence; None when it can be had."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")[:200] + "."
    return None


def device_names() -> list[str]:
    """Names of the devices that are there: 'cpu', 'cuda:0', 'cuda:1'."""
    accelerator = default_device()
    if is_host(accelerator):
        return [str(HOST)]
    return [str(HOST), *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
