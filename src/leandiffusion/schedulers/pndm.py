"""Pseudo numerical methods: Liu et al., arXiv 2202.09778; without Runge-Kutta warm-up, the PLMS of latent-diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from .base import Scheduler, full_precision, step_result
from .schedule import spaced_timesteps
from .settings import schedulers

# Adams-Bashforth weights by the number of known outputs, latest first: equation 12.
_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDMScheduler(Scheduler):
    """PNDM. `skip_prk_steps` (Stable Diffusion's setting) starts without Runge-Kutta steps, repeating one timestep.

    Settings and defaults as in diffusers' class. The schedule has more entries than steps: one more without the
    Runge-Kutta warm-up, nine more with it.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"pndm": {}}

    pndm_order: ClassVar[int] = 4

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ) -> None:
        self.prk_timesteps: np.ndarray | None = None
        self.plms_timesteps: np.ndarray | None = None
        super().__init__()
        self._final_abar = 1.0 if set_alpha_to_one else self._abar[0]

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """abar after the last step, a scalar."""
        return torch.tensor(self._final_abar)

    def _restart(self) -> None:
        super()._restart()
        self.counter = 0
        self.ets: list[torch.Tensor] = []  # past outputs; replaced, never changed in place
        self._blend: torch.Tensor | None = None
        self._held: torch.Tensor | None = None

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay out the schedule for `num_inference_steps` (1 … num_train_timesteps; from 4 with Runge-Kutta steps)."""
        steps = self._steps_asked(num_inference_steps)
        c = self.config
        t = spaced_timesteps(c.timestep_spacing, steps, c.num_train_timesteps, offset=c.steps_offset).round()
        t = t.astype(np.int64)
        if c.skip_prk_steps:
            self.prk_timesteps = np.array([], dtype=np.int64)
            self.plms_timesteps = t if steps == 1 else np.insert(t, 1, t[1])
        else:
            if steps < 4:
                raise ConfigError(
                    f"num_inference_steps={steps}: the Runge-Kutta warm-up of PNDM spans 4 steps, so ask for at least "
                    f"4, or set skip_prk_steps=True."
                )
            half = c.num_train_timesteps // steps // 2
            self.prk_timesteps = np.concatenate([(a, b + half, b + half, b) for a, b in pairwise(t[:4])])
            self.plms_timesteps = t[3:]
        self.num_inference_steps = steps
        self._place(np.concatenate([self.prk_timesteps, self.plms_timesteps]), device, torch.int64)

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """x_{t-1} from x_t (B, C, H, W): a Runge-Kutta sub-step while the warm-up lasts, then linear multistep."""
        if self.counter < len(self._warm_up()):
            return self.step_prk(model_output, timestep, sample, return_dict)
        return self.step_plms(model_output, timestep, sample, return_dict)

    def _warm_up(self) -> np.ndarray:
        """The timesteps of the Runge-Kutta calls; ConfigError when `set_timesteps` was not called."""
        self._require_schedule()
        return np.array([], dtype=np.int64) if self.prk_timesteps is None else self.prk_timesteps

    def step_prk(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """One of the four evaluations of a Runge-Kutta step, equation 13."""
        half = self.config.num_train_timesteps // self._require_schedule() // 2
        if self.counter >= len(self._warm_up()):
            raise ConfigError(
                f"step_prk for call {self.counter + 1} of the run, which has {len(self._warm_up())} Runge-Kutta calls: "
                f"call step, which knows when they are over, or step_plms."
            )
        stage = self.counter % 4
        t_prev = self._train_step(timestep) - (0 if stage % 2 else half)
        t = int(self._warm_up()[self.counter - stage])
        x, output = full_precision(sample, model_output)
        part = _RUNGE_KUTTA[stage] * output
        self._blend = part if stage == 0 or self._blend is None else self._blend + part
        if stage == 0:
            self.ets = [*self.ets, output]
            self._held = x
        base = x if self._held is None else self._held
        self.counter += 1
        return step_result(
            self._transfer(base, t, t_prev, self._blend if stage == 3 else output), None, sample, return_dict
        )

    def step_plms(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """A linear multistep step, equation 12; the second call averages with the first instead of moving on."""
        stride = self.config.num_train_timesteps // self._require_schedule()
        if not self.config.skip_prk_steps and len(self.ets) < 3:
            raise ConfigError("step_plms needs the outputs of the 12 Runge-Kutta calls before it: call step in order.")
        t = self._train_step(timestep)
        x, output = full_precision(sample, model_output)
        if self.counter == len(self.ets) == 1 and self._held is not None:  # improved Euler: the first step again
            blend, x, t, t_prev = (output + self.ets[-1]) / 2, self._held, self._train_step(t + stride), t
            self._held = None
        else:
            self.ets = [*self.ets[-3:], output]
            weights = _ADAMS_BASHFORTH[len(self.ets)]
            blend = sum(w * e for w, e in zip(weights, reversed(self.ets), strict=True))
            t_prev = t - stride
            if self.counter == 0:
                self._held = x
        self.counter += 1
        return step_result(self._transfer(x, t, t_prev, blend), None, sample, return_dict)

    def _transfer(self, x: torch.Tensor, t: int, t_prev: int, output: Any) -> torch.Tensor:
        """phi(x_t, eps, t, t_prev), equation 11 of the paper (9 in its first version)."""
        a, a_prev = self._abar[t], self._abar[t_prev] if t_prev >= 0 else self._final_abar
        eps = self._predict_eps(output, x, math.sqrt(a), math.sqrt(1 - a))
        if a <= 0:
            raise ConfigError(f"no signal is left at timestep {t}: lower beta_end={self.config.beta_end}.")
        divisor = a * math.sqrt(1 - a_prev) + math.sqrt(a * (1 - a) * a_prev)
        return math.sqrt(a_prev / a) * x - (a_prev - a) / divisor * eps


schedulers.add("PNDMScheduler", PNDMScheduler)
