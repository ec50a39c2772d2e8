"""How many bytes of weights lie where, and how many travel: told from shapes, without moving anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from .policy import Policy
from .units import Unit, cut, ring_sizes, spread, weight_bytes


@dataclass(frozen=True)
class Residency:
    """Bytes of the weights of a pipeline's networks.

    `kept` are on the device that computes as long as the pipeline is, `running` further ones by the name of the network
    that runs. `fetched` come from the tier below each time that a network runs, or with `stays` once for all of its
    runs in a row. `arrivals`: how many units these are, where they come each time; `ahead` says whether the largest
    have room to come while others compute. `part_bytes`: what heavy layers compute in parts of, if all of them do.
    `gives_back`: whether freed memory goes back to the system meanwhile. `below` are in host memory beneath an
    accelerator.
    """

    kept: int
    running: Mapping[str, int] = field(default_factory=dict)
    fetched: Mapping[str, int] = field(default_factory=dict)
    stays: bool = False
    arrivals: Mapping[str, int] = field(default_factory=dict)
    ahead: bool = True
    part_bytes: int | None = None
    gives_back: bool = False
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


def residency(networks: Mapping[str, nn.Module], policy: Policy) -> Residency:
    """Weights that travel as `policy` says, as `offload.engine` cuts and moves them. The networks may have none."""
    pieces = cut(networks, policy.granularity)
    resident = spread(pieces.units, policy.resident_fraction)
    travelling = policy.divided([unit for unit in pieces.units if unit not in resident])
    staying = [*pieces.inner, *(weight for unit in resident for weight in unit.weights)]
    kept = sum(weight.master.nbytes for weight in staying)
    by_network = {name: [unit for unit in travelling if _belongs(unit, name)] for name in networks}
    fetched = {name: sum(unit.nbytes for unit in units) for name, units in by_network.items()}
    below = 0 if policy.from_disk else sum(fetched.values()) + sum(weight_bytes(each) for each in pieces.looked_up)
    if policy.granularity == "component":
        return Residency(kept, fetched, fetched, stays=True, below=below)
    sizes, arrivals = ring_sizes(travelling, policy.slots), {name: len(units) for name, units in by_network.items()}
    rings = {name: sizes[units[0].network] for name, units in by_network.items() if units}
    parts = policy.bytes_of_parts
    whole = parts is not None and any(unit.nbytes > parts for unit in resident)  # and such set the peak
    return Residency(
        kept, rings, fetched, arrivals=arrivals, ahead=policy.slots > 1, part_bytes=None if whole else parts,
        gives_back=policy.gives_back, below=below,
    )  # fmt: skip


def _belongs(unit: Unit, network: str) -> bool:
    return unit.name == network or unit.name.startswith(f"{network}.")
