"""Linear multistep (Adams-Bashforth) on uneven sigmas, as in k-diffusion's sample_lms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from .base import full_precision, step_result
from .settings import schedulers
from .sigma import UNSCALED, SigmaScheduler


class LMSDiscreteScheduler(SigmaScheduler):
    """LMS of order up to 4. Settings and defaults as in diffusers' class.

    The order of a step is at most the number of slopes known: it rises from 1 also when a run starts part-way, as
    image-to-image does. diffusers there weights the few slopes it has as if the earlier ones were zero, which leaves
    part of the noise in, so pictures of runs that start part-way differ from its.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"lms": {}, "lms-karras": {"use_karras_sigmas": True}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
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

    def _restart(self) -> None:
        super()._restart()
        self.derivatives: list[torch.Tensor] = []

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) steps; ConfigError outside that range."""
        steps = self._steps_asked(num_inference_steps)
        t = self._float_timesteps(steps)
        sigmas = self._interpolated(t)
        shaped = self._shaped(sigmas, steps)
        if shaped is not None:
            sigmas, t = shaped, self._timesteps_of(shaped)
        self._set_sigmas(np.append(sigmas, 0.0))
        self.num_inference_steps = steps
        self._place(t, device, torch.float32)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Weight of the derivative `current_order` steps back: the integral, over step `t`, of its Lagrange basis.

        The polynomial is integrated exactly, in sigma measured from the start of the step, where it is well
        conditioned.
        """
        start, own = self._sigmas[t], self._sigmas[t - current_order]
        others = [self._sigmas[t - k] for k in range(order) if k != current_order]
        basis = np.atleast_1d(np.poly([other - start for other in others]))
        integral = np.polyval(np.polyint(basis), self._sigmas[t + 1] - start)
        return float(integral / np.prod([own - other for other in others]))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """x at the next sigma from x (B, C, H, W), by the last `order` derivatives dx/dsigma."""
        if not self._scaled:
            warnings.warn(UNSCALED, stacklevel=2)
        i = self._current_index(timestep)
        x, output = full_precision(sample, model_output)
        x0 = self._predict_denoised(output, x, self._sigmas[i])
        self.derivatives = [*self.derivatives, (x - x0) / self._sigmas[i]][-order:]
        order = min(order, len(self.derivatives))
        slopes = enumerate(reversed(self.derivatives))
        change = sum(self.get_lms_coefficient(order, i, back) * d for back, d in slopes)
        self._step_index = i + 1
        return step_result(x + change, x0, sample, return_dict)


schedulers.add("LMSDiscreteScheduler", LMSDiscreteScheduler)
