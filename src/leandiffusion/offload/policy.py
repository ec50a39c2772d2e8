"""How weights travel: what an engine is told, and the planner."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.malloc import LARGE, MEDIUM
from ..device.host import is_host
from .parts import PART_BYTES, in_parts
from .units import Unit

SLOTS = 2
"""Slots of the ring, each as large as the largest unit. Most units are far smaller, so that many lie ready ahead."""


@dataclass(frozen=True)
class Policy:
    """How weights travel.

    `device` computes. `granularity`: 'leaf', 'block' or 'component' travel at a time. `resident_fraction` of the
    bytes, from 0 to 1, stay on the device. `slots`: how many of the largest unit the ring has memory for, at least 1.
    Leaves that travel from disk come in parts of at most `part_bytes`, or of 32 rows where these take more.
    """

    device: torch.device
    granularity: str = "leaf"
    resident_fraction: float = 0.0
    slots: int = SLOTS
    part_bytes: int = PART_BYTES

    @property
    def from_disk(self) -> bool:
        """Whether the tier below is the checkpoint on disk, and not host memory."""
        return is_host(self.device)

    @property
    def looks_ahead(self) -> bool:
        """Whether what follows is brought meanwhile: not where whole components take turns."""
        return self.granularity != "component"

    @property
    def bytes_of_parts(self) -> int | None:
        """Bytes of the parts in which heavy layers travel; None where they travel whole. Accelerators have more memory,
        and a call takes time there."""
        return self.part_bytes if self.from_disk and self.granularity == "leaf" else None

    @property
    def gives_back(self) -> bool:
        """Whether freed memory is to go back to the system meanwhile, as far as it can: blocks of LARGE bytes, and
        holes between smaller ones before large units (`core.malloc`). Asking for it again costs up to a quarter of a
        step's time, so only where weights have no more memory than one unit takes."""
        return self.from_disk and self.looks_ahead and self.slots == 1

    @property
    def freed_from(self) -> int | None:
        """Bytes from which blocks go back when they are freed; None where glibc decides, as beside whole components,
        next to which they are little."""
        if not (self.from_disk and self.looks_ahead):
            return None
        return LARGE if self.gives_back else MEDIUM

    def divided(self, units: list[Unit]) -> list[Unit]:
        """The units as they travel, heavy ones in parts."""
        return units if self.bytes_of_parts is None else list(in_parts(units, self.bytes_of_parts))
