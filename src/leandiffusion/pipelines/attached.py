"""The techniques on a pipeline of diffusers: switched on, off, and taken off again without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import nn

from ..core.errors import ConfigError
from ..techniques import Technique
from ..techniques.hooks import Undo, together
from ..techniques.offloading import check_movable
from ..techniques.stack import Stack
from ..techniques.subject import DENOISERS, Subject
from ..techniques.switchable import Switchable
from ..weights.elsewhere import find_origin
from ..weights.load import origin_of

THEIR_OFFLOADING = ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload")


def attach(pipe: Any) -> Attached:
    """Give a pipeline of diffusers the techniques of this library, until `detach` or the end of a `with`.

        with attach(pipe) as lean:
            lean.enable("sequential_offload")
            pipe("an astronaut on mars").images[0].save("astronaut.png")

    Which of them work is for `lean.why_not(name)` to say: what moves, casts, lays out or compiles weights does; what
    needs this library's own layers (attention kernels, slices of attention, the traced UNet) says so. On a CPU
    offloading needs the checkpoint on disk that the pipeline was opened from.

    ConfigError for what is not a pipeline, for this library's own, which have the same calls themselves, and for one
    that is attached already.
    """
    if hasattr(pipe, "_stack"):
        raise ConfigError(f"this {type(pipe).__name__} has these techniques itself: pipe.enable(…), without attach.")
    if isinstance(pipe, Guarded):
        raise ConfigError("this pipeline is attached already: use what attach returned then, or call its detach().")
    components = getattr(pipe, "components", None)
    if not callable(pipe) or not isinstance(components, dict) or not any(components.get(name) for name in DENOISERS):
        raise ConfigError(
            f"{type(pipe).__name__} is not a pipeline that draws: pass one of diffusers, with a unet or a transformer "
            "among its components."
        )
    return Attached(pipe)


class Attached(Switchable):
    """What `attach` returns: `enable`, `disable`, `techniques`, `why_not` as on this library's pipelines.

    It keeps the pipeline alive, and the other way round, until `detach`.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._stack = Stack(Subject(pipe))
        self._undo = together(self._steps(pipe))

    def _steps(self, pipe: Any) -> Iterator[Undo]:
        for network in self._stack.subject.networks.values():
            if origin_of(network) is None and (origin := find_origin(network)) is not None:
                yield _remember(network, origin)
        own = type(pipe)
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
        pipe.__dict__["_lean"] = self
        yield lambda: pipe.__dict__.__delitem__("_lean")
        pipe.__class__ = type(own.__name__, (Guarded, own), names)
        yield lambda: setattr(pipe, "__class__", own)

    def enable(self, technique: Technique | str, *, why: str = "asked for", **settings: Any) -> None:
        """As on this library's pipelines. ConfigError once detached."""
        if not self._is_attached:
            raise ConfigError("this was detached from its pipeline: attach(pipe) again, and enable on what it returns.")
        super().enable(technique, why=why, **settings)

    def detach(self) -> None:
        """Switch everything off and leave the pipeline as it was. A second time it does nothing.

        ConfigError while a picture is being drawn.
        """
        if self._is_attached:
            self._stack.clear()
            self._undo()

    @property
    def _is_attached(self) -> bool:
        return self.pipe.__dict__.get("_lean") is self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"attached to {type(self.pipe).__name__}: {', '.join(map(str, self.techniques)) or 'nothing on'}"


class Guarded:
    """What an attached pipeline's class does in front of its own: calls go through the techniques, and nothing of
    diffusers moves weights that they move."""

    _lean: Attached

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lean._stack.call():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    @property
    def _execution_device(self) -> torch.device:
        """Where diffusers makes latents and embeddings: where weights travel to, else wherever diffusers has it."""
        return self._lean._stack.subject.travels_to or super()._execution_device  # type: ignore[misc]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own, with what is on taken off and put back. ConfigError for a device while weights are
        offloaded."""
        stack = self._lean._stack
        devices = [each for each in (*args, *kwargs.values()) if isinstance(each, str | torch.device)]
        for device in devices:
            check_movable(stack, torch.device(device))
        if devices and stack.find("offload") is not None:
            args = tuple(each for each in args if not isinstance(each, str | torch.device))
            kwargs = {key: each for key, each in kwargs.items() if not isinstance(each, str | torch.device)}
        if args or kwargs:
            stack.lifted(lambda: super(Guarded, self).to(*args, **kwargs))  # type: ignore[misc]
        return self

    def __getattribute__(self, name: str) -> Any:
        if name in THEIR_OFFLOADING:
            stack: Stack = object.__getattribute__(self, "_lean")._stack
            if (offload := stack.find("offload")) is not None:
                raise ConfigError(f"{offload.name} is on, so {name} of diffusers cannot be: disable one of them.")
        return super().__getattribute__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError("an attached pipeline cannot be copied or pickled: call detach() first.")


def _remember(network: nn.Module, origin: Any) -> Undo:
    object.__setattr__(network, "_origin", origin)
    return lambda: object.__delattr__(network, "_origin")
