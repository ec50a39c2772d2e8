"""Heun's second-order steps on the probability flow ODE: Karras et al., arXiv 2206.00364, algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from .base import full_precision, step_result
from .settings import schedulers
from .sigma import SigmaScheduler


class HeunDiscreteScheduler(SigmaScheduler):
    """Heun: two model calls a step, one for the last. Settings and defaults as in diffusers' class."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"heun": {}}

    order: ClassVar[int] = 2

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        super().__init__()
        self.set_timesteps(num_train_timesteps)

    def _restart(self) -> None:
        super()._restart()
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None  # (x, derivative) of a step half done

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call starts a step, rather than correcting one."""
        return self._first is None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Lay out `num_inference_steps` steps (1 … num_train_timesteps), or the given `timesteps`.

        `self.timesteps` names every one but the first twice: 2 steps - 1 model calls. Raises ConfigError for both or
        neither argument, and for `timesteps` beside a setting that shapes the sigmas itself.
        """
        if timesteps is not None:
            t = self._custom_timesteps(num_inference_steps, timesteps).astype(np.float32)
        elif num_inference_steps is not None:
            t = self._float_timesteps(self._steps_asked(num_inference_steps), num_train_timesteps)
        else:
            raise ConfigError("set_timesteps needs num_inference_steps or timesteps.")
        steps, sigmas = len(t), self._interpolated(t)
        shaped = self._shaped(sigmas, steps)
        if shaped is not None:
            sigmas, t = shaped, self._timesteps_of(shaped)
        self._set_sigmas(np.append(np.repeat(sigmas, 2)[1:], 0.0))
        self.num_inference_steps = steps
        self._place(np.repeat(t, 2)[1:], device, torch.float32)

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """An Euler step from x (B, C, H, W) on a step's first call; on its second, the same step by the mean slope."""
        i = self._current_index(timestep)
        # The entry that a correction is called with repeats the sigma that the Euler step arrived at.
        sigma, sigma_next = self._sigmas[i], self._sigmas[i + 1]
        x, output = full_precision(sample, model_output)
        x0 = self._clip(self._predict_denoised(output, x, sigma))
        d = (x - x0) / sigma
        if self._first is None:
            self._first = (x, d)
            prev = x + (sigma_next - sigma) * d
        else:
            (x, d_first), self._first = self._first, None
            prev = x + (sigma - self._sigmas[i - 1]) * (d_first + d) / 2
        self._step_index = i + 1
        return step_result(prev, x0, sample, return_dict)


schedulers.add("HeunDiscreteScheduler", HeunDiscreteScheduler)
