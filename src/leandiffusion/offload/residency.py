"""How many bytes of weights lie where, and how many travel: told from shapes, without moving anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .policy import Policy
from .units import Unit, cut, ring_size, spread, weight_bytes


@dataclass(frozen=True)
class Residency:
    """Bytes of the weights of a pipeline's networks.

    `kept` are on the device that computes as long as the pipeline is, `running` further ones by the name of the network
    that runs. `fetched` come from the tier below each time that a network runs, or with `stays` once for all of its
    runs in a row. `arrivals`: how many units these are, where they come each time; `ahead` says whether the largest
    have room to come while others compute. `part_bytes`: what heavy layers compute in parts of, if all of them do.
    `freed_from`: bytes from which freed blocks go back to the system meanwhile (`Policy.freed_from`). `below` are in
    host memory beneath an accelerator.
    """

    kept: int
    running: Mapping[str, int] = field(default_factory=dict)
    fetched: Mapping[str, int] = field(default_factory=dict)
    stays: bool = False
    arrivals: Mapping[str, int] = field(default_factory=dict)
    ahead: bool = True
    part_bytes: int | None = None
    freed_from: int | None = None
    below: int = 0

    def fetched_for(self, names: Iterable[str]) -> int:
        """Bytes that come for the networks of those names."""
        return sum(self.fetched.get(name, 0) for name in names)

    def arriving(self, names: Iterable[str]) -> tuple[int, int]:
        """Units, and their bytes, that come each time that the networks of those names run."""
        if self.stays:
            return 0, 0
        return sum(self.arrivals.get(name, 0) for name in names), self.fetched_for(names)

    def while_running(self, names: Iterable[str]) -> int:
        """Bytes on the device while the networks of those names run, one after the other."""
        return self.kept + max((self.running.get(name, 0) for name in names), default=0)


def all_resident(networks: Mapping[str, nn.Module]) -> Residency:
    """All weights are on the device."""
    return Residency(sum(weight_bytes(network) for network in networks.values()))


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """A unit, or what its weights take where they stay: the component that it is of, the network whose ring it goes
    through, bytes of its weights, of the memory that it takes, and of that of each part that it travels in."""

    component: str
    network: str
    weights: int
    nbytes: int
    parts: tuple[int, ...]


class Pieces:
    """Networks, which may be without numbers, and what they are cut into, as long as nothing in them is replaced."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = networks
        self._cuts: dict[Any, tuple[list[Piece], int, int]] = {}

    def cut(self, policy: Policy) -> tuple[list[Piece], int, int]:
        """The units, and bytes of weights that stay in any case and of those that are looked up."""
        key = policy.granularity, policy.bytes_of_parts
        if key not in self._cuts:
            whole = cut(self.networks, policy.granularity)
            pieces = [self._piece(unit, policy) for unit in whole.units]
            inner = sum(weight.master.nbytes for weight in whole.inner)
            self._cuts[key] = pieces, inner, sum(map(weight_bytes, whole.looked_up))
        return self._cuts[key]

    def _piece(self, unit: Unit, policy: Policy) -> Piece:
        component = next(name for name in self.networks if unit.name == name or unit.name.startswith(f"{name}."))
        weights, parts = sum(weight.master.nbytes for weight in unit.weights), policy.divided([unit])
        return Piece(component, unit.network, weights, unit.nbytes, tuple(part.nbytes for part in parts))


def residency(networks: Pieces, policy: Policy) -> Residency:
    """Weights that travel as `policy` says, as `offload.engine` cuts and moves them."""
    pieces, inner, looked_up = networks.cut(policy)
    resident = spread(pieces, policy.resident_fraction)
    kept = inner + sum(piece.weights for piece in resident)
    by_network: dict[str, list[int]] = {name: [] for name in networks.networks}
    by_ring: dict[str, list[int]] = {}
    ring_of: dict[str, str] = {}
    for piece in pieces:
        if piece not in resident:
            by_network[piece.component] += piece.parts
            by_ring.setdefault(piece.network, []).extend(piece.parts)
            ring_of[piece.component] = piece.network
    fetched = {name: sum(parts) for name, parts in by_network.items()}
    below = 0 if policy.from_disk else sum(fetched.values()) + looked_up
    if policy.granularity == "component":
        return Residency(kept, fetched, fetched, stays=True, below=below)
    rings = {name: ring_size(by_ring[ring], policy.slots) for name, ring in ring_of.items()}
    limit = policy.bytes_of_parts
    whole = limit is not None and any(piece.nbytes > limit for piece in resident)  # and such set the peak
    return Residency(
        kept, rings, fetched, arrivals={name: len(parts) for name, parts in by_network.items()},
        ahead=policy.slots > 1, part_bytes=None if whole else limit, freed_from=policy.freed_from, below=below,
    )  # fmt: skip
