"""What techniques work on: the networks of one pipeline, this library's or another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar
from weakref import ref

import torch
from torch import nn

from ..modules.multicontrolnet import MultiControlNetModel
from ..offload.engine import engine_of
from ..run.run import Run
from .hooks import Undo

T = TypeVar("T", torch.device, torch.dtype)

DENOISERS = ("unet", "transformer")
"""Names under which pipelines keep the network that runs at each step."""


class Pipeline(Protocol):
    """What a pipeline has to offer: its components by name, each of them an attribute that can be set."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Component by name, absent ones as None."""
        ...


class Subject:
    """Networks by role, where and in which dtype they run, and how to put another one in their place.

    It does not keep the pipeline alive. `has_runs`: whether the pipeline draws by `run.run.Run`, and prepares each.
    """

    def __init__(self, pipe: Pipeline, *, has_runs: bool = False) -> None:
        self._pipe = ref(pipe)
        self._after_calls: list[Callable[[], None]] = []
        self._each_run: list[Callable[[Run], None]] = []
        self.has_runs = has_runs
        self.destination: torch.device | None = None
        """Where networks will run, while offloading is just being put on or is on; None without it."""

    @property
    def pipe(self) -> Any:
        """The pipeline itself. ReferenceError once it is gone."""
        pipe = self._pipe()
        if pipe is None:
            raise ReferenceError("the pipeline that these techniques belong to is gone")
        return pipe

    # -- networks by role --------------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Every component that is a torch module, by the name that the pipeline gives it; several ControlNets by that
        name and their number, since each has a checkpoint of its own."""
        found: dict[str, nn.Module] = {}
        for name, part in self.pipe.components.items():
            if isinstance(part, MultiControlNetModel):
                found |= {f"{name}.{place}": net for place, net in enumerate(part.nets)}
            elif isinstance(part, nn.Module):
                found[name] = part
        return found

    def component(self, name: str) -> Any:
        """The component of that name, network or not; None when there is none."""
        return self.pipe.components.get(name)

    @property
    def denoiser_name(self) -> str:
        """The name of the network that runs at each step: 'unet', or 'transformer'."""
        return next((name for name in DENOISERS if self.component(name) is not None), DENOISERS[0])

    @property
    def denoiser(self) -> Any:
        """The network that runs at each step."""
        return self.component(self.denoiser_name)

    @property
    def controls(self) -> list[nn.Module]:
        """ControlNets, which run at each step before it."""
        return [network for name, network in self.networks.items() if name.partition(".")[0] == "controlnet"]

    @property
    def vae(self) -> Any:
        """The network that decodes; None when there is none."""
        return self.component("vae")

    # -- where and how they run --------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the networks run: where the denoiser's weights lie, or to which they travel.

        Where another network's lie when the denoiser is a foreign object without any.
        """
        return self.travels_to or self._of_weights("device", torch.empty(0).device)

    @property
    def travels_to(self) -> torch.device | None:
        """The device that weights travel to, for this pipeline or one that shares its networks; None if they do not."""
        engines = (engine_of(network) for network in self.networks.values())
        return self.destination or next((engine.policy.device for engine in engines if engine), None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the denoiser's weights; of another network's when it is a foreign object without any."""
        return self._of_weights("dtype", torch.get_default_dtype())

    def _of_weights(self, what: str, otherwise: T) -> T:
        """What the first floating-point weight says; of networks without any, what they say themselves."""
        networks = self.networks
        first = [name for name in (self.denoiser_name, "text_encoder") if name in networks]
        for name in [*first, *networks]:
            owner = next((p for p in networks[name].parameters() if p.is_floating_point()), networks[name])
            found = getattr(owner, what, None)
            if isinstance(found, type(otherwise)):
                return found
        return otherwise

    # -- changing it -------------------------------------------------------------------------------------------------

    def replace(self, name: str, component: Any) -> Undo:
        """Put `component` in the place of that name. Undo puts the former one back, unless replaced meanwhile."""
        before, mine = self.component(name), ref(component)
        setattr(self.pipe, name, component)

        def undo() -> None:
            pipe = self._pipe()
            if pipe is not None and pipe.components.get(name) is mine():
                setattr(pipe, name, before)

        return undo

    def after_calls(self, step: Callable[[], None]) -> Undo:
        """Run `step` whenever the last of the calls under way has ended; undo takes it off again."""
        self._after_calls.append(step)
        return lambda: self._after_calls.remove(step)

    def each_run(self, prepare: Callable[[Run], None]) -> Undo:
        """Have `prepare` see each new run before it denoises; undo takes it off again. `Run` says what it may change.

        What one drawing owns, such as a cache, is made there anew, so that runs in several threads have their own.
        """
        self._each_run.append(prepare)
        return lambda: self._each_run.remove(prepare)

    def prepare(self, run: Run) -> None:
        """Show a new run to what waits for each."""
        for prepare in list(self._each_run):
            prepare(run)

    def calls_ended(self) -> None:
        """Run what waits for the end of calls."""
        for step in list(self._after_calls):
            step()


def why_no_runs(subject: Subject) -> list[str]:
    """Why runs cannot be prepared; empty when they can."""
    if subject.has_runs:
        return []
    return [f"{type(subject.pipe).__name__} has a denoising loop of its own: open it with leandiffusion instead"]
