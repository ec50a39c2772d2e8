"""Cutting networks into the units that travel: leaves, blocks, or whole components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..device.host import is_host
from ..device.threads import compute_beside
from ..weights.stored import StoredTensor

ALIGNMENT = 64  # bytes: a cache line, and what vector loads like

BLOCKS_PER_NETWORK = 16
"""A block is the largest part of a network that is at most this fraction of it."""

GRANULARITIES = ("leaf", "block", "component")

IN_TURNS = ("unet", "transformer", "controlnet")
"""Components that run in turns in every step: as whole components they travel together, and stay for all steps."""


Table = dict[str, Any]
"""A module's `_parameters` or `_buffers`."""


@dataclass(eq=False)
class Weight:
    """One parameter or buffer that travels: where it is held (every table and name), and its master below.

    It refers to tables and not to modules: networks whose weights travel refer to the engine, and nothing goes back.
    """

    owners: list[tuple[Table, str]]
    master: Tensor
    span: tuple[int, int] | None = None
    """The rows [begin, end) of the master that travel; all of them unless given."""

    address: int | None = None
    """Where the master's numbers lie if they were packed: elsewhere they are no longer what was packed."""

    def __post_init__(self) -> None:
        self._look_at_master()

    def _look_at_master(self) -> None:
        master, shape = self.master, self.master.shape
        if self.span is not None:
            shape = torch.Size((self.span[1] - self.span[0], *shape[1:]))
        self.nbytes = shape.numel() * master.itemsize
        self._layout = master.dtype, shape, master.stride()  # asking a stored tensor takes far longer
        self._kind = self._describe()

    def _describe(self) -> tuple[Any, ...]:
        if isinstance(self.master, StoredTensor):  # what it is changes with `held`, which is asked for in less time
            return StoredTensor, self.master.held
        return type(self.master), self.master.dtype, self.master.shape

    @property
    def is_changed(self) -> bool:
        """Whether the master, being the same object, has become another tensor or holds other memory."""
        moved = self.address is not None and self.address != self.master.data_ptr()
        return moved or self._kind != self._describe()

    @property
    def version(self) -> int:
        """Grows when the master is written to in place, as far as torch counts it; of stored ones `held` tells."""
        return 0 if isinstance(self.master, StoredTensor) or self.master.is_inference() else self.master._version

    def rehouse(self, tensor: Tensor) -> None:
        """Give the numbers other memory. A parameter stays the same object, so that whoever holds it sees it."""
        if isinstance(self.master, nn.Parameter):
            self.master.data = tensor
            self._look_at_master()
        else:
            former, self.master = self.master, tensor
            self._look_at_master()
            for table, name in self.owners:
                if table.get(name) is former:
                    table[name] = tensor

    def on(self, device: torch.device) -> Tensor:
        """The numbers on the device; those on disk are read straight to it."""
        master = self.master.detach().to(device)
        return master.read() if isinstance(master, StoredTensor) else master

    def write_to(self, memory: Tensor) -> None:
        """Copy the numbers to memory of this shape; those on disk are read straight into it."""
        if isinstance(self.master, StoredTensor):
            self.master.read_into(memory, self.span)
        else:
            memory.copy_(self.rows_of(self.master), non_blocking=True)

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Of a tensor like the master, what travels."""
        return tensor if self.span is None else tensor[slice(*self.span)]

    def view(self, memory: Tensor, begin: int) -> Tensor:
        """This weight's place in a flat tensor of bytes, with its master's dtype, shape and strides."""
        dtype, shape, strides = self._layout
        flat = memory.view(dtype)
        return self.alike(flat.as_strided(shape, strides, flat.storage_offset() + begin // dtype.itemsize))

    def alike(self, tensor: Tensor) -> Tensor:
        """`tensor` as a parameter if the master is one."""
        return nn.Parameter(tensor, requires_grad=False) if isinstance(self.master, nn.Parameter) else tensor


@dataclass(eq=False)
class Unit:
    """Weights that travel together: those of `modules`, which are leaves called one after the other.

    `packed` holds all of them below, laid out as above, where they were packed for travelling in one piece.
    """

    name: str
    weights: list[Weight] = field(default_factory=list)
    packed: Tensor | None = None
    _modules: list[ref[nn.Module]] = field(default_factory=list)

    @cached_property
    def network(self) -> str:
        """The network that it is part of; those that run in turns in every step count as one."""
        name = self.name.partition(".")[0]
        return IN_TURNS[0] if name in IN_TURNS else name

    @property
    def begins_layer(self) -> bool:
        """Whether no part of its layers comes before it."""
        span = self.weights[0].span
        return span is None or span[0] == 0

    @property
    def modules(self) -> list[nn.Module]:
        """Those that are still there, in order of declaration."""
        return [module for reference in self._modules if (module := reference()) is not None]

    def add(self, module: nn.Module) -> None:
        """Let this be the unit of `module`'s weights."""
        self._modules.append(ref(module))

    def read_into(self, memory: Tensor) -> None:
        """Fill `memory` (nbytes,) with the masters' numbers. WeightsError's kinds when a file cannot give them."""
        if self.packed is not None:
            memory.copy_(self.packed, non_blocking=True)
            return
        coming = (  # what is held is shown from there
            (weight, begin) for weight, begin in self.places
            if not isinstance(weight.master, StoredTensor) or weight.master.on_disk
        )  # fmt: skip
        writes = [partial(weight.write_to, weight.view(memory, begin)) for weight, begin in coming]
        compute_beside(writes, at_once=None if is_host(memory.device) else 1)  # streams belong to one thread

    @property
    def places(self) -> Iterator[tuple[Weight, int]]:
        """Each weight and the byte at which it begins in the unit's memory."""
        begin = 0
        for weight in self.weights:
            yield weight, begin
            begin += -(-weight.nbytes // ALIGNMENT) * ALIGNMENT

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the unit takes, alignment included."""
        return sum(-(-weight.nbytes // ALIGNMENT) * ALIGNMENT for weight in self.weights)

    def __repr__(self) -> str:
        return f"Unit({self.name!r}, {len(self.weights)} weights, {self.nbytes} bytes)"


@dataclass(frozen=True, eq=False)
class Cut:
    """A network cut into units in order of declaration.

    `looked_up` are embeddings, of which a forward needs few rows: they are read where they lie and never travel.
    `inner` are weights that modules with submodules hold themselves, used at any time: few and small, they stay.
    """

    units: list[Unit]
    looked_up: list[nn.Embedding]
    inner: list[Weight]


def cut(
    networks: Mapping[str, nn.Module], granularity: str, travels: Callable[[Tensor], bool] = lambda tensor: True
) -> Cut:
    """Cut the networks; `granularity` is 'leaf', 'block' or 'component'. ConfigError for any other.

    A weight that modules of several units share stays like those of inner modules. Tensors that do not travel are left
    to their modules and are part of nothing.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(f"granularity={granularity!r} is none of {', '.join(GRANULARITIES)}.")
    cutter = _Cutter(travels)
    for component, network in networks.items():
        if granularity == "component":
            cutter.take(network, component)
        else:
            limit = weight_bytes(network) / BLOCKS_PER_NETWORK if granularity == "block" else 0
            cutter.walk(network, component, limit)
    return cutter.finish()


class _Cutter:
    def __init__(self, travels: Callable[[Tensor], bool]) -> None:
        self._travels = travels
        self._units: list[Unit] = []
        self._looked_up: list[nn.Embedding] = []
        self._weights: dict[int, Weight] = {}
        self._homes: dict[int, list[Unit | None]] = {}  # None: an inner module
        self._in_turns: Unit | None = None

    def take(self, network: nn.Module, name: str) -> None:
        """Make the network a unit, or a part of the one whose turns it takes."""
        in_turns = name.partition(".")[0] in IN_TURNS
        unit = self._in_turns if in_turns and self._in_turns else Unit(name)
        if unit is not self._in_turns:
            self._units.append(unit)
        if in_turns:
            self._in_turns = unit
        for part in network.modules():
            self._place(part, unit)

    def walk(self, module: nn.Module, name: str, limit: float) -> None:
        """Make the largest parts of at most `limit` bytes units; below that leaves are."""
        children = list(module.named_children())
        if not children or (limit and weight_bytes(module) <= limit):
            self._units.append(Unit(name))
            for part in module.modules():
                self._place(part, self._units[-1])
            return
        self._place(module, None)
        for child_name, child in children:
            self.walk(child, f"{name}.{child_name}", limit)

    def _place(self, module: nn.Module, unit: Unit | None) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            return  # its weights are fixed and its layers are not called from Python: they stay where they are
        if isinstance(module, nn.Embedding):
            self._looked_up.append(module)
            return
        home = None if next(module.children(), None) is not None else unit
        tables: tuple[Table, ...] = (module._parameters, module._buffers)
        held = [(each, n, t) for each in tables for n, t in each.items() if t is not None and self._travels(t)]
        for table, name, tensor in held:
            weight = self._weights.setdefault(id(tensor), Weight([], tensor))
            weight.owners.append((table, name))
            self._homes.setdefault(id(tensor), []).append(home)
        if held and home is not None:
            home.add(module)

    def finish(self) -> Cut:
        inner: list[Weight] = []
        for key, weight in self._weights.items():
            homes = self._homes[key]
            if homes[0] is None or any(home is not homes[0] for home in homes):
                inner.append(weight)
            else:
                homes[0].weights.append(weight)
        return Cut([unit for unit in self._units if unit.weights], self._looked_up, inner)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and buffers, wherever they lie."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def ring_sizes(units: Iterable[Unit], slots: int) -> dict[str, int]:
    """Bytes, by network, of a ring with that many slots for the network's largest unit; no more than all take."""
    sizes: dict[str, list[int]] = {}
    for unit in units:
        sizes.setdefault(unit.network, []).append(unit.nbytes)
    return {network: ring_size(each, slots) for network, each in sizes.items()}


def ring_size(units: Sequence[int], slots: int) -> int:
    """The same of one network, whose units take so many bytes each."""
    return min(slots * max(units), sum(units))


class Sized(Protocol):
    """A unit, or what is known of one."""

    @property
    def nbytes(self) -> int: ...


Some = TypeVar("Some", bound=Sized)


def spread(units: Iterable[Some], fraction: float) -> set[Some]:
    """Units holding about `fraction` of the bytes, spread evenly, so that travel and computing go on side by side."""
    chosen: set[Some] = set()
    seen = kept = 0
    for unit in units:
        nbytes = unit.nbytes
        seen += nbytes
        if kept + nbytes <= fraction * seen:
            chosen.add(unit)
            kept += nbytes
    return chosen
