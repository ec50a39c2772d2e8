"""How much memory drawing may take: as people say it, or what is free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from ..core.errors import ConfigError
from ..core.notices import warn
from ..core.units import format_bytes, parse_bytes
from ..device.host import is_host
from ..device.memory import free_memory
from ..device.names import HOST
from ..measure.environment import available_memory
from ..measure.memory import rss

MARGIN = 0.05
"""Of what is free, which is left to others where no budget was given."""

RESERVE, ERROR = 40 << 20, 0.03
"""Bytes, and a part of the budget, by which a call may take more than predicted. Of the 53 combinations of
`benchmarks/plan` on a CPU three took more than that: 253 and 195 MiB beyond 3.6 GiB with model offload, and 114 MiB
beyond 669 in a decode of four pictures at once by a small model. In the middle they took 50 MiB more than predicted."""


@dataclass(frozen=True)
class Budget:
    """Bytes that drawing may take: `device` where it computes, `host` beside an accelerator; None where unlimited.

    On the CPU it is the whole process, Python and libraries included. `given` says whether a user named it, `reserves`
    whether room is left in it for errors of the prediction.
    """

    device: int | None
    host: int | None = None
    given: bool = True
    reserves: bool = False

    @classmethod
    def of(cls, memory: Any, device: torch.device) -> Self:
        """`memory` as users say it: None for what is free now, a size ('2GiB', bytes) of the device, or sizes by type
        of device ({'cuda': '6GiB', 'cpu': '8GiB'}). It reserves room for errors.

        ConfigError for what is no size, zero, or for a device that does not compute here; a warning for a size beyond
        what the device has.
        """
        free, host = free_now(device), None if is_host(device) else free_now(HOST)
        if memory is None:
            return cls(_less_margin(free), _less_margin(host), given=False, reserves=True)
        sizes = sizes_of(memory, device)
        own = sizes.get(device.type, _less_margin(free))
        if own is not None and (all_ := in_all(device)) is not None and own > all_:
            warn(f"memory={format_bytes(own)} is more than {device.type} has: {format_bytes(all_)} in all.")
        return cls(own, None if is_host(device) else sizes.get(HOST.type, _less_margin(host)), reserves=True)

    def fits(self, device_bytes: int, host_bytes: int) -> bool:
        """Whether what is predicted to take so much is within it."""
        pairs = ((self.device, device_bytes), (self.host, host_bytes))
        return all(limit is None or self.to_ask_for(predicted) <= limit for limit, predicted in pairs)

    def to_ask_for(self, predicted: int) -> int:
        """Bytes of the smallest budget like this one for what is predicted to take so much."""
        return math.ceil((predicted + RESERVE) / (1 - ERROR)) if self.reserves and predicted else predicted

    def __str__(self) -> str:
        told = "unlimited" if self.device is None else format_bytes(self.device)
        told += "" if self.host is None else f" and {format_bytes(self.host)} of host memory"
        return told if self.given else f"{told} (what is free, less {MARGIN:.0%})"


def sizes_of(memory: Any, device: torch.device) -> dict[str, int]:
    """Bytes by type of device of what a user named as memory for drawing on `device`. ConfigError as `Budget.of`."""
    named = dict(memory) if isinstance(memory, Mapping) else {device.type: memory}
    if not named:
        raise ConfigError("memory={}: name a size for each device, such as {'cuda': '6GiB', 'cpu': '8GiB'}.")
    sizes = {name: _size(name, value) for name, value in named.items()}
    known = sorted({device.type, HOST.type})
    for name in sizes:
        if name not in known:
            raise ConfigError(
                f"memory names {name!r}, and drawing takes memory of {' and '.join(known)}: name these, or another "
                "device=… to draw on."
            )
    return sizes


def free_now(device: torch.device) -> int | None:
    """Bytes that this process may have of the device's memory, what it already has included; None where unknown."""
    if is_host(device):
        available = available_memory()
        return None if available is None else available + (rss() or 0)
    told = free_memory(device)
    return None if told is None else told[0]


def in_all(device: torch.device) -> int | None:
    """Bytes of memory that the device has; None where unknown."""
    if not is_host(device):
        told = free_memory(device)
        return None if told is None else told[1]
    from ..measure.environment import total_memory

    return total_memory()


def _less_margin(count: int | None) -> int | None:
    return None if count is None else int(count * (1 - MARGIN))


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f"memory of {name}: {value!r} is not a size: write '2GiB', '512MB', or bytes as a number.")
    count = parse_bytes(value)
    if count == 0:
        raise ConfigError(f"memory of {name}: {value!r} leaves nothing to draw with. Leave it out for what is free.")
    return count
