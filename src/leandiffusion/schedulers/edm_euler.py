"""Euler steps with the preconditioning of EDM: Karras et al., arXiv 2206.00364, section 5 and table 1.

The model was trained on noise levels themselves, with no betas: c_in scales its input, c_noise = log(sigma) / 4 is its
timestep, and x_0 = c_skip x + c_out output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.wording import show
from .base import step_result
from .euler import Churn, EulerSteps
from .noise import Generators
from .schedule import check_choice, karras_sigmas
from .settings import schedulers


class EDMEulerScheduler(EulerSteps):
    """Euler for models trained as EDM. Settings and defaults as in diffusers' class.

    It has no short name for the command line: a model trained with betas draws noise with it, and one trained as EDM
    names it in its own scheduler config.
    """

    prediction_types = ("epsilon", "v_prediction")

    def __init__(
        self,
        sigma_min: float | None = 0.002,
        sigma_max: float | None = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
    ) -> None:
        super().__init__()

    def _check(self) -> None:
        for key, usual in (("sigma_min", 0.002), ("sigma_max", 80.0)):
            if self.config[key] is None:  # another scheduler's: it takes them from its betas
                self._amend(**{key: usual})
        super()._check()
        c = self.config
        check_choice("sigma_schedule", c.sigma_schedule, ("karras", "exponential"))
        if not 0 < c.sigma_min < c.sigma_max < math.inf:
            raise ConfigError(
                f"sigma_min={c.sigma_min} and sigma_max={c.sigma_max}: the noise levels go down from the second to the "
                "first, so that 0 < sigma_min < sigma_max must hold."
            )
        if not c.sigma_data > 0 or not c.rho > 0:
            raise ConfigError(f"sigma_data={c.sigma_data} and rho={c.rho}: both must be above 0.")

    def _lay_out_training(self) -> None:
        self._adopt(self._levels(self.config.num_train_timesteps + 1), None)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) steps, or those at the given noise levels `sigmas`.

        The level after the last follows from `final_sigmas_type`. Raises ConfigError for both or neither argument, and
        for levels that do not fall. In diffusers `sigmas` are not levels but places on its formula's ramp from 0 to 1.
        """
        if num_inference_steps is not None and sigmas is None:
            levels = self._levels(self._steps_asked(num_inference_steps))
        elif sigmas is not None and num_inference_steps is None:
            levels = _own_levels(sigmas)
        else:
            raise ConfigError("set_timesteps needs one of num_inference_steps or sigmas, and not both.")
        self._adopt(levels, device)
        self.num_inference_steps = len(levels)

    def _levels(self, steps: int) -> torch.Tensor:
        """(steps,) falling noise levels from sigma_max to sigma_min, float32."""
        c = self.config
        if c.sigma_schedule == "exponential":  # in torch's float32, as diffusers has it
            return torch.linspace(math.log(c.sigma_max), math.log(c.sigma_min), steps).exp()
        return torch.from_numpy(karras_sigmas(c.sigma_min, c.sigma_max, steps, c.rho)).float()

    def _adopt(self, levels: torch.Tensor, device: torch.device | str | None) -> None:
        last = levels[-1:] if self.config.final_sigmas_type == "sigma_min" else torch.zeros(1)
        self._set_sigmas(torch.cat([levels, last]).numpy())
        self._place(self.precondition_noise(levels).numpy(), device, torch.float32)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of noise of sigma_max on data of unit variance."""
        return math.hypot(self.config.sigma_max, 1.0)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """c_in `sample` at the noise level of `timestep`: unit variance, as in training."""
        if timestep is None:
            raise ConfigError("scale_model_input(sample, timestep): this scheduler scales by the timestep's sigma.")
        self._scaled = True
        return self.precondition_inputs(sample, self._sigmas[self._current_index(timestep)])

    def precondition_inputs(self, sample: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """c_in `sample`, where c_in = 1 / sqrt(sigma^2 + sigma_data^2)."""
        return sample / (sigma**2 + self.config.sigma_data**2) ** 0.5

    def precondition_noise(self, sigma: float | torch.Tensor) -> torch.Tensor:
        """c_noise = log(sigma) / 4, the model's timestep, float32; (1,) for a number."""
        levels = sigma if isinstance(sigma, torch.Tensor) else torch.tensor([sigma])
        return 0.25 * levels.log()

    def precondition_outputs(
        self, sample: torch.Tensor, model_output: torch.Tensor, sigma: float | torch.Tensor
    ) -> torch.Tensor:
        """x_0 = c_skip x + c_out output for x (B, C, H, W) of noise `sigma`."""
        data = self.config.sigma_data
        variance = sigma**2 + data**2
        c_skip, c_out = data**2 / variance, sigma * data / variance**0.5
        if self.config.prediction_type == "v_prediction":
            c_out = -c_out
        return c_skip * sample + c_out * model_output

    def _denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: float, sigma_hat: float) -> torch.Tensor:
        return self.precondition_outputs(x, output, sigma_hat)

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
        pred_original_sample: torch.Tensor | None = None,
    ) -> Any:
        """x at the next sigma from x (B, C, H, W), after raising its noise by gamma where `s_churn` asks for it.

        `pred_original_sample`, if given, is taken for x_0, and `model_output` not looked at.
        """
        churn = Churn(s_churn, s_tmin, s_tmax, s_noise, generator)
        prev, x0 = self._step(model_output, timestep, sample, churn, pred_original_sample)
        return step_result(prev, x0, sample, return_dict)


def _own_levels(sigmas: Sequence[float] | torch.Tensor) -> torch.Tensor:
    levels = torch.as_tensor(np.asarray(sigmas, dtype=np.float32)).flatten()
    if len(levels) == 0 or not levels.isfinite().all() or not (levels > 0).all() or not (levels.diff() < 0).all():
        raise ConfigError(f"sigmas={show(levels.tolist())}: pass noise levels above 0, each below the one before.")
    return levels


schedulers.add("EDMEulerScheduler", EDMEulerScheduler)
