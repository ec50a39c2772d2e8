"""A pipeline as a set of components: where they are, and how they move."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch

from ..core.errors import ConfigError
from ..device.names import check_device
from ..modules.base import check_dtype
from ..techniques.offloading import check_movable
from ..techniques.stack import Stack
from ..techniques.subject import Subject
from .from_file import FromFile
from .from_folder import FromFolder
from .given import check_given
from .saving import Saving


class Assembly(FromFolder, FromFile, Saving):
    """Components, each an attribute named as in model_index.json; any may be replaced by hand."""

    def __init__(self, components: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        check_given(type(self).__name__, components)
        self.notice = None
        self._settings = dict(settings)
        self._opened_from = None
        self._stack = Stack(Subject(self, has_runs=True))
        for name, component in components.items():
            setattr(self, name, component)

    @property
    def components(self) -> dict[str, Any]:
        """Component by name, absent ones as None: `OtherPipeline(**pipe.components)` shares the weights."""
        return {name: getattr(self, name) for name in self.component_names}

    @property
    def device(self) -> torch.device:
        """Where the networks run: on the device where the UNet's weights lie, or to which they travel.

        Where another network's lie when the UNet is a foreign object without any.
        """
        return self._stack.subject.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the UNet's weights; of another network's when the UNet is a foreign object without any."""
        return self._stack.subject.dtype

    @property
    def _execution_device(self) -> torch.device:
        return self.device  # diffusers' name for it, which scripts use

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and cast every network: a device, a dtype, or both, also as `device=` and `dtype=`. Returns itself.

        diffusers' keywords `torch_device=`, `torch_dtype=` and `silence_dtype_warnings=` are understood. Raises
        ConfigError for anything else, or a device while weights are offloaded, and BackendUnavailable for a device
        that is not there, before anything moves. Techniques that are on stay on.
        """
        kwargs.pop("silence_dtype_warnings", None)
        wanted = [("dtype" if isinstance(value, torch.dtype) else "device", value) for value in args]
        wanted += [(key.removeprefix("torch_"), value) for key, value in kwargs.items()]
        wanted = [(key, value) for key, value in wanted if value is not None]
        chosen: dict[str, Any] = dict(wanted)
        if len(chosen) < len(wanted) or not chosen.keys() <= {"device", "dtype"}:
            raise ConfigError(
                f"to({', '.join(f'{key}={value}' for key, value in wanted)}): pass a device, a dtype, or both."
            )
        if "dtype" in chosen:
            check_dtype(chosen["dtype"])
        if "device" in chosen:
            chosen["device"] = check_device(chosen["device"])
            check_movable(self._stack, chosen["device"])
            if self._stack.find("offload") is not None:
                del chosen["device"]
        if chosen:
            self._stack.lifted(lambda: self._move(chosen))
        if "dtype" in chosen and (half := self._stack.find("half_precision")) is not None:
            warnings.warn(f"{half} stays on: pipe.disable('half_precision') makes it {chosen['dtype']}.", stacklevel=2)
        return self

    def _move(self, chosen: Mapping[str, Any]) -> None:
        for network in self._stack.subject.networks.values():
            network.to(**chosen)

    def __repr__(self) -> str:
        parts = "\n".join(f"  {name}: {type(part).__name__}" for name, part in self.components.items())
        return f"{type(self).__name__} ({self.dtype}, {self.device})\n{parts}"
