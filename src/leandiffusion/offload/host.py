"""The host as the tier below an accelerator: weights packed into large blocks, pinned as far as memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from weakref import finalize

import torch
from torch import Tensor, nn

from ..device.names import HOST
from ..device.pinning import HostBlock, host_block
from ..measure.environment import available_memory
from .units import Unit, Weight

BLOCK_BYTES = 64 << 20
"""Size of the blocks. While packing, memory holds the weights and one block more, never two copies."""

PINNED_SHARE = 0.5
"""Of the memory that is free: pinned pages cannot be swapped out, so some is left to everybody else."""


Homes = dict[int, tuple[Weight, torch.device]]
"""By a master's id: the weight, and the device that it came from."""


class HostStore:
    """Masters of units in host memory, and embeddings beside them, which are looked up there.

    What lay elsewhere is noted in `homes`, for whoever brings it back. `close` gives every weight memory of its own.
    """

    def __init__(
        self, units: Iterable[Unit], looked_up: Iterable[nn.Embedding], device: torch.device, homes: Homes | None = None
    ) -> None:
        self._homes = {} if homes is None else homes
        self._units = list(units)
        self._blocks: list[HostBlock] = []
        finalize(self, _release_all, self._blocks)
        try:
            self._fill(looked_up, device, int((available_memory() or 0) * PINNED_SHARE))
        except BaseException:  # out of memory, Ctrl-C
            self.close()
            raise

    def _fill(self, looked_up: Iterable[nn.Embedding], device: torch.device, budget: int) -> None:
        """Pack all units, locking at most `budget` bytes."""
        for group in _groups(self._units, BLOCK_BYTES):
            size = sum(unit.nbytes for unit in group)
            block = host_block(size, device, budget)
            self._blocks.append(block)
            budget -= block.locked
            self._pack(group, block.memory)
        for embedding in looked_up:
            weight = Weight([(embedding._parameters, "weight")], embedding.weight)
            self._rehouse(weight, weight.on(HOST))

    def _pack(self, group: list[Unit], block: Tensor) -> None:
        start = 0
        for unit in group:
            unit.packed = block[start : start + unit.nbytes]
            for weight, begin in unit.places:
                view = weight.view(unit.packed, begin)
                weight.write_to(view)
                self._rehouse(weight, view.detach())
                weight.address = view.data_ptr()
            start += unit.nbytes

    def _rehouse(self, weight: Weight, tensor: Tensor) -> None:
        home = self._homes.pop(id(weight.master), (weight, weight.master.device))[1]
        weight.rehouse(tensor)
        self._homes[id(weight.master)] = weight, home

    def close(self) -> None:
        """Undo the packing, bit for bit; weights that were replaced meanwhile are left as they are."""
        for unit in self._units:
            for weight in unit.weights:
                if weight.address == weight.master.data_ptr():
                    weight.rehouse(weight.master.detach().clone(memory_format=torch.preserve_format))
                weight.address = None
            unit.packed = None
        _release_all(self._blocks)


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


def _release_all(blocks: list[HostBlock]) -> None:
    while blocks:
        blocks.pop().release()
