"""The host as the tier below an accelerator: weights packed into large blocks, pinned as far as memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..measure.environment import available_memory
from .units import Unit, Weight

BLOCK_BYTES = 64 << 20
"""Size of the blocks. While packing, memory holds the weights and one block more, never two copies."""

PINNED_SHARE = 0.5
"""Of the memory that is free: pinned pages can not be swapped out, so some is left to everybody else."""


class HostStore:
    """Masters of units in host memory, and embeddings beside them, which are looked up there.

    `close` gives every weight memory of its own on the device it came from.
    """

    def __init__(self, units: Iterable[Unit], looked_up: Iterable[nn.Embedding], device: torch.device) -> None:
        self._homes: list[tuple[Weight, torch.device]] = []
        self._units = list(units)
        self._pinned: list[Tensor] = []
        try:
            self._fill(looked_up, int((available_memory() or 0) * PINNED_SHARE) if device.type == "cuda" else 0)
        except BaseException:  # out of memory, Ctrl-C: nothing has moved then
            self.close()
            raise

    def _fill(self, looked_up: Iterable[nn.Embedding], budget: int) -> None:
        """Pack all units, pinning at most `budget` bytes."""
        for group in _groups(self._units, BLOCK_BYTES):
            size = sum(unit.nbytes for unit in group)
            block = torch.empty(size, dtype=torch.uint8)
            if 0 < size <= budget and _pin(block):
                self._pinned.append(block)
                budget -= size
            self._pack(group, block)
        for embedding in looked_up:
            weight = Weight([(embedding, "weight")], embedding.weight)
            self._homes.append((weight, embedding.weight.device))
            rehouse(weight, embedding.weight.detach().cpu())

    def _pack(self, group: list[Unit], block: Tensor) -> None:
        start = 0
        for unit in group:
            unit.packed = block[start : start + unit.nbytes]
            for weight, begin in unit.places:
                view = weight.view(unit.packed, begin)
                view.copy_(weight.master)
                self._homes.append((weight, weight.master.device))
                rehouse(weight, view.detach())
            start += unit.nbytes

    def close(self) -> None:
        """Undo the packing, bit for bit."""
        for weight, home in self._homes:
            packed = weight.master.untyped_storage().nbytes() != weight.master.nbytes
            rehouse(weight, weight.master.detach().to(home, copy=packed))
        for unit in self._units:
            unit.packed = None
        self._homes.clear()
        while self._pinned:
            _unpin(self._pinned.pop())


def rehouse(weight: Weight, tensor: Tensor) -> None:
    """Give the weight's numbers other memory. A parameter stays the same object, so that whoever holds it sees it."""
    if isinstance(weight.master, nn.Parameter):
        weight.master.data = tensor
    else:
        weight.master = tensor
        weight.show(tensor)


def _groups(units: list[Unit], limit: int) -> Iterator[list[Unit]]:
    """Consecutive units of together at most `limit` bytes; a larger one is alone."""
    group: list[Unit] = []
    for unit in units:
        if group and sum(u.nbytes for u in group) + unit.nbytes > limit:
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def _pin(block: Tensor) -> bool:
    """Pin the block's pages where they are: torch's own pinned memory rounds sizes up to powers of two."""
    runtime: Any = torch.cuda.cudart()
    return int(runtime.cudaHostRegister(block.data_ptr(), block.nbytes, 0)) == 0


def _unpin(block: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostUnregister(block.data_ptr())
