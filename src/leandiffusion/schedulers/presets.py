"""Short names for schedulers, as the command line takes them: each is a class and the settings that it implies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import did_you_mean
from .base import Scheduler
from .settings import schedulers


@dataclass(frozen=True)
class Preset:
    """A scheduler class and the settings to override in the model's own scheduler config."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


class _Presets(Mapping[str, Preset]):
    """What the scheduler classes declare as `short_names`; read on the first look, since that imports them all."""

    @cached_property
    def _all(self) -> dict[str, Preset]:
        classes = [schedulers.get(name) for name in schedulers]
        return {
            short: Preset(cls.__name__, overrides)
            for cls in classes
            for short, overrides in vars(cls).get("short_names", {}).items()
        }

    def __getitem__(self, name: str) -> Preset:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


PRESETS: Mapping[str, Preset] = _Presets()


def build(name: str, config: Mapping[str, Any] | None = None) -> Scheduler:
    """The scheduler called `name`, a short name of `PRESETS` or a class name, from the model's scheduler `config`.

    Raises ConfigError with the known names for any other.
    """
    preset = PRESETS.get(name)
    if preset is None:
        if name not in schedulers:
            known = [*PRESETS, *schedulers]
            raise ConfigError(f"unknown scheduler {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
        preset = Preset(name)
    return schedulers.get(preset.class_name).from_config(config or {}, **preset.overrides)
