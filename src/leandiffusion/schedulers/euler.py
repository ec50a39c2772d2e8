"""Euler steps on the probability flow ODE: Karras et al., arXiv 2206.00364, algorithm 2 without its correction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.wording import show
from .base import full_precision, step_result
from .noise import Generators, randn
from .schedule import check_choice
from .settings import schedulers
from .sigma import UNSCALED, SigmaScheduler


class Churn(NamedTuple):
    """Noise to add before a step whose sigma lies between `low` and `high`; S_churn, S_tmin, S_tmax, S_noise there."""

    amount: float
    low: float
    high: float
    noise: float
    generator: Generators


class EulerSteps(SigmaScheduler):
    """Base of what steps as Euler does, however x_0 follows from the model's output (`_denoised`)."""

    def _step(
        self,
        prediction: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        churn: Churn,
        x0: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x at the next sigma, x_0), from `x0` if it is given."""
        if not self._scaled:
            warnings.warn(UNSCALED, stacklevel=3)
        i = self._current_index(timestep)
        sigma, sigma_next = self._sigmas[i], self._sigmas[i + 1]
        most = math.sqrt(2) - 1
        gamma = min(churn.amount / (len(self._sigmas) - 1), most) if churn.low <= sigma <= churn.high else 0.0
        sigma_hat = sigma * (gamma + 1)

        x, output = full_precision(sample, prediction)
        if gamma > 0:
            like = prediction
            noise = randn(like.shape, generator=churn.generator, device=like.device, dtype=like.dtype)
            x = x + churn.noise * math.sqrt(sigma_hat**2 - sigma**2) * noise
        x0 = self._denoised(output, x, sigma, sigma_hat) if x0 is None else x0.to(x.dtype)
        d = (x - x0) / sigma_hat
        self._step_index = i + 1
        return x + (sigma_next - sigma_hat) * d, x0

    def _denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: float, sigma_hat: float) -> torch.Tensor:
        """x_0 from the model's output for the noise `sigma`, where x was raised to `sigma_hat`."""
        raise NotImplementedError


class EulerDiscreteScheduler(EulerSteps):
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
        churn = Churn(s_churn, s_tmin, s_tmax, s_noise, generator)
        prev, x0 = self._step(model_output, timestep, sample, churn)
        return step_result(prev, x0, sample, return_dict)

    def _denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: float, sigma_hat: float) -> torch.Tensor:
        # A v-prediction is defined at the sigma that the model was called with.
        return self._predict_denoised(output, x, sigma_hat if self.config.prediction_type == "epsilon" else sigma)


schedulers.add("EulerDiscreteScheduler", EulerDiscreteScheduler)
