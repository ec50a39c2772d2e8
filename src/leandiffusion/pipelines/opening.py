"""What opening a pipeline has in common, wherever its components come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from ..core.errors import ConfigError
from ..core.registry import did_you_mean
from ..device.names import check_device, default_device
from ..plan.budget import sizes_of
from ..plan.make import check_allow
from ..techniques import Technique
from ..techniques.offloading import opening_offload
from ..techniques.stack import Stack
from .given import check_given


@dataclass(frozen=True)
class Placing:
    """Where an opened pipeline's weights go: to `device`, or travelling by `offload`, or as a plan for `memory` says.

    With `memory` the plan is for `device`, and weights stay in their files until it is made.
    """

    device: torch.device | None
    offload: Technique | None = None
    memory: Any = None
    allow: str = "exact"

    @classmethod
    def of(cls, offload: Any, device: Any, memory: Any, allow: str) -> Self:
        """What the arguments of opening ask for. ConfigError for wrong ones, and for two that mean the same."""
        where = None if device is None else check_device(device)
        if memory is None:
            travel, where = opening_offload(offload, where)
            return cls(where, travel)
        if offload is not None:
            raise ConfigError("memory= chooses whether weights travel, and offload= too: give one of them.")
        check_allow(allow)
        where = where or default_device()
        sizes_of(memory, where)  # what is wrong with it is told before anything is opened
        return cls(where, None, memory, allow)

    @property
    def now(self) -> torch.device | None:
        """Where weights are read to while opening; None leaves that to later."""
        return self.device if self.memory is None else None


class Opening:
    """Mixin of the pipelines: which components and settings a class takes, and what is done once they are there."""

    component_names: ClassVar[tuple[str, ...]] = ()
    device: Any
    dtype: Any
    notice: Callable[[str], str | None] | None
    """What to tell a user about a prompt before drawing it, if anything."""
    _opened_from: str | None
    _stack: Stack

    def _opened(self: Any, placing: Placing) -> Any:
        """This pipeline, just opened, with its weights travelling if that was asked for."""
        if placing.offload is not None:
            self._stack.enable(placing.offload, "asked for when opening")
        if placing.memory is not None:
            self._keep_within(placing.memory, placing.allow, placing.device)
        return self

    @classmethod
    def _check_fit(
        cls, source: str, there: Mapping[str, str | None], given: Mapping[str, Any], made_for: str = ""
    ) -> None:
        """ConfigError when the components that are there, by name, are more or less than this class runs.

        `made_for` is the class that the checkpoint names, if any.
        """
        parameters = inspect.signature(cls.__init__).parameters
        needed = [name for name in cls.component_names if parameters[name].default is inspect.Parameter.empty]
        surplus = [name for name, part in there.items() if part is not None and name not in cls.component_names]
        missing = [name for name in needed if name not in there and name not in given]
        if surplus or missing:
            wrong = f"has {', '.join(surplus)}" if surplus else f"lacks {', '.join(missing)}"
            ways = [] if made_for == cls.__name__ else ["open it with open_pipeline, which picks the class"]
            if missing:
                ways.append(f"pass what is missing by name: {'=…, '.join(missing)}=…")
            elif not ways:
                ways.append(f"take {', '.join(surplus)} out of its model_index.json")
            fix = ", or ".join(ways)
            raise ConfigError(f"{source} {wrong}, so {cls.__name__} cannot run it: {fix}.")

    @classmethod
    def _setting_names(cls) -> list[str]:
        parameters = list(inspect.signature(cls.__init__).parameters)
        return [name for name in parameters if name != "self" and name not in cls.component_names]

    @classmethod
    def _take_settings(cls, components: dict[str, Any], opening: Callable[..., Any]) -> dict[str, Any]:
        """The plain settings, taken out of the keywords that `opening` got. ConfigError unless components remain."""
        settings = {name: components.pop(name) for name in cls._setting_names() if name in components}
        known = [*cls.component_names, *inspect.signature(opening).parameters, *cls._setting_names()]
        for name in components:
            if name not in cls.component_names:
                raise ConfigError(
                    f"{cls.__name__} does not know the argument {name!r}.{did_you_mean(name, known)} "
                    f"Its components: {', '.join(cls.component_names)}."
                )
        check_given(cls.__name__, components, paths=("vae",))
        return settings
