"""Memory on the compute device that travelling weights are put into."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..core.malloc import trim
from .units import ALIGNMENT


class Arena(Protocol):
    """Gives memory out and takes it back in the same order."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, whether out or not."""
        ...

    def take(self, nbytes: int) -> Tensor | None:
        """A flat tensor of that many bytes; None when something has to be given back first."""
        ...

    def give(self) -> None:
        """Take back the memory that was given out first of what is still out."""
        ...

    def reset(self) -> None:
        """Take back everything."""
        ...

    def turn_to(self, network: str) -> None:
        """Give memory to units of that network from here on. Everything was given back."""
        ...


class Ring:
    """A fixed block of bytes given out in turn, round and round: as many slots as units happen to fit.

    One slot of the largest unit is enough to work, with two the next of them comes while one computes; what is smaller
    leaves room to look further ahead.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._out: deque[tuple[int, int]] = deque()  # [begin, end) of what is out, oldest first

    @property
    def nbytes(self) -> int:
        """Bytes that the ring holds, whether out or not."""
        return self._memory.nbytes

    def take(self, nbytes: int) -> Tensor | None:
        size = max(-(-nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        begin = self._place(size)
        if begin is None:
            return None
        self._out.append((begin, begin + size))
        return self._memory[begin : begin + nbytes]

    def _place(self, size: int) -> int | None:
        if not self._out:
            return 0 if size <= self.nbytes else None
        oldest, newest = self._out[0][0], self._out[-1][1]
        if newest > oldest:  # free: after the newest, then before the oldest
            if newest + size <= self.nbytes:
                return newest
            return 0 if size <= oldest else None
        return newest if newest + size <= oldest else None

    def give(self) -> None:
        if self._out:
            self._out.popleft()

    def reset(self) -> None:
        self._out.clear()

    def turn_to(self, network: str) -> None:
        return None


class RingOfEach(Ring):
    """A ring for every network, of which one at a time is in memory: while the VAE decodes, slots for the UNet's
    largest layer would be more than all that it needs."""

    def __init__(self, sizes: Mapping[str, int], device: torch.device) -> None:
        """`sizes`: bytes of the rings by `Unit.network`."""
        super().__init__(0, device)
        self._sizes = sizes

    def turn_to(self, network: str) -> None:
        size, device = self._sizes[network], self._memory.device
        if size != self.nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8, device=device)  # first, so that never both are there
            trim()  # the next network's blocks have other sizes than the holes that this one's leave
            self._memory = torch.empty(size, dtype=torch.uint8, device=device)


class OneAtATime:
    """Fresh memory for one unit, given back to the system when the unit leaves: for whole components."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out: int | None = None  # bytes

    @property
    def nbytes(self) -> int:
        return self._out or 0

    def take(self, nbytes: int) -> Tensor | None:
        if self._out is not None:
            return None
        memory = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        self._out = nbytes
        return memory

    def give(self) -> None:
        self._out = None

    def reset(self) -> None:
        self._out = None

    def turn_to(self, network: str) -> None:
        trim()  # the next network's blocks have other sizes than the holes that this one's leave
