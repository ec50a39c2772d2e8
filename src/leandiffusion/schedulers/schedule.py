"""The tables that schedulers are made of: betas, timesteps and sigmas. Pure functions, computed once per schedule.

Legend: beta_t is the variance added by training step t, abar_t (`alphas_cumprod`) the product of (1 - beta_s) for
s <= t, sigma_t = sqrt((1 - abar_t) / abar_t) the noise level of x_t / sqrt(abar_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.registry import did_you_mean

SPACINGS = ("leading", "linspace", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")


def check_choice(setting: str, value: object, allowed: Sequence[object]) -> None:
    """ConfigError naming the setting, its value and what is allowed, unless `value` is one of `allowed`."""
    if value not in allowed:
        names = [str(each) for each in allowed]
        raise ConfigError(
            f"{setting}={value!r} is not supported.{did_you_mean(str(value), names)} Choose from: {', '.join(names)}."
        )


def make_betas(
    schedule: str, start: float, end: float, count: int, trained: Sequence[float] | np.ndarray | None = None
) -> torch.Tensor:
    """The `count` training variances beta_t, float32 on the CPU. `trained` replaces the formula.

    'linear' is DDPM's (arXiv 2006.11239), 'scaled_linear' Stable Diffusion's (linear in sqrt(beta)),
    'squaredcos_cap_v2' the cosine schedule of arXiv 2102.09672, 'sigmoid' GeoDiff's (arXiv 2203.02923).
    `trained` may have another length; timesteps that it does not cover are refused when they are met.
    Raises ConfigError for an unknown name, or an empty `trained`.
    """
    if trained is not None:
        if len(trained) == 0:
            raise ConfigError("trained_betas is empty: give a variance for each training step, or None for a formula.")
        return torch.tensor(np.asarray(trained), dtype=torch.float32)
    start, end = float(start), float(end)
    check_choice("beta_schedule", schedule, BETA_SCHEDULES)
    if schedule == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    if schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
    alpha_bar = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _exponential}[schedule]
    return _betas_of(alpha_bar, count)


def _betas_of(alpha_bar: Callable[[float], float], count: int, largest: float = 0.999) -> torch.Tensor:
    """beta_i = 1 - abar((i+1)/count) / abar(i/count), held below `largest` where abar reaches zero."""
    ratios = (alpha_bar((i + 1) / count) / alpha_bar(i / count) for i in range(count))
    return torch.tensor([min(1 - ratio, largest) for ratio in ratios], dtype=torch.float32)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


def _exponential(t: float) -> float:
    return math.exp(-12.0 * t)


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(abar) so that it ends at exactly zero: arXiv 2305.08891, algorithm 1."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    abar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def spaced_timesteps(
    spacing: str, steps: int, trained: int, *, offset: int = 0, last: int | None = None, spare: int = 0
) -> np.ndarray:
    """`steps` descending timesteps, float64, by table 2 of arXiv 2305.08891.

    `last` is one above the highest timestep to use (default: `trained`). `spare` more steps are laid out at the low
    end and left out again, for solvers whose schedule ends before timestep 0. 'leading' steps are shifted by `offset`.
    """
    check_choice("timestep_spacing", spacing, SPACINGS)
    last = trained if last is None else last
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + spare)[::-1][:steps].copy()
    if spacing == "trailing":  # float steps can overshoot by one entry at -1, hence [:steps]
        return np.arange(last, 0, -trained / steps).round()[:steps] - 1
    stride = last // (steps + spare)
    if stride == 0:
        raise ConfigError(
            f"{steps} steps are too many for timestep_spacing='leading' over {last} training steps: "
            f"use at most {last - spare}, or another spacing."
        )
    return (np.arange(steps + spare) * stride)[::-1][:steps] + float(offset)


def sigmas_of(alphas_cumprod: torch.Tensor) -> np.ndarray:
    """sigma_t for every training step t, ascending, float32."""
    return (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()


def karras_sigmas(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """From `high` down to `low`, evenly in sigma^(1/rho): arXiv 2206.00364, equation 5."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential_sigmas(low: float, high: float, steps: int) -> np.ndarray:
    """From `high` down to `low`, evenly in log(sigma)."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta_sigmas(low: float, high: float, steps: int, a: float = 0.6) -> np.ndarray:
    """From `high` down to `low` at the quantiles of a Beta(a, a) distribution: arXiv 2407.12173."""
    return low + beta_quantiles(1 - np.linspace(0, 1, steps), a) * (high - low)


def beta_quantiles(p: np.ndarray, a: float) -> np.ndarray:
    """Inverse of the Beta(a, a) distribution function at `p` in [0, 1]; absolute error below 1e-14.

    By symmetry only x <= 1/2 is needed, where the power series of the incomplete beta function,
    x^a * sum_k (1-a)_k / (k! (a + k)) x^k, converges faster than 2^-k; it is inverted by bisection.
    """
    terms, factor = [], 1.0
    for k in range(60):
        terms.append(factor / (a + k))
        factor *= (k + 1 - a) / (k + 1)
    complete = math.gamma(a) ** 2 / math.gamma(2 * a)
    tail = np.minimum(p, 1 - p)
    low, high = np.zeros_like(tail), np.full_like(tail, 0.5)
    for _ in range(80):
        middle = (low + high) / 2
        below = middle**a * np.polyval(terms[::-1], middle) / complete < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(p <= 0.5, high, 1 - high) * (p > 0)


def sigma_to_t(sigma: np.ndarray, log_sigmas: np.ndarray, precision: Any = np.float64) -> np.ndarray:
    """Fractional timesteps of noise levels, linear in log(sigma) between training steps, clamped at both ends.

    `log_sigmas` is float32 and ascending. Its rounding decides on which side of a whole timestep a value falls, so
    the differences are taken in that precision. The timesteps are summed in `precision`, or that of `sigma` if higher.
    """
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    if len(log_sigmas) == 1:
        return np.zeros_like(log_sigma)
    below = (np.searchsorted(log_sigmas, log_sigma, side="right") - 1).clip(0, len(log_sigmas) - 2)
    low, high = log_sigmas[below], log_sigmas[below + 1]
    w = ((low - log_sigma) / (low - high)).clip(0, 1)
    return (1 - w) * below.astype(precision) + w * (below + 1).astype(precision)


def dynamic_threshold(x0: torch.Tensor, ratio: float, largest: float) -> torch.Tensor:
    """Clamp each image of `x0` (B, ...) to its quantile s in [1, largest] and divide by s: arXiv 2205.11487, 2.3."""
    flat = x0.flatten(1)
    s = torch.quantile(flat.abs(), ratio, dim=1).clamp(1, largest)[:, None]
    return (flat.clamp(-s, s) / s).reshape(x0.shape)
