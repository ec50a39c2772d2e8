"""Memory of the accelerators that this process uses. Asking neither imports torch nor starts an accelerator."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.malloc import trim

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DeviceMemory:
    """Peak bytes on a device, such as 'cuda:0': in tensors (`allocated`), and taken from the driver for them
    (`reserved`)."""

    device: str
    allocated: int
    reserved: int


def peak_memory() -> list[DeviceMemory]:
    """Peaks of every accelerator this process has used; empty without one, and where torch does not count them."""
    accelerator = _started()
    if accelerator is None:
        return []
    torch, found = sys.modules["torch"], []
    for index in range(torch.accelerator.device_count()):
        try:
            reserved = torch.accelerator.max_memory_reserved(index)
            allocated = torch.accelerator.max_memory_allocated(index)
        except RuntimeError:  # an accelerator whose allocator keeps no such books
            return []
        if reserved:
            found.append(DeviceMemory(f"{accelerator.type}:{index}", allocated, reserved))
    return found


def reserved_memory(device: torch.device) -> int:
    """Bytes that torch holds of the device now, in tensors or to hand out; 0 where it does not count them."""
    if _started() is None:
        return 0
    try:
        return sys.modules["torch"].accelerator.memory_reserved(device)
    except RuntimeError:
        return 0


def free_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes (free, in all) of an accelerator, other processes counted; None where torch does not say. Starts it."""
    import torch

    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if ask is None else ask(device)


def reset_peaks() -> None:
    """Let the peaks of every accelerator start from what is held now."""
    if _started() is None:
        return
    accelerator = sys.modules["torch"].accelerator
    for index in range(accelerator.device_count()):
        try:
            accelerator.reset_peak_memory_stats(index)
        except RuntimeError:
            return


def release() -> None:
    """Give memory that was freed back to the system: glibc's and torch's allocators keep it otherwise."""
    accelerator = _started()
    if accelerator is not None:
        sys.modules["torch"].get_device_module(accelerator).empty_cache()
    trim()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: Python's MemoryError, or what torch's allocators raise on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)


def _started() -> Any:
    """torch's accelerator, if this process imported torch and started it."""
    if "torch" not in sys.modules:
        return None
    torch: Any = sys.modules["torch"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return None
    started = getattr(torch.get_device_module(accelerator), "is_initialized", None)
    return accelerator if started is None or started() else None
