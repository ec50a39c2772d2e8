"""How schedulers are described: their JSON config, carried from class to class, and the registry of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..core.config import Configurable, take_config
from ..core.errors import ConfigError
from ..core.notices import warn
from ..core.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from .base import Scheduler

schedulers: Registry[type[Scheduler]] = Registry("scheduler", "leandiffusion.schedulers")
"""Every scheduler by class name. Each file of this folder adds its own."""

# Settings of schedulers that are not built here but share configs with those that are: carried, not warned about.
_ELSEWHERE = {"noise_sampler_seed", "sigma_data", "sigma_schedule", "rho"}


class SchedulerSettings(Configurable):
    """A scheduler's config: reading, writing, and building one scheduler from the config of another."""

    config_name: ClassVar[str] = "scheduler_config.json"
    has_compatibles: ClassVar[bool] = True
    _deprecated_kwargs: ClassVar[list[str]] = []
    _own: frozenset[str]  # the settings of this class, without those that its config merely carries

    @property
    def compatibles(self) -> list[type[Any]]:
        """Every scheduler class: each can be built from the config of any other."""
        return [schedulers.get(name) for name in schedulers]

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | str | Path, return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """Build from the config of this or any other scheduler, with `overrides` of this class's own settings.

        Settings that only other schedulers have are carried in `.config`, so that going back restores them; those
        that the other scheduler had left at its default take this class's default. Keys that no scheduler knows give
        a warning. Raises ConfigError for an override that this class does not have; with `return_unused_kwargs` the
        result is (scheduler, those and the carried settings) instead.
        """
        config = take_config(cls, config, overrides)
        own = cls.config_keys()
        unused = {key: value for key, value in overrides.items() if key not in own}
        if not return_unused_kwargs:
            for key in unused:
                hint = did_you_mean(key, own)
                raise ConfigError(f"{cls.__name__} has no setting {key!r}.{hint} It has: {', '.join(sorted(own))}.")
        unset = config.get("_use_default_values", ())
        values = {key: value for key, value in config.items() if key not in unset and key != "_use_default_values"}
        values |= {key: value for key, value in overrides.items() if key in own}
        built = cls(**{key: value for key, value in values.items() if key in own})
        carried = {key: value for key, value in values.items() if key not in own and key != "_class_name"}
        _warn_unknown(cls, [key for key in carried if not key.startswith("_")])
        built._amend(**carried)
        return (built, {**unused, **carried}) if return_unused_kwargs else built

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        *,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Any:
        """Build from the `scheduler_config.json` in a folder, or in its `subfolder`, or at a hub id.

        `overrides` and `return_unused_kwargs` as in `from_config`.

        Raises CheckpointNotFound when there is none, MalformedFile when it is not a JSON object.
        """
        config = cls.load_config(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.from_config(config, return_unused_kwargs, **overrides)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False) -> None:
        """Write `save_directory`/scheduler_config.json, which diffusers reads too.

        ConfigError for `push_to_hub=True`: nothing is sent anywhere by this package.
        """
        if push_to_hub:
            raise ConfigError("push_to_hub=True: save the folder, then run `huggingface-cli upload REPO FOLDER`.")
        self.save_config(save_directory)

    def _written(self) -> dict[str, Any]:
        values = {key: value for key, value in self.config.items() if key != "_use_default_values"}
        if isinstance(values.get("trained_betas"), np.ndarray | torch.Tensor):
            values["trained_betas"] = values["trained_betas"].tolist()
        return {**values, "_class_name": type(self).__name__}

    def _amend(self, **values: Any) -> None:
        self.register_to_config(**values)

    def _note_defaults(self) -> None:
        """Note the settings that the caller left out, as diffusers does: another class gives these its own defaults."""
        self._own = frozenset(self.config_keys())
        if unset := sorted(self._own - self._passed):
            self._amend(_use_default_values=unset)

    def _asks(self, key: str) -> bool:
        """Whether this class has the switch `key` and it is on."""
        return key in self._own and bool(self.config[key])


def _warn_unknown(cls: type[SchedulerSettings], keys: list[str]) -> None:
    known = _ELSEWHERE.union(*(schedulers.get(name).config_keys() for name in schedulers)) if keys else set()
    unknown = sorted(set(keys) - known)
    if unknown:
        warn(f"{cls.__name__}: no scheduler has a setting {', '.join(unknown)}; ignored. Check {cls.config_name}.")
