"""Pictures of a drawing that is under way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..run.decoding import decode
from ..run.inputs import check_count
from ..schedulers.sigma import LogSNRScheduler, SigmaScheduler
from .images import check_output_type, to_output


class Preview:
    """A `callback_on_step_end` that shows the picture as it is after every `every` steps.

    `vae` decodes it: an AutoencoderTiny, which takes little time. `show(step, images)` gets the step, from 0, and what
    `output_type` says, Pillow images unless given. With `longest`, latents of a longer side are averaged down to that
    first: pictures are smaller then, a little soft, and take as little time and memory as small ones. Early pictures
    are mostly noise, since it is the noisy latents that are decoded. What is drawn stays the same to the last bit.
    """

    def __init__(
        self, vae: Any, show: Callable[[int, Any], object], *, every: int = 1, output_type: str = "pil",
        longest: int | None = None,
    ) -> None:  # fmt: skip
        check_output_type(output_type)
        if not callable(show) or not hasattr(vae, "decode"):
            raise ConfigError(
                f"Preview takes a VAE and a function, such as Preview(vae, lambda step, images: …); found a "
                f"{type(vae).__name__} and a {type(show).__name__}."
            )
        check_count("every", every)
        if longest is not None:
            check_count("longest", longest)
        self.vae, self.show, self.every, self.output_type, self.longest = vae, show, every, output_type, longest

    @torch.no_grad()
    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a pipeline calls after each step; changes nothing."""
        if (step + 1) % self.every == 0:
            latents = of_unit_variance(pipe.scheduler, tensors["latents"]).to(self.vae.device)
            if self.longest is not None:
                latents = averaged(latents, self.longest)
            self.show(step, to_output(decode(self.vae, latents), self.output_type))
        return {}


def averaged(latents: Tensor, longest: int) -> Tensor:
    """Latents (B, C, h, w) with neither side longer than that, each the mean of those that it stands for."""
    height, width = latents.shape[-2:]
    over = max(height, width) / longest
    if over <= 1:
        return latents
    return F.interpolate(latents, size=(max(1, round(height / over)), max(1, round(width / over))), mode="area")


def of_unit_variance(scheduler: Any, latents: Tensor) -> Tensor:
    """Latents between two steps (B, C, h, w) as the VAE knows them: some schedulers keep x_0 + sigma noise."""
    if not isinstance(scheduler, SigmaScheduler) or isinstance(scheduler, LogSNRScheduler):
        return latents
    return latents / math.hypot(float(scheduler.sigmas[scheduler.step_index]), 1.0)
