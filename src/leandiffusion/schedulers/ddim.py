"""Denoising diffusion implicit models: Song et al., arXiv 2010.02502."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..core.errors import ConfigError
from .base import Scheduler, full_precision, step_result
from .noise import Generators, randn
from .schedule import spaced_timesteps
from .settings import schedulers


class DDIMScheduler(Scheduler):
    """DDIM; `step(..., eta=1)` makes it as stochastic as DDPM. Settings and defaults as in diffusers' class."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"ddim": {}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        super().__init__()
        self._final_abar = 1.0 if set_alpha_to_one else self._abar[0]

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """abar after the last step, a scalar."""
        return torch.tensor(self._final_abar)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) timesteps; ConfigError outside that range."""
        steps = self._steps_asked(num_inference_steps)
        c = self.config
        t = spaced_timesteps(c.timestep_spacing, steps, c.num_train_timesteps, offset=c.steps_offset).round()
        self.num_inference_steps = steps
        self._place(t, device, torch.int64)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """x_{t-1} from x_t (B, C, H, W), equation 12; `eta` in [0, 1] scales the noise sigma_t of equation 16.

        Noise comes from `variance_noise` or is drawn from `generator`; giving both is a ConfigError.
        """
        stride = self.config.num_train_timesteps // self._require_schedule()
        if not 0 <= eta <= 1:
            raise ConfigError(f"eta={eta}: pass 0 (deterministic DDIM) to 1 (as much noise as DDPM).")
        t = self._train_step(timestep)
        abar, abar_prev = self._abar[t], self._abar[t - stride] if t >= stride else self._final_abar
        alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
        if alpha == 0 and self.config.prediction_type == "epsilon":
            raise ConfigError(
                "rescale_betas_zero_snr leaves no signal at the first timestep, from which an epsilon prediction can "
                "not give x_0: use prediction_type='v_prediction' or rescale_betas_zero_snr=False."
            )

        x, output = full_precision(sample, model_output)
        x0 = self._clip(self._predict_x0(output, x, alpha, sigma))
        eps = (x - alpha * x0) / sigma if use_clipped_model_output else self._predict_eps(output, x, alpha, sigma)
        std = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        prev = math.sqrt(abar_prev) * x0 + math.sqrt(max(1 - abar_prev - std**2, 0.0)) * eps
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ConfigError("both generator and variance_noise were given: pass one of them.")
            if variance_noise is None:
                like = model_output
                variance_noise = randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            prev = prev + std * variance_noise
        return step_result(prev, x0, sample, return_dict)


schedulers.add("DDIMScheduler", DDIMScheduler)
