"""Text to image: noise to begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...schedulers import randn
from ...schedulers.noise import Generators
from ..finite import check_finite
from .base import Task

if TYPE_CHECKING:
    from ..run import Run


@dataclass(frozen=True)
class TextToImage(Task):
    """`latents` is the caller's own noise of variance 1; without it noise is drawn from `generator`."""

    generator: Generators = None
    latents: Tensor | None = None

    def first_latents(self, run: Run) -> Tensor:
        """Noise at the scheduler's scale, drawn as diffusers draws it. NonFiniteError for NaN or infinity in it."""
        device, dtype, noise = run.model.device, run.model.dtype, self.latents
        if noise is None:
            noise = randn(run.shape, generator=self.generator, device=device, dtype=dtype)
        scaled = noise.to(device, dtype) * run.scheduler.init_noise_sigma
        check_finite("the starting latents", scaled, "pass noise of variance 1, or leave latents out.")
        return scaled
