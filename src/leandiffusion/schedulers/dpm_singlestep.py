"""DPM-Solver and DPM-Solver++ in their singlestep forms: Lu et al., arXiv 2206.00927 and 2211.01095, section 4.

Steps come in groups of one to three. Each goes from the state that the group began with, s, to its own sigma, by the
model's outputs within the group: D0 is the first, D1 and D2 the divided differences of the others, in units of h.
Symbols as in `dpm_solver`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from .base import full_precision, step_result
from .dpm_solver import DPMSolverMultistepScheduler
from .noise import Generators, randn
from .schedule import check_choice, spaced_timesteps
from .settings import schedulers


class DPMSolverSinglestepScheduler(DPMSolverMultistepScheduler):
    """Singlestep DPM-Solver of order 1 to 3, one model call a step. Settings and defaults as in diffusers' class.

    `lower_order_final` is taken for true where the number of steps does not divide by the order, and where the last
    step goes to no noise at all, as there.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {
        "dpm++-singlestep": {"algorithm_type": "dpmsolver++"},
        "dpm++-singlestep-karras": {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    }

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        super(DPMSolverMultistepScheduler, self).__init__()

    def _check(self) -> None:
        super()._check()
        check_choice("algorithm_type", self.config.algorithm_type, ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"))

    def _restart(self) -> None:
        super()._restart()
        self._start: torch.Tensor | None = None  # the state that the group of steps began with

    @property
    def sample(self) -> torch.Tensor | None:
        """(B, C, H, W) the state that the latest group of steps began with, in float32 at least."""
        return self._start

    @property
    def order_list(self) -> list[int]:
        """(steps,) the order of each step: its place in its group."""
        return self.get_order_list(len(self._values))

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each of so many steps: 1, 2, 3, 1, 2, 3 … as far as they go, lower at the end."""
        c, steps = self.config, num_inference_steps
        full: int = c.solver_order
        orders = [1 + i % full for i in range(steps)]
        if c.final_sigmas_type == "zero" or (c.lower_order_final and steps % full == 0):
            orders[-1] = 1
        return orders

    def _layout(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        shaped = self._shaped(self._train_sigmas[::-1], steps)
        if shaped is None:
            last = self._last_timestep()
            t = spaced_timesteps("linspace", steps, len(self), last=last, spare=1).round()
            return self._interpolated(t), t
        t = self._timesteps_of(shaped)
        return shaped, t.round() if self.config.use_karras_sigmas else t

    def _order(self, i: int) -> int:
        """The order of step `i`: limited by the outputs known, and by sigmas that repeat, which leave no slope."""
        order = min(self.order_list[i], len(self._outputs))
        for k in range(1, order):
            if self._sigmas[i - k] == self._sigmas[i - k + 1]:
                return k
        return order

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x_t from the group's first state (B, C, H, W). The sde algorithm adds noise from `generator`."""
        self._require_schedule()
        i = self._current_index(timestep)
        x, output = full_precision(sample, model_output)
        self._outputs = (*self._outputs, self._converted(output, x, i))[-self.config.solver_order :]
        order = self._order(i)
        if order == 1:
            self._start = x
        start = x if self._start is None else self._start
        s = i - order + 1
        w = self._weights(s, i + 1, order)

        prev = w.x * start + w.d0 * self._outputs[-order]
        for weight, D in zip((w.d1, w.d2), self._differences(i, order), strict=False):
            prev = prev + weight * D
        if w.noise:
            like = model_output
            noise = randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            prev = prev + w.noise * noise
        self._step_index = i + 1
        return step_result(prev, None, sample, return_dict)

    def _differences(self, i: int, order: int) -> tuple[torch.Tensor, ...]:
        """(D1, D2) as far as `order` needs them; third-order 'midpoint' steps leave D2 out, as diffusers' do."""
        if order == 1:
            return ()
        s, m = i - order + 1, self._outputs[-order:]
        start, h = self._lambda(s), self._lambda(i + 1) - self._lambda(s)
        r = [(self._lambda(s + k) - start) / h for k in range(order)]
        slopes = [(m[k] - m[0]) / r[k] for k in range(1, order)]
        if order == 2 or self.config.solver_type == "midpoint":
            return (slopes[-1],)
        bend = (slopes[1] - slopes[0]) / (r[2] - r[1])
        return slopes[0] - r[1] * bend, 2 * bend

    def _lambda(self, index: int) -> float:
        return self._alpha_sigma_lambda(index)[2]


schedulers.add("DPMSolverSinglestepScheduler", DPMSolverSinglestepScheduler)
