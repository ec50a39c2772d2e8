"""Host memory that an accelerator copies from by itself: its pages are locked, and lost to everybody else.

torch's own pinned memory (`pin_memory=True`) comes from a cache that rounds every block up to a power of two and keeps
it when the tensor is gone: 65 MiB lock 128. So where the driver can lock memory that is already there (CUDA's and
ROCm's cudaHostRegister), blocks are allocated as usual and locked in place: the pages that they touch and nothing more,
given back by `release`. Elsewhere (Intel's GPUs) torch's way is the only one, and what it locks is counted.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kinds import kind_of


@dataclass(frozen=True, eq=False)
class HostBlock:
    """Bytes of host memory (nbytes,), and how many bytes are locked for them: 0 where they are not pinned."""

    memory: Tensor
    locked: int = 0
    registered: bool = False

    def release(self) -> None:
        """Unlock the pages. What torch's cache pinned unlocks itself when the last tensor in it is gone."""
        if self.registered:
            _runtime().cudaHostUnregister(self.memory.data_ptr())


def host_block(nbytes: int, device: torch.device, budget: int) -> HostBlock:
    """A block for copies to the device, pinned if the device can and no more than `budget` bytes are locked for it."""
    kind, locked = kind_of(device), locked_bytes(nbytes, device)
    if not 0 < locked <= budget:
        return HostBlock(_empty(nbytes))
    if kind.registers:
        block = _empty(nbytes)
        registered = int(_runtime().cudaHostRegister(block.data_ptr(), block.nbytes, 0)) == 0
        return HostBlock(block, locked if registered else 0, registered)
    try:
        return HostBlock(_empty(nbytes, pin_memory=True), locked)
    except RuntimeError:  # no more pages can be locked
        return HostBlock(_empty(nbytes))


def locked_bytes(nbytes: int, device: torch.device) -> int:
    """Bytes that pinning a block of `nbytes` for the device locks; 0 where the device pins nothing."""
    kind = kind_of(device)
    if not kind.pins or nbytes <= 0:
        return 0
    if kind.registers:
        return (-(-(nbytes - 1) // mmap.PAGESIZE) + 1) * mmap.PAGESIZE  # at most: a block may begin amid a page
    return 1 << (nbytes - 1).bit_length()


def staging_buffer(nbytes: int, device: torch.device) -> Tensor:
    """Bytes on the host through which others reach the device: torch's pinned memory where the device can pin, which
    locks the next power of two, and is kept by torch for the next such buffer."""
    return _empty(nbytes, pin_memory=kind_of(device).pins)


def _empty(nbytes: int, pin_memory: bool = False) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pin_memory)


def _runtime() -> Any:
    return torch.cuda.cudart()
