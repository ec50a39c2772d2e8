"""What a task decides of a run; the denoising loop knows nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from ..run import Run


class Task(ABC):
    """Where the first latents come from, what the UNet sees of the latents, and what happens to them after a step."""

    extra_channels: ClassVar[int] = 0
    """Channels of the UNet's input that `unet_input` adds to those of the latents."""

    def timesteps(self, scheduler: Any, laid_out: Tensor) -> Tensor:
        """Those of the schedule's timesteps `laid_out` (N,) that are run; a scheduler begins where it is told."""
        return laid_out

    @abstractmethod
    def first_latents(self, run: Run) -> Tensor:
        """Latents of `run.shape` to begin with, at the noise level of the first timestep."""

    def unet_input(self, run: Run, x: Tensor, i: int) -> Tensor:
        """What the UNet is given (B, C, h, w) for latents x (B, c, h, w) at step i, once also under guidance."""
        return run.scheduler.scale_model_input(x, run.times[i])

    def after_step(self, run: Run, x: Tensor, i: int) -> Tensor:
        """Latents x (B, c, h, w), after step i and before the callback sees them -> those to go on with."""
        return x
