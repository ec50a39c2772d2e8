"""The timesteps of one drawing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError


def set_timesteps(
    scheduler: Any,
    steps: int | None,
    device: torch.device,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
    end: float | None = None,
) -> Tensor:
    """Lay out the schedule: `steps`, or the caller's own `timesteps` or `sigmas`. Returns the timesteps.

    `end` in (0, 1) leaves out those past that share of the training schedule, for a second model to go on. ConfigError
    when the scheduler does not take what is given, or `end` leaves nothing.
    """
    own = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
    for name in own:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ConfigError(f"{type(scheduler).__name__} takes no {name}: leave it out or choose another scheduler.")
    scheduler.set_timesteps(**(own or {"num_inference_steps": steps}), device=device)
    if end is None or end == 1:
        return scheduler.timesteps
    train = scheduler.config.num_train_timesteps
    kept = int((scheduler.timesteps >= round(train - end * train)).sum())
    if not kept:
        raise ConfigError(f"denoising_end={end} leaves none of the {len(scheduler.timesteps)} steps: raise it.")
    return scheduler.timesteps[:kept]


def accepted_by(step: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes by name."""
    accepted = inspect.signature(step).parameters
    return {name: value for name, value in arguments.items() if name in accepted}
