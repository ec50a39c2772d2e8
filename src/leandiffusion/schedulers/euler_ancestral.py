"""Euler steps that go below the next sigma and add fresh noise up to it, as in k-diffusion's sample_euler_ancestral."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from .base import full_precision, step_result
from .noise import Generators, randn
from .settings import schedulers
from .sigma import UNSCALED, SigmaScheduler


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Ancestral Euler. Settings and defaults as in diffusers' class; 'sample' predictions work here too."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"euler-a": {}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        super().__init__()
        self._place(self._float_timesteps(num_train_timesteps, spacing="linspace"), None, torch.float32)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) steps; ConfigError outside that range."""
        steps = self._steps_asked(num_inference_steps)
        t = self._float_timesteps(steps)
        self._set_sigmas(np.append(self._interpolated(t), 0.0))
        self.num_inference_steps = steps
        self._place(t, device, torch.float32)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x at the next sigma from x (B, C, H, W): down to sigma_down, then noise of sigma_up from `generator`."""
        if not self._scaled:
            warnings.warn(UNSCALED, stacklevel=2)
        i = self._current_index(timestep)
        sigma, sigma_next = self._sigmas[i], self._sigmas[i + 1]
        sigma_up = sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma
        sigma_down = sigma_next**2 / sigma  # sigma_up^2 + sigma_down^2 = sigma_next^2

        x, output = full_precision(sample, model_output)
        x0 = self._predict_denoised(output, x, sigma)
        d = (x - x0) / sigma
        like = model_output
        noise = randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        self._step_index = i + 1
        return step_result(x + (sigma_down - sigma) * d + sigma_up * noise, x0, sample, return_dict)


schedulers.add("EulerAncestralDiscreteScheduler", EulerAncestralDiscreteScheduler)
