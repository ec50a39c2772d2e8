"""DPM-Solver (Lu et al., arXiv 2206.00927), DPM-Solver++ (arXiv 2211.01095) and their SDE forms, multistep.

Symbols: lambda = log(alpha / sigma), h = lambda_t - lambda_s the step in it, m the model outputs converted to x_0
(++ forms) or eps, D0 = m, and D1, D2 the first and second divided differences of m in units of h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..core.errors import ConfigError
from .base import full_precision, step_result
from .ddpm import VARIANCES
from .noise import Generators, randn
from .schedule import check_choice, dynamic_threshold, spaced_timesteps
from .settings import schedulers
from .sigma import LogSNRScheduler

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


class Weights(NamedTuple):
    """x_t = x * x_s + d0 * D0 + d1 * D1 + d2 * D2 + noise * z."""

    x: float
    d0: float
    d1: float
    d2: float
    noise: float = 0.0


class DPMSolverMultistepScheduler(LogSNRScheduler):
    """DPM-Solver of order 1 to 3. Settings and defaults as in diffusers' class, without its flow-matching ones."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {
        "dpm++": {"algorithm_type": "dpmsolver++"},
        "dpm++-karras": {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
        "dpm++-sde": {"algorithm_type": "sde-dpmsolver++"},
        "dpm++-sde-karras": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
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
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        super().__init__()

    def _check(self) -> None:
        if self.config.algorithm_type == "deis":  # the nearest of ours to another scheduler's setting
            self._amend(algorithm_type="dpmsolver++")
        if self.config.solver_type in ("logrho", "bh1", "bh2"):
            self._amend(solver_type="midpoint")
        super()._check()
        c = self.config
        self._refuse_flow()
        check_choice("algorithm_type", c.algorithm_type, ALGORITHMS)
        check_choice("solver_type", c.solver_type, ("midpoint", "heun"))
        check_choice("solver_order", c.solver_order, (1, 2, 3))
        check_choice("variance_type", c.variance_type, (None, *VARIANCES))
        if not c.algorithm_type.endswith("++") and c.final_sigmas_type == "zero":
            raise ConfigError(
                f"algorithm_type={c.algorithm_type!r} divides by the final sigma, so final_sigmas_type='zero' cannot "
                f"be used: set final_sigmas_type='sigma_min', or use '{c.algorithm_type}++'."
            )
        if c.algorithm_type == "sde-dpmsolver" and c.solver_order == 3:
            raise ConfigError("algorithm_type='sde-dpmsolver' has no third order: use solver_order=2, or the ++ form.")

    def _restart(self) -> None:
        super()._restart()
        self._outputs: tuple[torch.Tensor, ...] = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) steps, or the given `timesteps`.

        Raises ConfigError for both or neither, and for `timesteps` beside a setting that shapes the sigmas itself.
        """
        self._refuse_flow(mu)
        if timesteps is not None:
            t = self._custom_timesteps(num_inference_steps, timesteps).astype(np.int64)
            sigmas = self._interpolated(t)
        elif num_inference_steps is not None:
            sigmas, t = self._layout(self._steps_asked(num_inference_steps))
        else:
            raise ConfigError("set_timesteps needs num_inference_steps or timesteps.")
        final = self._final_sigma()
        if self.config.algorithm_type.startswith("sde"):
            final = min(final, float(sigmas[-1]))  # not above it by rounding
            if (np.diff(sigmas) > 0).any():
                raise ConfigError(
                    f"algorithm_type={self.config.algorithm_type!r} adds the noise of each step down, and this "
                    "schedule goes up: pass descending timesteps, check the betas, or use 'dpmsolver++'."
                )
        self._set_sigmas(np.append(sigmas, final))
        self.num_inference_steps = len(t)
        self._place(t, device, torch.int64)

    def _layout(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """(sigmas without the final one, timesteps) as the settings shape them."""
        c = self.config
        shaped = self._lu_sigmas(steps) if c.use_lu_lambdas else self._shaped(self._train_sigmas[::-1], steps)
        if shaped is None:
            spare = 0 if c.timestep_spacing == "trailing" else 1
            t = spaced_timesteps(
                c.timestep_spacing,
                steps,
                c.num_train_timesteps,
                offset=c.steps_offset,
                last=self._last_timestep(),
                spare=spare,
            ).round()
            return self._interpolated(t), t
        t = self._timesteps_of(shaped)
        whole = (c.use_karras_sigmas or c.use_lu_lambdas) and c.beta_schedule != "squaredcos_cap_v2"
        return shaped, t.round() if whole else t

    def _last_timestep(self) -> int:
        """One above the highest timestep whose lambda is at least `lambda_min_clipped` (cosine schedules need it)."""
        return len(self) - int(torch.searchsorted(self.lambda_t.flip(0), self.config.lambda_min_clipped))

    def _lu_sigmas(self, steps: int) -> np.ndarray:
        """Steps even in lambda, as the paper has them."""
        log_sigmas = np.log(self._train_sigmas)
        return np.exp(np.linspace(float(log_sigmas[-1]), float(log_sigmas[0]), steps))

    def _converted(self, output: torch.Tensor, x: torch.Tensor, i: int) -> torch.Tensor:
        """The model's output as x_0 (++ algorithms) or eps, thresholded where asked."""
        c = self.config
        if c.variance_type in ("learned", "learned_range"):
            output = output[:, : x.shape[1]]  # the rest of the channels predict the variance
        alpha, sigma, _ = self._alpha_sigma_lambda(i)
        if c.algorithm_type.endswith("++"):
            return self._clip(self._predict_x0(output, x, alpha, sigma))
        eps = self._predict_eps(output, x, alpha, sigma)
        if not c.thresholding:
            return eps
        x0 = dynamic_threshold((x - sigma * eps) / alpha, c.dynamic_thresholding_ratio, c.sample_max_value)
        return (x - alpha * x0) / sigma

    def _order(self, i: int) -> int:
        """The order of step `i`: limited by the outputs known, and lowered at the end of short schedules."""
        c, steps = self.config, len(self._values)
        short = c.lower_order_final and steps < 15
        order = min(c.solver_order, len(self._outputs))
        if i == steps - 1 and (c.euler_at_final or short or c.final_sigmas_type == "zero"):
            return 1
        return self._distinct(i, min(order, 2) if i == steps - 2 and short else order)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """x_t from x_s (B, C, H, W). The sde algorithms add `variance_noise`, or float32 noise from `generator`."""
        self._require_schedule()
        i = self._current_index(timestep)
        x, output = full_precision(sample, model_output)
        m0 = self._converted(output, x, i)
        self._outputs = (*self._outputs, m0)[-self.config.solver_order :]
        order = self._order(i)
        w = self._weights(i, i + 1, order)

        prev = w.x * x + w.d0 * m0
        for weight, D in zip((w.d1, w.d2), self._differences(i, order), strict=False):
            prev = prev + weight * D
        if self.config.algorithm_type.startswith("sde"):
            if variance_noise is None:
                variance_noise = randn(m0.shape, generator=generator, device=m0.device, dtype=torch.float32)
            prev = prev + w.noise * variance_noise.to(prev)
        self._step_index = i + 1
        return step_result(prev, None, sample, return_dict)

    def _weights(self, s: int, t: int, order: int) -> Weights:
        """The weights of a step of that `order` from `sigmas[s]` to `sigmas[t]`."""
        algorithm = self.config.algorithm_type
        midpoint = order == 2 and self.config.solver_type == "midpoint"
        alpha_t, sigma_t, lambda_t = self._alpha_sigma_lambda(t)
        alpha_s, sigma_s, lambda_s = self._alpha_sigma_lambda(s)
        h = lambda_t - lambda_s
        if h == 0:  # the last sigma again, as final_sigmas_type='sigma_min' has it for some schedules: nothing to do
            return Weights(1.0, 0.0, 0.0, 0.0)
        if algorithm == "dpmsolver++":
            a, e = alpha_t, math.expm1(-h)
            d1 = -0.5 * a * e if midpoint else a * (e / h + 1)
            return Weights(sigma_t / sigma_s, -a * e, d1, -a * ((e + h) / h**2 - 0.5) if order == 3 else 0.0)
        if algorithm == "dpmsolver":
            b, e = sigma_t, math.expm1(h)
            d1 = -0.5 * b * e if midpoint else -b * (e / h - 1)
            return Weights(alpha_t / alpha_s, -b * e, d1, -b * ((e - h) / h**2 - 0.5))
        if algorithm == "sde-dpmsolver++":
            a, e = alpha_t, -math.expm1(-2 * h)
            d1 = 0.5 * a * e if midpoint else a * (1 - e / (2 * h))
            d2 = a * ((e - 2 * h) / (2 * h) ** 2 - 0.5) if order == 3 else 0.0
            return Weights(sigma_t / sigma_s * math.exp(-h), a * e, d1, d2, sigma_t * math.sqrt(e))
        b, e = sigma_t, math.expm1(h)
        d1 = -b * e if midpoint else -2 * b * (e / h - 1)
        return Weights(alpha_t / alpha_s, -2 * b * e, d1, 0.0, b * math.sqrt(math.expm1(2 * h)))

    def _differences(self, i: int, order: int) -> tuple[torch.Tensor, ...]:
        """(D1, D2) as far as `order` needs them: arXiv 2206.00927, algorithms 2 and 3, with past steps as the nodes."""
        if order == 1:
            return ()
        m, lambdas = self._outputs[::-1], [self._alpha_sigma_lambda(i + 1 - k)[2] for k in range(order + 1)]
        h = lambdas[0] - lambdas[1]
        r0 = (lambdas[1] - lambdas[2]) / h
        slope = (m[0] - m[1]) / r0
        if order == 2:
            return (slope,)
        r1 = (lambdas[2] - lambdas[3]) / h
        bend = slope - (m[1] - m[2]) / r1
        return slope + r0 / (r0 + r1) * bend, bend / (r0 + r1)


schedulers.add("DPMSolverMultistepScheduler", DPMSolverMultistepScheduler)
