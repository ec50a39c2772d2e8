"""What a task decides of a run; the denoising loop knows nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..encoding import Encoded

if TYPE_CHECKING:
    from ..run import Run

Encode = Callable[[Tensor], Encoded]
"""Pictures (n, 3, H, W) in [-1, 1] -> what the VAE makes of them."""


class Task(ABC):
    """Where the first latents come from, what the UNet sees of the latents, and what happens to them after a step."""

    extra_channels: int = 0
    """Channels of the UNet's input that `unet_input` adds to those of the latents."""

    has_pictures: bool = False
    """Whether there is something to `prepare`, which is a stage of its own: 'picture'."""

    def encodes(self, channels: int) -> int:
        """How many pictures at a time `prepare` has encoded at most, of latents with so many channels; for plans."""
        return 0

    def timesteps(self, scheduler: Any, laid_out: Tensor) -> Tensor:
        """Those of the schedule's timesteps `laid_out` (N,) that are run; a scheduler begins where it is told."""
        return laid_out

    def prepare(self, run: Run, encode: Encode) -> None:  # noqa: B027  # most have nothing to prepare
        """Before the first step: compute what needs the VAE's encoder, and keep it.

        `run.tensors` may get what callbacks are to see besides the conditioning's tensors.
        """

    @abstractmethod
    def first_latents(self, run: Run) -> Tensor:
        """Latents of `run.shape` to begin with, at the noise level of the first timestep."""

    def unet_input(self, run: Run, x: Tensor, i: int) -> Tensor:
        """What the UNet is given (B, C, h, w) for latents x (B, c, h, w) at step i, once also under guidance."""
        return run.scheduler.scale_model_input(x, run.times[i])

    def after_step(self, run: Run, x: Tensor, i: int) -> Tensor:
        """Latents x (B, c, h, w), after step i and before the callback sees them -> those to go on with."""
        return x
