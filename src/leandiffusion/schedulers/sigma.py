"""Bases of the schedulers that walk down a table of noise levels sigma.

`SigmaScheduler` keeps the state x = x_0 + sigma eps (k-diffusion's form). `LogSNRScheduler` keeps the training form
x = alpha x_0 + sigma' eps with alpha = 1 / sqrt(sigma^2 + 1), sigma' = sigma alpha, and lambda = log(alpha / sigma').
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..core.errors import ConfigError
from .base import NotInSchedule, Scheduler
from .schedule import (
    beta_sigmas,
    check_choice,
    exponential_sigmas,
    karras_sigmas,
    sigma_to_t,
    sigmas_of,
    spaced_timesteps,
)

UNSCALED = "step without scale_model_input: the model saw an input of the wrong variance. Call it on each step's input."
_SHAPES = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
}


class SigmaScheduler(Scheduler):
    """State x = x_0 + sigma eps. `sigmas` (steps + 1,) float32 on the CPU ends with the noise level of the result."""

    def _check(self) -> None:
        super()._check()
        shapes = [key for key in _SHAPES if self._asks(key)]
        if len(shapes) > 1:
            raise ConfigError(f"{' and '.join(shapes)} are both set: each is a whole sigma schedule, so choose one.")
        if "final_sigmas_type" in self._own:
            check_choice("final_sigmas_type", self.config.final_sigmas_type, ("zero", "sigma_min"))

    def _set_alphas_cumprod(self, abar: torch.Tensor) -> None:
        if self._asks("rescale_betas_zero_snr"):
            abar = abar.clone()
            abar[-1] = 2**-24  # keeps the first sigma finite (4096)
        super()._set_alphas_cumprod(abar)
        if abar[-1] == 0:
            raise ConfigError(
                f"{type(self).__name__} needs a finite sigma at the last training step, where these betas leave no "
                "signal: set rescale_betas_zero_snr=True where it is known, or use DDIMScheduler."
            )
        self._train_sigmas = sigmas_of(abar)
        self._set_sigmas(np.append(self._train_sigmas[::-1], 0.0))

    def _set_sigmas(self, sigmas: np.ndarray) -> None:
        self.sigmas = torch.from_numpy(sigmas.astype(np.float32))
        self._sigmas: tuple[float, ...] = tuple(self.sigmas.tolist())

    def _restart(self) -> None:
        super()._restart()
        self._scaled = False

    @property
    def init_noise_sigma(self) -> float | torch.Tensor:
        """The first sigma, as a scalar on the CPU; with 'leading' spacing that of the signal and noise together."""
        highest = max(self._sigmas)
        alone = self.config.timestep_spacing in ("linspace", "trailing")
        return torch.tensor(highest if alone else math.hypot(highest, 1.0))

    @property
    def is_scale_input_called(self) -> bool:
        """Whether this run's first input was scaled."""
        return self._scaled

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """`sample` / sqrt(sigma^2 + 1): unit variance, as in training."""
        if timestep is None:
            raise ConfigError("scale_model_input(sample, timestep): this scheduler scales by the timestep's sigma.")
        self._scaled = True
        return sample / math.hypot(self._sigmas[self._current_index(timestep)], 1.0)

    def _float_timesteps(self, steps: int, trained: int | None = None, spacing: str | None = None) -> np.ndarray:
        """Evenly spaced timesteps, possibly between whole ones, in the float32 that the model is given."""
        c = self.config
        span: int = trained or c.num_train_timesteps
        return spaced_timesteps(spacing or c.timestep_spacing, steps, span, offset=c.steps_offset).astype(np.float32)

    def _interpolated(self, timesteps: np.ndarray) -> np.ndarray:
        """sigma at (fractional) timesteps, float64."""
        return np.interp(timesteps, np.arange(len(self._train_sigmas)), self._train_sigmas)

    def _shaped(self, sigmas: np.ndarray, steps: int) -> np.ndarray | None:
        """The Karras, exponential or beta schedule between the ends of descending `sigmas`; None if none is asked.

        The settings `sigma_min` and `sigma_max` move the ends, also when they come from another scheduler's config.
        """
        for key, shape in _SHAPES.items():
            if self._asks(key):
                low, high = self.config.get("sigma_min"), self.config.get("sigma_max")
                low, high = sigmas[-1] if low is None else low, sigmas[0] if high is None else high
                return shape(float(low), float(high), steps)
        return None

    def _timesteps_of(self, sigmas: np.ndarray, precision: Any = np.float64) -> np.ndarray:
        return sigma_to_t(sigmas, np.log(self._train_sigmas), precision)

    def _custom_timesteps(self, num_inference_steps: int | None, timesteps: Any) -> np.ndarray:
        """A caller's own timesteps as float64; ConfigError unless they are given alone and no sigma shape is asked."""
        if num_inference_steps is not None:
            raise ConfigError(f"num_inference_steps={num_inference_steps} and custom timesteps were given: pass one.")
        clash = [key for key in (*_SHAPES, "use_lu_lambdas") if self._asks(key)]
        if clash:
            raise ConfigError(f"custom timesteps and {clash[0]}=True both set the schedule: turn one off.")
        if len(timesteps) == 0:
            raise ConfigError("timesteps is empty: pass at least one.")
        return np.array(timesteps, dtype=np.float64)

    def _final_sigma(self) -> float:
        """Noise level after the last step."""
        last = "final_sigmas_type" in self._own and self.config.final_sigmas_type == "sigma_min"
        return float(self._train_sigmas[0]) if last else 0.0

    def _predict_denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """x_0 from the model's output for `scale_model_input(x)`, where x = x_0 + sigma eps."""
        if self.config.prediction_type == "epsilon":
            return x - sigma * output
        if self.config.prediction_type == "v_prediction":
            return x / (sigma**2 + 1) - output * (sigma / math.hypot(sigma, 1.0))
        return output

    def _noise_levels(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """sigma of each of `timesteps` (B,), float32, shaped to multiply `like` (B, ...).

        A run with a `begin_index` has one level for the whole batch: that of its position.
        """
        if self._begin_index is None:
            whole = self._offset(timesteps) if timesteps.numel() == 1 else None
            values = timesteps.flatten().tolist() if whole is None else []
            places = [self.index_for_timestep(value) for value in values] if whole is None else [whole]
        else:
            places = [self._begin_index if self._step_index is None else self._step_index] * timesteps.numel()
        return self.sigmas[places].to(like.device).reshape(-1, *(1,) * (like.ndim - 1))

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x = x_0 + sigma noise, for samples (B, ...) and timesteps (B,) or (1,) of the schedule."""
        sigma = self._noise_levels(timesteps, original_samples)
        return (original_samples + sigma * noise).to(original_samples.dtype)


class LogSNRScheduler(SigmaScheduler):
    """State x = alpha x_0 + sigma' eps, stepped in lambda = log(alpha / sigma') = -log(sigma)."""

    @property
    def init_noise_sigma(self) -> float | torch.Tensor:
        """1: the state has unit variance throughout."""
        return 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """`sample` itself."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x = alpha x_0 + sigma' noise, for samples (B, ...) and timesteps (B,) or (1,) of the schedule."""
        sigma = self._noise_levels(timesteps, original_samples)
        alpha = (sigma**2 + 1).rsqrt()
        return (alpha * original_samples + sigma * alpha * noise).to(original_samples.dtype)

    def _lay_out(self, steps: int, device: torch.device | str | None, *, to_zero: bool) -> None:
        """A schedule of whole timesteps, plain or shaped, which ends without noise or at the lowest sigma."""
        c = self.config
        shaped = self._shaped(self._train_sigmas[::-1], steps)
        if shaped is None:
            spare = 0 if c.timestep_spacing == "trailing" else 1
            t = spaced_timesteps(
                c.timestep_spacing, steps, c.num_train_timesteps, offset=c.steps_offset, spare=spare
            ).round()
            table, lowest = self._interpolated(t), float(self._train_sigmas[0])
        else:
            t, table = self._timesteps_of(shaped), shaped
            t, lowest = t.round() if c.use_karras_sigmas else t, float(shaped[-1])
        self._set_sigmas(np.append(table, 0.0 if to_zero else lowest))
        self.num_inference_steps = len(t)
        self._place(t, device, torch.int64)

    def _alpha_sigma_lambda(self, index: int) -> tuple[float, float, float]:
        """(alpha, sigma', lambda) at `sigmas[index]`; lambda is infinite where no noise is left."""
        sigma = self._sigmas[index]
        alpha = 1 / math.hypot(sigma, 1.0)
        return alpha, sigma * alpha, -math.log(sigma) if sigma > 0 else math.inf

    @property
    def alpha_t(self) -> torch.Tensor:
        """(training steps,) alpha of each training step."""
        return self.alphas_cumprod.sqrt()

    @property
    def sigma_t(self) -> torch.Tensor:
        """(training steps,) sigma' of each training step."""
        return (1 - self.alphas_cumprod).sqrt()

    @property
    def lambda_t(self) -> torch.Tensor:
        """(training steps,) lambda of each training step, descending."""
        return self.alpha_t.log() - self.sigma_t.log()

    def index_for_timestep(self, timestep: torch.Tensor | float, schedule_timesteps: torch.Tensor | None = None) -> int:
        """Index of `timestep` as in every scheduler; that of the last step, as in diffusers, when it is not there."""
        try:
            return super().index_for_timestep(timestep, schedule_timesteps)
        except NotInSchedule:
            return len(self._values) - 1

    def _distinct(self, i: int, order: int) -> int:
        """`order`, lowered where step `i` or one before it stays at its sigma: no slope lies between equals."""
        for k in range(order):
            if self._sigmas[i - k] == self._sigmas[i - k + 1]:
                return max(k, 1)
        return order

    def _refuse_flow(self, mu: float | None = None) -> None:
        """Flow matching is another family of models: ConfigError naming the setting that asks for it."""
        asked = [f"{key}=True" for key in ("use_flow_sigmas", "use_dynamic_shifting") if self._asks(key)]
        asked += [] if mu is None else [f"mu={mu}"]
        if asked:
            raise ConfigError(f"{asked[0]} is not supported: it belongs to flow-matching models.")
