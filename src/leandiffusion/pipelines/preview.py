"""Pictures of a drawing that is under way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..run.decoding import decode
from ..run.inputs import check_count
from ..schedulers.sigma import LogSNRScheduler, SigmaScheduler
from .images import to_output


class Preview:
    """A `callback_on_step_end` that shows the picture as it is after every `every` steps.

    `vae` decodes it: an AutoencoderTiny, which takes little time. `show(step, images)` gets the step, from 0, and what
    `output_type` says, Pillow images unless given. Early pictures are mostly noise, since it is the noisy latents that
    are decoded. What is drawn stays the same to the last bit.
    """

    def __init__(
        self, vae: Any, show: Callable[[int, Any], object], *, every: int = 1, output_type: str = "pil"
    ) -> None:
        check_count("every", every)
        self.vae, self.show, self.every, self.output_type = vae, show, every, output_type

    @torch.no_grad()
    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a pipeline calls after each step; changes nothing."""
        if (step + 1) % self.every == 0:
            latents = of_unit_variance(pipe.scheduler, tensors["latents"]).to(self.vae.device)
            self.show(step, to_output(decode(self.vae, latents), self.output_type))
        return {}


def of_unit_variance(scheduler: Any, latents: Tensor) -> Tensor:
    """Latents between two steps (B, C, h, w) as the VAE knows them: some schedulers keep x_0 + sigma noise."""
    if not isinstance(scheduler, SigmaScheduler) or isinstance(scheduler, LogSNRScheduler):
        return latents
    return latents / math.hypot(float(scheduler.sigmas[scheduler.step_index]), 1.0)
