"""DEIS: the exponential integrator with polynomials in log(rho). Zhang & Chen, arXiv 2204.13902, section 3.3.

Symbols: rho = sigma / alpha, which is the sigma of the schedule, and eps at the latest steps, which a polynomial in
log(rho) extrapolates; its integral over rho is what x / alpha changes by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..core.errors import ConfigError
from .base import full_precision, step_result
from .schedule import check_choice
from .settings import schedulers
from .sigma import LogSNRScheduler

FEW = 15
"""Below so many steps `lower_order_final` lowers the order of the last two."""


class DEISMultistepScheduler(LogSNRScheduler):
    """DEIS of orders 1 to 3, down to the lowest sigma of training.

    Settings and defaults as in diffusers' class, without its flow-matching ones.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"deis": {}}

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
        algorithm_type: str = "deis",
        solver_type: str = "logrho",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        super().__init__()

    def _check(self) -> None:
        if self.config.solver_type in ("midpoint", "heun", "bh1", "bh2"):  # other schedulers' settings
            self._amend(solver_type="logrho")
        if self.config.algorithm_type in ("dpmsolver", "dpmsolver++"):
            self._amend(algorithm_type="deis")
        super()._check()
        self._refuse_flow()
        check_choice("algorithm_type", self.config.algorithm_type, ("deis",))
        check_choice("solver_type", self.config.solver_type, ("logrho",))
        check_choice("solver_order", self.config.solver_order, (1, 2, 3))

    def _restart(self) -> None:
        super()._restart()
        self._outputs: tuple[torch.Tensor, ...] = ()

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None, mu: float | None = None
    ) -> None:
        """Lay out `num_inference_steps` (1 … num_train_timesteps) steps; `mu` belongs to flow matching."""
        self._refuse_flow(mu)
        self._lay_out(self._steps_asked(num_inference_steps), device, to_zero=False)

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """x at the next sigma from x (B, C, H, W), by the noise predicted here and at the steps before."""
        self._require_schedule()
        c, i = self.config, self._current_index(timestep)
        x, output = full_precision(sample, model_output)
        alpha, sigma, _ = self._alpha_sigma_lambda(i)
        eps = self._predict_eps(output, x, alpha, sigma)
        if c.thresholding:
            eps = (x - alpha * self._clip(self._predict_x0(output, x, alpha, sigma))) / sigma
        self._outputs = (*self._outputs, eps)[-c.solver_order :]
        order = len(self._outputs)
        if c.lower_order_final and len(self._values) < FEW:
            order = min(order, len(self._values) - i)
        order = self._distinct(i, order)
        self._step_index = i + 1
        rho, rho_next = self._sigmas[i], self._sigmas[i + 1]
        nodes = [self._sigmas[i - k] for k in range(order)]
        weights = [_integral(rho_next, nodes, k) - _integral(rho, nodes, k) for k in range(order)]
        change = sum(w * m for w, m in zip(weights, reversed(self._outputs[-order:]), strict=True))
        return step_result(self._alpha_sigma_lambda(i + 1)[0] * (x / alpha + change), None, sample, return_dict)


def _integral(rho: float, nodes: Sequence[float], k: int) -> float:
    """Integral up to `rho` of the polynomial in log(rho) that is 1 at the k-th node and 0 at the others (Lagrange's).

    For one node rho itself; for more, from the integrals of log(rho) and of its square.
    """
    if rho <= 0:
        raise ConfigError("DEIS steps in log(sigma), and this schedule has a sigma of 0: lay it out by set_timesteps.")
    log, others = math.log(rho), [math.log(node) for j, node in enumerate(nodes) if j != k]
    below = math.prod(math.log(nodes[k]) - other for other in others)
    if not others:
        return rho
    if len(others) == 1:
        return rho * (log - 1 - others[0]) / below
    c, d = others
    return rho * (log**2 - 2 * log + 2 - (c + d) * (log - 1) + c * d) / below


schedulers.add("DEISMultistepScheduler", DEISMultistepScheduler)
