"""The older arguments `callback` and `callback_steps`, turned into a `callback_on_step_end`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from ..run import inputs

OLD = ("callback", "callback_steps")


@dataclass(frozen=True)
class OldCallback:
    """Calls `callback(step, timestep, latents)` after every `every` steps, and after `newer`, if there is one."""

    callback: Callable[[int, Tensor, Tensor], Any]
    every: int
    newer: Callable[..., Any] | None
    newer_inputs: tuple[str, ...]

    @property
    def tensor_inputs(self) -> list[str]:
        """Tensors that the two want to see."""
        return list(dict.fromkeys(("latents", *self.newer_inputs)))

    def __call__(self, pipe: Any, i: int, t: Tensor, tensors: dict[str, Any]) -> Any:
        changed = None
        if self.newer is not None:
            changed = self.newer(pipe, i, t, {name: tensors[name] for name in self.newer_inputs})
        latents = changed.get("latents", tensors["latents"]) if isinstance(changed, Mapping) else tensors["latents"]
        order = getattr(pipe.scheduler, "order", 1)
        if ((i + 1) % order == 0 or i + 1 == pipe.num_timesteps) and i % self.every == 0:
            self.callback(i // order, t, latents)
        return changed


def take_old_callback(arguments: dict[str, Any]) -> None:
    """Turn `callback` and `callback_steps` among a call's keywords into a `callback_on_step_end`, with a FutureWarning.

    ConfigError for wrong ones.
    """
    given = {name: arguments.pop(name) for name in OLD if name in arguments}
    for name, value in given.items():
        if value is not None:
            warnings.warn(
                f"{name} is deprecated: pass callback_on_step_end, called as (pipe, step, timestep, tensors).",
                FutureWarning,
                stacklevel=3,  # the caller of `__call__`, past its decorator
            )
    callback, every = given.get("callback"), given.get("callback_steps")
    if every is not None:
        inputs.check_count("callback_steps", every)
    if callback is None:
        return
    if not callable(callback):
        raise ConfigError(f"callback={callback!r} cannot be called: pass a function.")
    newer = arguments.get("callback_on_step_end")
    wanted = wanted_tensors(newer, arguments.pop("callback_on_step_end_tensor_inputs", None))
    arguments["callback_on_step_end"] = OldCallback(callback, every or 1, newer, tuple(wanted))


def wanted_tensors(callback: Any, named: list[str] | None) -> list[str]:
    """Tensors that the callback wants to see; a callback object may name them itself, as `tensor_inputs`."""
    return getattr(callback, "tensor_inputs", None) or named or ["latents"]
