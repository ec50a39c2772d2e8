"""UniPC: a multistep predictor and a corrector that needs no further model call. Zhao et al., arXiv 2302.04867.

Symbols: lambda = log(alpha / sigma), h the step in it, m the model outputs converted to x_0 (or eps), B(h) the
function that `solver_type` picks, rho the weights that solve R rho = b, r_k = (lambda_k - lambda_s) / h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from .base import full_precision, step_result
from .schedule import check_choice
from .settings import schedulers
from .sigma import LogSNRScheduler


class UniPCMultistepScheduler(LogSNRScheduler):
    """UniPC of any order. Settings and defaults as in diffusers' class, without its flow-matching ones."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"unipc": {}}

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
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: Sequence[int] = (),
        solver_p: None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
    ) -> None:
        self._amend(disable_corrector=list(disable_corrector))
        super().__init__()

    def _check(self) -> None:
        if self.config.solver_type in ("midpoint", "heun", "logrho"):  # another scheduler's setting
            self._amend(solver_type="bh2")
        super()._check()
        c = self.config
        self._refuse_flow()
        check_choice("solver_type", c.solver_type, ("bh1", "bh2"))
        if not isinstance(c.solver_order, int) or c.solver_order < 1:
            raise ConfigError(f"solver_order={c.solver_order!r}: pass a whole number from 1; 2 suits guided sampling.")
        for key in ("solver_p", "shift_terminal"):
            if c[key] is not None:
                raise ConfigError(f"{key}={c[key]!r} is not supported: leave it None.")
        if not c.predict_x0 and c.final_sigmas_type == "zero":
            raise ConfigError(
                "predict_x0=False divides by the final sigma, so final_sigmas_type='zero' cannot be used: set "
                "final_sigmas_type='sigma_min'."
            )

    def _restart(self) -> None:
        super()._restart()
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._last: torch.Tensor | None = None  # x_s of the step before
        self._last_order = 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) steps; `sigmas` and `mu` belong to flow matching."""
        self._refuse_flow(mu)
        if sigmas is not None:
            raise ConfigError("sigmas is not supported here (it needs use_flow_sigmas): pass num_inference_steps.")
        if num_inference_steps is None:
            raise ConfigError("set_timesteps needs num_inference_steps.")
        self._lay_out(self._steps_asked(num_inference_steps), device, to_zero=self.config.final_sigmas_type == "zero")

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """x_t from x_s (B, C, H, W): the new output first corrects x_s, then predicts x_t."""
        self._require_schedule()
        c, i = self.config, self._current_index(timestep)
        x, output = full_precision(sample, model_output)
        alpha, sigma, _ = self._alpha_sigma_lambda(i)
        if c.predict_x0:
            m = self._clip(self._predict_x0(output, x, alpha, sigma))
        else:
            m = self._predict_eps(output, x, alpha, sigma)
        if i > 0 and i - 1 not in c.disable_corrector and self._last is not None:
            x = self._advance(self._last, i, self._last_order, self._outputs, m)

        self._outputs = (*self._outputs, m)[-c.solver_order :]
        order = min(c.solver_order, len(self._outputs))
        if c.lower_order_final or self._sigmas[i + 1] == 0:
            order = min(order, len(self._values) - i)
        order = self._distinct(i, order)
        self._last, self._last_order = x, order
        self._step_index = i + 1
        return step_result(self._advance(x, i + 1, order, self._outputs, None), None, sample, return_dict)

    def _advance(
        self, x: torch.Tensor, i: int, order: int, outputs: tuple[torch.Tensor, ...], new: torch.Tensor | None
    ) -> torch.Tensor:
        """x at `sigmas[i]` from `x` at `sigmas[i - 1]`: UniP, or UniC when `new` is the model's output at `i`."""
        alpha_t, sigma_t, lambda_t = self._alpha_sigma_lambda(i)
        alpha_s, sigma_s, lambda_s = self._alpha_sigma_lambda(i - 1)
        h = lambda_t - lambda_s
        if h == 0:  # the last sigma again, as final_sigmas_type='sigma_min' has it for some schedules: nothing to do
            return x
        if self.config.predict_x0:
            hh, scale, keep = -h, alpha_t, sigma_t / sigma_s
        else:
            hh, scale, keep = h, sigma_t, alpha_t / alpha_s
        m0 = outputs[-1]
        result = keep * x - scale * math.expm1(hh) * m0
        if order == 1 and new is None:
            return result

        r = [(self._alpha_sigma_lambda(i - 1 - k)[2] - lambda_s) / h for k in range(1, order)]
        B = hh if self.config.solver_type == "bh1" else math.expm1(hh)
        rho = _weights(r, hh, B, corrector=new is not None)
        differences = [(outputs[-1 - k] - m0) / r[k - 1] for k in range(1, order)]
        if new is not None:
            differences.append(new - m0)
        return result - scale * B * sum(weight * d for weight, d in zip(rho, differences, strict=True))


def _weights(r: list[float], hh: float, B: float, *, corrector: bool) -> list[float]:
    """rho with R rho = b, R_jk = r_k^(j-1), b_j = j! phi_{j+1}(hh) hh / B; the corrector also uses r = 1.

    The lowest orders use the paper's simplification rho = 1/2.
    """
    nodes = [*r, 1.0] if corrector else r
    if len(nodes) == 1:
        return [0.5]
    b, factorial, phi = [], 1.0, math.expm1(hh) / hh - 1
    for j in range(1, len(nodes) + 1):
        b.append(phi * factorial / B)
        factorial *= j + 1
        phi = phi / hh - 1 / factorial
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(b)).tolist()


schedulers.add("UniPCMultistepScheduler", UniPCMultistepScheduler)
