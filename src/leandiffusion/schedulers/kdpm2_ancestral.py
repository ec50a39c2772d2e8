"""DPM2 steps that go below the next sigma and add fresh noise up to it, as in k-diffusion's sample_dpm_2_ancestral."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from .base import step_result
from .kdpm2 import MidpointScheduler, doubled
from .noise import Generators, randn
from .settings import schedulers


class KDPM2AncestralDiscreteScheduler(MidpointScheduler):
    """Ancestral DPM2. Settings and defaults as in diffusers' class; 'sample' predictions work here too."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"dpm2-a": {}, "dpm2-a-karras": {"use_karras_sigmas": True}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        super().__init__()
        self.set_timesteps(num_train_timesteps)

    def _middles(self, ends: torch.Tensor) -> torch.Tensor:
        sigma, sigma_next = ends[:-1], ends[1:]
        up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        down = (sigma_next**2 - up**2) ** 0.5  # up^2 + down^2 = sigma_next^2
        middles = torch.lerp(sigma.log(), down.log(), 0.5).exp()
        middles[-1] = 0.0
        none = ends[-1:]
        self.sigmas_up, self.sigmas_down, self.sigmas_interpol = (
            doubled(torch.cat([table, none])) for table in (up, down, middles)
        )
        self._up, self._down = tuple(up.tolist()), tuple(down.tolist())
        return middles

    def _target(self, i: int) -> float:
        return self._down[i // 2]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The middle of a step from x (B, C, H, W) on its first call; on its second, the step's end, with noise from
        `generator`."""
        halfway = not self.state_in_first_order
        prev, x0, i = self._step(model_output, timestep, sample)
        if halfway:
            like = model_output
            noise = randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            prev = prev + self._up[i // 2] * noise
        return step_result(prev, x0, sample, return_dict)


schedulers.add("KDPM2AncestralDiscreteScheduler", KDPM2AncestralDiscreteScheduler)
