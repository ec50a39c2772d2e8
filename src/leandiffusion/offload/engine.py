"""One engine for sequential and model offload: the tier below, the size of units and what stays are its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.load import origin_of
from ..weights.stored import StoredTensor, put_down
from .arena import Arena, OneAtATime, Ring
from .conveyor import Conveyor
from .host import HostStore
from .prefetch import Prefetcher, StreamPrefetcher, ThreadPrefetcher
from .units import Unit, cut, spread

SLOTS = 2
"""Slots of the ring, each as large as the largest unit. Most units are far smaller, so that many lie ready ahead."""


@dataclass(frozen=True)
class Policy:
    """How weights travel.

    `device` computes. `granularity`: 'leaf', 'block' or 'component' travel at a time. `resident_fraction` of the
    bytes, from 0 to 1, stay on the device. `slots`: how many of the largest unit the ring has memory for, at least 2.
    """

    device: torch.device
    granularity: str = "leaf"
    resident_fraction: float = 0.0
    slots: int = SLOTS


class Engine:
    """Puts networks' weights on the tier below `policy.device` and brings them when a module is about to run.

    Below a GPU that is host memory; below the CPU the checkpoint on disk, for weights that are there as they are in
    memory. `bring(module)` has to be called before a module of `modules` runs: it does not hook anything itself.
    `close` leaves every weight at its master: on the device where it was found, or on disk (`weights.stored`).
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], policy: Policy, *,
        prefetcher: Prefetcher | None = None, progress: Callable[[int], Any] = lambda count: None,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.kept: list[str] = []
        """Weights that were changed since they were loaded, or built by hand: they stay in memory."""

        device = policy.device
        if device.type == "cpu":
            for name, network in networks.items():
                self.kept += [f"{name}.{weight}" for weight in _put_down(network, progress)]
        pieces = cut(networks, policy.granularity)
        self.looked_up = pieces.looked_up
        self._unit_of = {module: unit for unit in pieces.units for module in unit.modules}
        self._inner = pieces.inner
        resident = spread(pieces.units, policy.resident_fraction)
        arena = _arena(policy, [unit for unit in pieces.units if unit not in resident])
        self._conveyor = Conveyor(
            pieces.units, Unit.read_into, arena,
            prefetcher or (StreamPrefetcher(device) if device.type == "cuda" else ThreadPrefetcher()),
            resident=resident, own_memory=lambda nbytes: torch.empty(nbytes, dtype=torch.uint8, device=device),
            ahead=policy.granularity != "component",
        )  # fmt: skip
        self._host = None if device.type == "cpu" else HostStore(pieces.units, pieces.looked_up, device)
        try:
            for weight in self._inner:
                weight.show(_copied(weight.master, device))
        except BaseException:  # out of memory: nothing has moved then
            self.close()
            raise

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose weights travel."""
        return list(self._unit_of)

    def bring(self, module: nn.Module) -> None:
        """Have the module's weights on the device. Raises what reading them raises; can then be called again.

        A copy of a module, which brought its own weights along, is none of the engine's: nothing happens.
        """
        unit = self._unit_of.get(module)
        if unit is not None:
            self._conveyor.arrive(unit)

    def rest(self) -> None:
        """Let all weights leave the device; the next `bring` fetches them again."""
        self._conveyor.clear()

    def close(self) -> None:
        """Let all weights leave and give host memory back its former order."""
        self._conveyor.close()
        for weight in self._inner:
            weight.show(weight.master)
        if self._host is not None:
            self._host.close()


def _put_down(network: nn.Module, progress: Callable[[int], Any]) -> list[str]:
    origin = origin_of(network)
    entries, stamps = ({}, {}) if origin is None else (origin.entries, origin.stamps)
    return put_down(network, entries, stamps, progress)


def _copied(master: Tensor, device: torch.device) -> Tensor:
    tensor = master.read() if isinstance(master, StoredTensor) else master.detach().to(device)
    return nn.Parameter(tensor.detach(), requires_grad=False) if isinstance(master, nn.Parameter) else tensor


def _arena(policy: Policy, travelling: list[Unit]) -> Arena:
    if policy.granularity == "component":
        return OneAtATime(policy.device)
    largest = max((unit.nbytes for unit in travelling), default=0)
    total = sum(unit.nbytes for unit in travelling)
    return Ring(min(policy.slots * largest, total), policy.device)
