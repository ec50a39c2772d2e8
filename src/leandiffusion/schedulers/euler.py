"""Euler steps on the probability flow ODE: Karras et al., arXiv 2206.00364, algorithm 2 without its correction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.wording import show
from .base import full_precision, step_result
from .noise import Generators, randn
from .schedule import check_choice
from .settings import schedulers
from .sigma import UNSCALED, SigmaScheduler


class EulerDiscreteScheduler(SigmaScheduler):
    """Euler, optionally with churned noise. Settings and defaults as in diffusers' class."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"euler": {}, "euler-karras": {"use_karras_sigmas": True}}

    prediction_types = ("epsilon", "v_prediction", "sample", "original_sample")

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        super().__init__()
        self._place(self._float_timesteps(num_train_timesteps, spacing="linspace"), None, torch.float32)

    def _check(self) -> None:
        super()._check()
        check_choice("interpolation_type", self.config.interpolation_type, ("linear", "log_linear"))
        check_choice("timestep_type", self.config.timestep_type, ("discrete", "continuous"))

    @property
    def _continuous(self) -> bool:
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Lay out a schedule from exactly one of: a number of steps, `timesteps`, or `sigmas` with the final one.

        Raises ConfigError for none or several of them, for steps outside 1 … num_train_timesteps, and for `timesteps`
        together with a setting that shapes the sigmas itself.
        """
        if sigmas is not None:
            if num_inference_steps is not None or timesteps is not None:
                raise ConfigError("sigmas and num_inference_steps or timesteps were given: pass one of them.")
            if len(sigmas) < 2:
                raise ConfigError(f"sigmas={show(list(sigmas))}: pass each step's level and the one after the last.")
            table = np.array(sigmas, dtype=np.float32)
            if not np.isfinite(table).all() or not (table[:-1] > 0).all() or table[-1] < 0:
                raise ConfigError(
                    f"sigmas={show(list(sigmas))}: each must be finite and above 0, only the last, after all steps, "
                    "may be 0. Leave out the others that are."
                )
            t = self._timesteps_of(table[:-1])
        elif timesteps is not None:
            if self._continuous:
                raise ConfigError("timestep_type='continuous' takes its timesteps from sigmas: pass sigmas instead.")
            table, t = self._layout(self._custom_timesteps(num_inference_steps, timesteps).astype(np.float32))
        elif num_inference_steps is not None:
            table, t = self._layout(self._float_timesteps(self._steps_asked(num_inference_steps)))
        else:
            raise ConfigError("set_timesteps needs one of num_inference_steps, timesteps or sigmas.")
        self._set_sigmas(table)
        if self._continuous:
            t = 0.25 * self.sigmas[: len(t)].log().numpy()
        self.num_inference_steps = len(t)
        self._place(t, device, torch.float32)

    def _layout(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sigmas, timesteps) for plain timesteps `t`, as the settings shape them."""
        sigmas = self._interpolated(t)
        if self.config.interpolation_type == "log_linear":
            low, high = np.log(self._train_sigmas[0]), np.log(self._train_sigmas[-1])
            sigmas = torch.linspace(float(high), float(low), len(t) + 1).exp().numpy()
        shaped = self._shaped(sigmas, len(t))
        if shaped is not None:
            sigmas, t = shaped, self._timesteps_of(shaped)
        return np.append(sigmas, self._final_sigma()), t

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x at the next sigma from x (B, C, H, W), after raising its noise by gamma where `s_churn` asks for it."""
        if not self._scaled:
            warnings.warn(UNSCALED, stacklevel=2)
        i = self._current_index(timestep)
        sigma, sigma_next = self._sigmas[i], self._sigmas[i + 1]
        gamma = min(s_churn / (len(self._sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        sigma_hat = sigma * (gamma + 1)

        x, output = full_precision(sample, model_output)
        if gamma > 0:
            like = model_output
            noise = randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            x = x + s_noise * math.sqrt(sigma_hat**2 - sigma**2) * noise
        # A v-prediction is defined at the sigma that the model was called with.
        x0 = self._predict_denoised(output, x, sigma_hat if self.config.prediction_type == "epsilon" else sigma)
        d = (x - x0) / sigma_hat
        self._step_index = i + 1
        return step_result(x + (sigma_next - sigma_hat) * d, x0, sample, return_dict)


schedulers.add("EulerDiscreteScheduler", EulerDiscreteScheduler)
