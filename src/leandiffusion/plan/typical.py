"""A profile for machines with too little memory to measure their speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..attention.openvino import LIBRARY_BYTES, is_faster
from ..core.notices import warn
from ..core.units import format_bytes
from ..device.host import is_host
from ..measure.environment import available_memory
from .floor import own_floor
from .measuring import MEMORY
from .points import Points
from .profile import DeviceProfile

_FLOPS, _BANDWIDTH, _OVERHEAD = 1e11, 1e10, 2e-6
"""Of two cores with AVX2 in float32, rounded, and what they read from memory: what tells settings apart is how the
numbers compare."""

_PRODUCTS: Points = ((1.0, _BANDWIDTH), (_FLOPS / _BANDWIDTH, _FLOPS / 2), (100.0, _FLOPS))


def too_little_memory(device: torch.device) -> bool:
    """Whether measuring would take more host memory than there is."""
    available = available_memory()
    needed = MEMORY + (LIBRARY_BYTES if is_faster(device, torch.float32) else 0)
    return is_host(device) and available is not None and available < needed


def typical_profile(
    device: torch.device, dtypes: Sequence[str], identity: Mapping[str, str], error: OSError | None = None
) -> DeviceProfile:
    """Rates of a small CPU, which computes half precision in float32, and the floor of this very process. Warns, of too
    little memory unless an `error` is why nothing could be measured."""
    left = f"{format_bytes(available_memory() or 0)} of memory are left, too little to measure how fast this machine is"
    without = f"how fast this machine is cannot be measured ({error}), which takes a temporary file of 72 MiB"
    warn(
        f"{left if error is None else without}: plans assume two typical cores. Peaks of memory are told as ever, "
        "seconds are not."
    )
    floor = own_floor(device).bytes  # with what computing brings, which is there from now on
    moves: Points = ((1e6, 4 * _BANDWIDTH), (3e7, 2 * _BANDWIDTH), (1e8, _BANDWIDTH))
    return DeviceProfile(
        taken_under=identity, date="", moves={"kept": moves, "fresh": moves}, overhead=_OVERHEAD,
        products={name: dict.fromkeys(("matmul", "conv", "attention"), _PRODUCTS) for name in dtypes},
        reorder=dict.fromkeys(dtypes, ((6e7, 0.04),)), fetch=dict.fromkeys(dtypes, _BANDWIDTH / 2),
        load=dict.fromkeys(dtypes, _BANDWIDTH / 5), floor=floor, computing=0,
    )  # fmt: skip
