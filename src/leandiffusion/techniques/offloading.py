"""What sequential and model offload have in common: the engine, hooked to a pipeline's networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

import torch
from torch import nn
from tqdm.auto import tqdm

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..core.notices import warn
from ..device.host import is_host
from ..device.memory import release
from ..device.names import HOST, check_device, current_device, numbered, why_unusable
from ..device.streams import why_no_overlap
from ..offload.engine import Engine, engine_of, moved
from ..offload.policy import Policy
from ..offload.residency import Pieces, Residency, residency
from ..offload.units import weight_bytes
from ..weights.load import origin_of
from . import techniques
from .base import Exactness, Phase, Technique
from .hooks import Undo, after_forward, around_forward, before_forward, nothing, own_forward, together
from .subject import Subject
from .switchable import Switchable

if TYPE_CHECKING:
    from .stack import Stack

OFFLOAD_FLAG = Flag(
    "--offload", "Keep weights in host memory, for a CPU on disk, until a network, or a layer, needs them."
)


@dataclass(frozen=True)
class Offload(Technique):
    """Weights lie on the tier below `device` (an accelerator where there is one) and come when they are needed."""

    device: torch.device | str | None = None

    phase: ClassVar[Phase] = Phase.OFFLOAD
    exactness: ClassVar[Exactness] = Exactness.EXACT
    group: ClassVar[str] = "offload"

    @cached_property
    def compute_device(self) -> torch.device:
        """Where the networks run: the device that is current when this is first asked, unless one was named."""
        if self.device is None:
            return current_device()
        return torch.device(self.device)

    @classmethod
    def settings_of(cls, subject: Subject) -> dict[str, Any]:
        """Keywords that make weights travel to where the subject's networks run."""
        return {} if subject.device == current_device() else {"device": str(subject.device)}

    @property
    def policy(self) -> Policy:
        """How the engine moves weights for this technique."""
        raise NotImplementedError

    def why_not(self, subject: Subject) -> list[str]:
        if (reason := why_unusable(self.compute_device)) is not None:
            return [f"device {str(self.device)!r} cannot be used on this machine: {reason}"]
        networks = travelling(subject)
        if not networks:
            return ["none of the pipeline's networks is a torch module whose weights can move"]
        if theirs := [name for name, network in networks.items() if hasattr(network, "_hf_hook")]:
            return [f"{', '.join(theirs)} is offloaded by accelerate already: pipe.remove_all_hooks() ends that"]
        if is_host(self.compute_device) and not any(origin_of(network) for network in networks.values()):
            return [
                "below the CPU lies the checkpoint on disk, and these networks were not opened from one: save them "
                "with save_pretrained and open them with from_pretrained"
            ]
        if compiled := [name for name, network in networks.items() if "_orig_mod" in network._modules]:
            return [
                f"{', '.join(compiled)} was compiled by torch.compile, which fixes where its weights are: put the "
                "network itself back to let them travel"
            ]
        return [
            f"{name} is shared with another pipeline, for which its weights travel in another way: ask for the same "
            "way here, or switch it off there"
            for name, network in networks.items()
            if (engine := engine_of(network)) and engine.policy != self.policy and {*engine.users} - {subject}
        ]

    def residency(self, networks: Pieces) -> Residency:
        return residency(networks, self.policy)

    def apply(self, subject: Subject) -> Undo:
        return together(self._steps(subject))

    def _steps(self, subject: Subject) -> Iterator[Undo]:
        yield release
        networks = travelling(subject)
        for engine in self._shared(networks):
            yield _use(engine, subject)
        own = {name: network for name, network in networks.items() if engine_of(network) is None}
        if own:
            engine = self._start(own)
            engine.detach = run_through(engine, self.compute_device)
            yield _use(engine, subject)
            yield subject.after_calls(engine.rest)
        release()

    def _shared(self, networks: Mapping[str, nn.Module]) -> list[Engine]:
        """Engines through which some of the networks travel for other pipelines; those that nobody uses are ended."""
        shared: list[Engine] = []
        for engine in {engine_of(network) for network in networks.values()} - {None}:
            assert engine is not None
            if engine.users:
                shared.append(engine)
            else:
                engine.detach()
                engine.close()
        return shared

    def _start(self, networks: dict[str, nn.Module]) -> Engine:
        total = sum(weight_bytes(network) for network in networks.values())
        with tqdm(
            total=total, unit="B", unit_scale=True, delay=2, leave=False, disable=None, desc="Offloading weights"
        ) as bar:
            engine = Engine(networks, self.policy, progress=bar.update)
        if engine.kept:
            some = ", ".join(engine.kept[:3]) + (" …" if len(engine.kept) > 3 else "")
            warn(
                f"{len(engine.kept)} weights are not in a checkpoint as they are in memory, and stay in memory: {some}"
            )
        return engine

    def notes(self, subject: Subject) -> list[str]:
        device = self.compute_device
        overlap = None if self.policy.granularity == "component" else why_no_overlap(device)
        told = [] if overlap is None else [f"{self.name} takes the time of all copies: {overlap}."]
        there = [name for name, network in travelling(subject).items() if _lies_on(network, device)]
        if is_host(device) or not there:
            return told
        return [
            *told,
            f"{', '.join(there)} already lay on {device} and {'are' if len(there) > 1 else 'is'} moved off it for "
            f"{self.name}: leave out .to({str(device)!r}), which first needs all the memory that this saves.",
        ]


class OffloadMethods(Switchable):
    """Methods of the pipelines."""

    def remove_all_hooks(self) -> None:
        """Switch offloading off, whichever is on."""
        self.disable("model_offload")
        self.disable("sequential_offload")


def device_of(gpu_id: int | None, device: torch.device | str | None) -> torch.device | str | None:
    """The device that diffusers' two ways of naming it mean; None leaves the choice. ConfigError for one that
    there is not, or if the two disagree."""
    named = None if device is None else check_device(device)
    if gpu_id is None:
        return named
    if isinstance(gpu_id, bool) or not isinstance(gpu_id, int) or gpu_id < 0:
        raise ConfigError(f"gpu_id={gpu_id!r} is not the number of a GPU: use 0 for the first, or device='cuda:0'.")
    device_of_id = numbered(gpu_id)
    if named is not None and (named.type != device_of_id.type or named.index not in (None, gpu_id)):
        raise ConfigError(f"gpu_id={gpu_id} and device={str(device)!r} name two devices: give one of them.")
    return device_of_id


def travelling(subject: Subject) -> dict[str, nn.Module]:
    """The pipeline's networks whose weights can move: modules with parameters, not traced ones."""
    return {
        name: network
        for name, network in subject.networks.items()
        if not isinstance(network, torch.jit.ScriptModule) and next(network.parameters(), None) is not None
    }


def run_through(engine: Engine, device: torch.device) -> Undo:
    """Have the engine run its modules. Off the CPU embeddings are looked up below, and their rows follow."""
    _wrap(engine)
    me = ref(engine)  # what is attached to networks keeps the engine alive, not the other way round

    def renew() -> None:
        if (engine := me()) is not None:
            _wrap(engine)

    engine.on_change = renew
    looked_up = nothing if is_host(device) else _look_up_below(engine, device)

    def undo() -> None:
        looked_up()
        if (engine := me()) is not None:
            engine.on_change = nothing
            for network in engine.networks.values():
                for module in network.modules():
                    own_forward(module, engine.run)

    return undo


def _wrap(engine: Engine) -> None:
    for module in engine.modules:
        around_forward(module, engine.run, only_moves=True)


def _look_up_below(engine: Engine, device: torch.device) -> Undo:
    def look_up(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return moved((args, kwargs), HOST)

    return together(
        [
            before_forward(engine.looked_up, look_up, inputs=True),
            after_forward(engine.looked_up, lambda module, args, output: output.to(device)),
        ]
    )


def _use(engine: Engine, user: Any) -> Undo:
    """Note that `user` wants the networks to travel; undo ends that, and the engine with its last user."""
    engine.users.add(user)
    me = ref(user)  # who holds the undo

    def undo() -> None:
        engine.users.discard(me())
        if not engine.users:
            engine.detach()
            engine.close()

    return undo


def opening_offload(
    offload: str | Technique | None, device: torch.device | None
) -> tuple[Offload | None, torch.device | None]:
    """The offload to open a pipeline with, and the device to load weights to: none where they are to travel.

    ConfigError unless `offload` is 'model', 'sequential' or such a technique.
    """
    if offload is None:
        return None, device
    if isinstance(offload, Offload):
        elsewhere = device is not None and offload.device is None and device != offload.compute_device
        return replace(offload, device=device) if elsewhere else offload, None
    names = [name for name in techniques if issubclass(techniques.get(name), Offload)]
    known = {name.removesuffix("_offload"): name for name in names}
    if not isinstance(offload, str) or offload.removesuffix("_offload") not in known:
        raise ConfigError(f"offload={offload!r} is none of {', '.join(map(repr, known))}, nor such a technique.")
    make: Any = techniques.get(known[offload.removesuffix("_offload")])
    return make(device=device), None


def check_movable(stack: Stack, device: torch.device) -> None:
    """ConfigError when weights that travel are asked to move to another device than the CPU, above which they lie."""
    offload = stack.find("offload")
    if offload is not None and not is_host(device):
        raise ConfigError(
            f"{offload.name} is on and decides where weights are, so .to({str(device)!r}) would undo it: leave it out, "
            f"or call pipe.disable({offload.name!r}) first."
        )


def _lies_on(network: nn.Module, device: torch.device) -> bool:
    first = next(network.parameters(), None)
    return first is not None and first.device.type == device.type
