"""The timesteps of one drawing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


def order_of(scheduler: Any) -> int:
    """How often the scheduler has the UNet called in a step as users count them."""
    return getattr(scheduler, "order", 1)


def steps_of(calls: int, order: int) -> int:
    """How many steps so many calls of the UNet are; the last, or the first, may have fewer."""
    return math.ceil(calls / order)


def accepted_by(step: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes by name."""
    accepted = inspect.signature(step).parameters
    return {name: value for name, value in arguments.items() if name in accepted}


@dataclass(frozen=True)
class Part:
    """Which part of a schedule is run on a picture: its last `strength` in [0, 1], or what follows the share `start`
    in (0, 1) of the training schedule, where a first model stopped.

    `steps` is the number of steps asked for; None where the caller laid out the schedule.
    """

    strength: float
    steps: int | None = None
    start: float | None = None

    def of(self, scheduler: Any, laid_out: Tensor) -> Tensor:
        """Those of the timesteps `laid_out` that are run; the scheduler begins there. ConfigError if none are."""
        first = self._first_after(scheduler) if self.start is not None else self._first(scheduler)
        nothing = self.start is None and int(self._steps(scheduler) * self.strength) < 1
        if nothing or first >= len(laid_out):
            raise ConfigError(self._nothing_left(scheduler))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return laid_out[first:]

    def _steps(self, scheduler: Any) -> int:
        return len(scheduler.timesteps) if self.steps is None else self.steps

    def _first(self, scheduler: Any) -> int:
        steps = self._steps(scheduler)
        return (steps - min(int(steps * self.strength), steps)) * getattr(scheduler, "order", 1)

    def _first_after(self, scheduler: Any) -> int:
        """A step of a scheduler of the second order is two timesteps, the first's one: it is never cut in halves."""
        train = scheduler.config.num_train_timesteps
        left = int((scheduler.timesteps < round(train - self.start * train)).sum())  # type: ignore[operator]
        if getattr(scheduler, "order", 1) == 2 and left % 2 == 0:
            left += 1
        return len(scheduler.timesteps) - left

    def _nothing_left(self, scheduler: Any) -> str:
        if self.start is not None:
            return f"denoising_start={self.start} leaves none of the steps: lower it, or raise denoising_end."
        steps = self._steps(scheduler)
        if int(steps * self.strength) >= 1:
            return f"strength={self.strength} begins where denoising_end already stopped: raise one of them."
        least = -(-100 // steps) / 100
        return (
            f"strength={self.strength} of {steps} steps leaves none: raise it to {least:g} or more, or ask for more "
            "steps."
        )
