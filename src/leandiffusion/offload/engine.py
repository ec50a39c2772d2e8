"""One engine for sequential and model offload: the tier below, the size of units and what stays are its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..core.errors import WeightsError
from ..core.fork import Lock, renew_in_child
from ..core.malloc import trim
from ..core.repeats import same_inputs
from ..weights.load import origin_of
from ..weights.residence import (
    is_on_disk,
    left_out,
    load_from_disk,
    release_to_disk,
    stay_on_disk,
    wait_no_longer,
)
from ..weights.stored import StoredTensor
from .arena import Arena, OneAtATime, RingOfEach
from .conveyor import Conveyor
from .host import Homes, HostStore
from .parts import PART_BYTES, joined, output_dim, run_with
from .policy import Policy
from .prefetch import Prefetcher, prefetcher_for
from .units import Table, Unit, Weight, cut, ring_sizes, spread

HEAVY = PART_BYTES // 2
"""Bytes of a unit before which the C library gives back what is free, where the policy says so and if it is no later
part of a layer: holes between blocks below `core.malloc.LARGE` are 45 MiB by then with Stable Diffusion 1.5 at 256
pixels."""


@dataclass(frozen=True, eq=False)
class Held:
    """What a module holds of its unit: each weight, where it stands in the module, and its place in the memory.

    `count`: parameters and buffers that the module had, those that do not travel included. `dim`: where parts of its
    output go, whatever is put around its forward later; None where all of it comes at once.
    """

    unit: Unit
    weights: list[tuple[Table, str, Weight, int]]
    tables: tuple[Table, ...]
    count: int
    dim: int | None

    @property
    def is_stale(self) -> bool:
        """Whether the module holds something else by now, or what it holds is not what it was."""
        if sum(map(len, self.tables)) != self.count:
            return True
        return any(table.get(name) is not w.master or w.is_changed for table, name, w, _ in self.weights)


class Engine:
    """Puts networks' weights on the tier below `policy.device` and shows them to a module while it runs.

    Below a GPU that is host memory; below the CPU the checkpoint on disk, for weights that are there as they are in
    memory. `run` has to be what calls the forward of each of `modules`: the engine does not attach itself.

    Outside a module's own forward every module holds its masters, so that whatever is read, written or replaced there
    counts, whoever does it and in whichever thread. One module runs at a time. `close` leaves every weight at its
    master: on the device where it was found, or on disk (`weights.stored`).

    An engine belongs to its networks and not to who switched it on: `engine_of` finds it, `users` are those who asked
    for it. It keeps no network alive.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], policy: Policy, *,
        prefetcher: Prefetcher | None = None, progress: Callable[[int], Any] = lambda count: None,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.users: WeakSet[Any] = WeakSet()
        """Who wants the networks to travel. The engine outlives those that are gone, until somebody else comes."""

        self.kept: list[str] = []
        """Weights that were changed since they were loaded, or built by hand: they stay in memory."""

        self.on_change: Callable[[], None] = lambda: None
        """Called when networks turned out to have other modules or weights than before, after taking them up."""

        self.detach: Callable[[], None] = lambda: None
        """How to take the engine off its modules again, for whoever closes it."""

        self.turn = Lock()
        """For those who run networks as a whole: taking turns spares them to fetch each other's weights again."""

        self._lock = Lock()
        self._networks = {name: ref(network) for name, network in networks.items()}
        self._raised: dict[str, set[int]] = {}  # ids of stored weights that were brought up to stay
        self._homes: Homes = {}
        self._host: HostStore | None = None
        self._prefetcher = prefetcher or prefetcher_for(policy.device, ahead=policy.looks_ahead)
        if policy.from_disk:
            self._go_down(networks, progress)
        try:
            self._take_up(networks)
        except BaseException:  # out of memory: nothing has moved then
            self.close()
            raise
        for network in networks.values():
            wait_no_longer(network)
            _engines[network] = self
        renew_in_child(self)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose weights travel."""
        return list(self._held)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those that are still there, by the names they were given."""
        return {name: network for name, reference in self._networks.items() if (network := reference()) is not None}

    @property
    def held_bytes(self) -> int:
        """Of the device's memory that is kept for weights that travel, whether any are in it or not."""
        return self._conveyor.held_bytes

    def run(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """`forward(*args, **kwargs)` with the module's weights on the device. Raises what reading them raises; can
        then be called again.

        A copy of a module, which brought its own weights along, is none of the engine's: it just runs.
        """
        if not self.policy.from_disk:  # inputs follow the weights, from wherever they are
            args, kwargs = moved((args, kwargs), self.policy.device)
        with self._lock:
            parts = self._held.get(module, [])
            if parts and parts[0].is_stale:
                self._renew_pieces()
                parts = self._held.get(module, [])
            if not parts:
                return forward(*args, **kwargs)
            if len(parts) == 1:
                return self._run_with(parts[0], forward, args, kwargs)
            dim, span = parts[-1].dim, parts[-1].weights[0][2].span
            assert dim is not None
            assert span is not None
            with same_inputs():
                return joined((self._run_with(part, forward, args, kwargs) for part in parts), dim, span[1])

    def rest(self) -> None:
        """Let all weights leave the device; the next `run` fetches them again."""
        with self._lock:
            self._conveyor.clear()

    def close(self) -> None:
        """Let all weights leave and give host memory back its former order."""
        with self._lock:
            self._let_go()
            self._held = WeakKeyDictionary()
            for weight, home in self._homes.values():
                weight.rehouse(weight.master.detach().to(home))
            self._homes.clear()
            for name, network in self.networks.items():
                _engines.pop(network, None)
                raised = self._raised.pop(name, set())
                with suppress(WeightsError):  # a file that is gone: then those weights stay where they are
                    _put_down(network, leave={id(p) for p in network.parameters()} - raised)

    def renew(self) -> None:
        """Go on in a forked child."""
        self._conveyor.renew()

    # -- what travels ----------------------------------------------------------------------------------------------

    def _go_down(self, networks: Mapping[str, nn.Module], progress: Callable[[int], Any]) -> None:
        """Leave on disk what is there, but for what will not travel."""
        pieces = cut(networks, self.policy.granularity)
        resident = spread(pieces.units, self.policy.resident_fraction)
        staying = [*pieces.inner, *(weight for unit in resident for weight in unit.weights)]
        stay = {id(weight.master) for weight in staying} - {i for net in networks.values() for i in left_out(net)}
        for name, network in networks.items():
            stay_on_disk(network)
            self._raised[name] = load_from_disk(network, only=stay)
            self.kept += [f"{name}.{weight}" for weight in _put_down(network, progress, leave=stay)]

    def _take_up(self, networks: Mapping[str, nn.Module]) -> None:
        """Cut the networks as they are now, and make ready what the pieces travel with."""
        policy, from_disk = self.policy, self.policy.from_disk
        out = {each for network in networks.values() for each in left_out(network)} if from_disk else set()
        pieces = cut(networks, policy.granularity, lambda t: not from_disk or (is_on_disk(t) and id(t) not in out))
        resident = set() if from_disk else spread(pieces.units, policy.resident_fraction)
        travelling = policy.divided([unit for unit in pieces.units if unit not in resident])
        self._held: WeakKeyDictionary[nn.Module, list[Held]] = WeakKeyDictionary()
        """The modules whose weights travel, with the parts in which they do."""
        for unit in travelling:
            for module, held in _held_by(unit):
                self._held.setdefault(module, []).append(held)
        self.looked_up = pieces.looked_up
        self._conveyor = Conveyor(
            travelling, _read_and_trim if policy.gives_back else Unit.read_into, _arena(policy, travelling),
            self._prefetcher, ahead=policy.looks_ahead,
        )  # fmt: skip
        if from_disk:
            return
        self._host = HostStore(travelling, pieces.looked_up, policy.device, self._homes)
        for weight in [*pieces.inner, *(weight for unit in resident for weight in unit.weights)]:
            home = self._homes.pop(id(weight.master), (weight, weight.master.device))[1]
            weight.rehouse(weight.on(policy.device))
            self._homes[id(weight.master)] = weight, home

    def _let_go(self) -> None:
        if hasattr(self, "_conveyor"):
            self._conveyor.close()
        if self._host is not None:
            self._host.close()
            self._host = None

    def _renew_pieces(self) -> None:
        """Somebody replaced weights or modules: take the networks up as they are now."""
        self._let_go()
        self._prefetcher.renew()
        self._take_up(self.networks)
        self.on_change()

    def _run_with(self, held: Held, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tensors = self._own(held) if _records_gradients((args, kwargs)) else self._fetch(held)
        return run_with([place[:3] for place in held.weights], tensors, forward, args, kwargs)

    def _own(self, held: Held) -> list[Tensor]:
        """What the module is to hold where a backward pass will use it again: memory that nothing else is put into."""
        return [weight.alike(weight.rows_of(weight.on(self.policy.device))) for _, _, weight, _ in held.weights]

    def _fetch(self, held: Held) -> list[Tensor]:
        """What the module is to hold while it runs. It belongs to the module until another unit arrives."""
        load = self._conveyor.arrive(held.unit)
        for _, _, weight, _ in held.weights:
            if load.versions[weight] != weight.version:  # written to since it was read
                self._conveyor.forget(held.unit)
                load = self._conveyor.arrive(held.unit)
                break
        tensors = load.views.get(held)
        if tensors is None:
            tensors = load.views[held] = [weight.view(load.memory, begin) for _, _, weight, begin in held.weights]
        return [_unless_held(weight, tensor) for (_, _, weight, _), tensor in zip(held.weights, tensors, strict=True)]


_engines: WeakKeyDictionary[nn.Module, Engine] = WeakKeyDictionary()


def engine_of(network: nn.Module) -> Engine | None:
    """The engine through which the network's weights travel, whoever switched it on; None when they do not."""
    return _engines.get(network)


def moved(values: Any, device: torch.device) -> Any:
    """The same nest of values with every tensor on the device."""
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)


def _records_gradients(values: Any) -> bool:
    """Whether gradients of one of the tensors among the values are recorded."""
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(value, Tensor) and value.requires_grad for value in tree_leaves(values))


def _unless_held(weight: Weight, came: Tensor) -> Tensor:
    """What came, unless the master was written to meanwhile and is held in memory: then that."""
    master = weight.master
    if isinstance(master, StoredTensor) and not master.on_disk:
        return weight.alike(weight.rows_of(master.read()))
    return came


def _held_by(unit: Unit) -> Iterator[tuple[nn.Module, Held]]:
    places = {(id(table), name): (weight, begin) for weight, begin in unit.places for table, name in weight.owners}
    for module in unit.modules:
        tables: tuple[Table, ...] = (module._parameters, module._buffers)
        found = [
            (table, name, *places[id(table), name]) for table in tables for name in table if (id(table), name) in places
        ]
        if found:
            yield module, Held(unit, found, tables, sum(map(len, tables)), output_dim(module))


def _put_down(network: nn.Module, progress: Callable[[int], Any] = lambda count: None, *, leave: set[int]) -> list[str]:
    origin = origin_of(network)
    entries, stamps = ({}, {}) if origin is None else (origin.entries, origin.stamps)
    return release_to_disk(network, entries, stamps, progress, leave=leave)


def _read_and_trim(unit: Unit, memory: Tensor) -> None:
    if unit.nbytes >= HEAVY and unit.begins_layer:
        trim()
    unit.read_into(memory)


def _arena(policy: Policy, travelling: list[Unit]) -> Arena:
    if policy.granularity == "component":
        return OneAtATime(policy.device)
    return RingOfEach(ring_sizes(travelling, policy.slots), policy.device)
