"""DPM-Solver++ as an SDE, two model calls a step and noise from a Brownian path: k-diffusion's sample_dpmpp_sde.

A step of length h in log(sigma) goes half of the way by the model's x_0 at its start, and then all of it, from the
start again, by x_0 in the middle: Lu et al., arXiv 2211.01095, section 4, with r = 1/2, and noise in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from ..device.capabilities import has_float64
from .base import full_precision, step_result
from .brownian import BrownianPath
from .kdpm2 import MidpointScheduler, alternating
from .noise import Generators
from .schedule import spaced_timesteps
from .settings import schedulers


class DPMSolverSDEScheduler(MidpointScheduler):
    """DPM++ SDE. Settings and defaults as in diffusers' class; 'sample' predictions work here too.

    `noise_sampler_seed` is the path's seed, or one for each picture of the batch. Without it the seed is drawn from
    the `generator` that `step` is given, so that a call's seed decides the whole picture, or else from torch's own.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {
        "dpm-sde": {},
        "dpm-sde-karras": {"use_karras_sigmas": True},
    }

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
        noise_sampler_seed: int | Sequence[int] | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        super().__init__()
        self.set_timesteps(num_train_timesteps)

    def _restart(self) -> None:
        super()._restart()
        self._paths: tuple[BrownianPath, ...] = ()  # one, or one for each picture

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Lay out `num_inference_steps` steps (1 … num_train_timesteps); ConfigError outside that range.

        `self.timesteps` has each step's middle between its ends: 2 steps - 1 model calls, since the last step, to no
        noise at all, needs one. `sigmas` (2 steps) have the ends alone, each twice but the outer ones.
        """
        steps, c = self._steps_asked(num_inference_steps), self.config
        span = num_train_timesteps or c.num_train_timesteps
        t = spaced_timesteps(c.timestep_spacing, steps, span, offset=c.steps_offset)
        sigmas = self._interpolated(t)
        shaped = self._shaped(sigmas, steps)
        if shaped is not None:
            sigmas, t = shaped, self._timesteps_of(shaped)
        logs = np.log(sigmas)
        between = self._timesteps_of(np.exp(logs[:-1] + np.diff(logs) * 0.5))

        ends = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
        self.sigmas = torch.cat([ends[:1], ends[1:-1].repeat_interleave(2), ends[-1:]])
        # Between these the path is asked for noise: their last bit counts, so they are rounded as in diffusers.
        lambdas = -ends[:-1].log()
        middles = torch.cat([(-(lambdas[:-1] + lambdas.diff() * 0.5)).exp(), torch.zeros(1)])
        self._times = tuple(alternating((-lambdas).exp(), middles).tolist())
        self._sigmas = (*alternating(ends[:-1], middles).tolist(), 0.0)
        self.num_inference_steps = steps
        exact = has_float64(torch.device(device or "cpu"))
        placed = alternating(torch.from_numpy(t), torch.from_numpy(np.append(between, 0.0)))
        self._place(placed.numpy(), device, torch.float64 if exact else torch.float32)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
        generator: Generators = None,
    ) -> Any:
        """The middle of a step from x (B, C, H, W) on its first call; on its second, the step's end from its start."""
        i = self._current_index(timestep)
        x, output = full_precision(sample, model_output)
        x0 = self._predict_denoised(output, x, self._sigmas[i])
        start, begun = (i, x) if self._start is None else (i - 1, self._start)
        sigma, to = self._sigmas[start], self._sigmas[i + 1]
        up = to * math.sqrt(max(1 - (to / sigma) ** 2, 0.0))
        down = math.sqrt(max(to**2 - up**2, 0.0)) / sigma
        prev = down * begun + (1 - down) * x0
        if up > 0:
            if not self._paths:
                self._paths = self._begin(sample, generator)
            prev = prev + (s_noise * up) * self._noise(self._times[i + 1], self._times[start]).to(prev)
        self._start = x if self._start is None and to > 0 else None
        self._step_index = i + 1
        return step_result(prev, x0, sample, return_dict)

    def _begin(self, x: torch.Tensor, generator: Generators) -> tuple[BrownianPath, ...]:
        """The path of the batch `x` (B, C, H, W), or that of each picture where each has its own seed."""
        seed = self.config.noise_sampler_seed
        if seed is None:
            each = generator if isinstance(generator, list) else [generator]
            seeds = [_seed_of(one) for one in each]
        else:
            seeds = list(seed) if isinstance(seed, Sequence) else [seed]
        if len(seeds) not in (1, len(x)):
            raise ConfigError(f"{len(seeds)} seeds of noise for a batch of {len(x)}: pass one, or one for each.")
        shape = x.shape if len(seeds) == 1 else x.shape[1:]
        low, high = min(self._sigmas[:-1]), max(self._sigmas)
        return tuple(BrownianPath(shape, low, high, each, x.dtype) for each in seeds)

    def _noise(self, low: float, high: float) -> torch.Tensor:
        """(B, C, H, W) of unit variance: the paths' increment from sigma `high` down to `low`."""
        increments = [path.increment(low, high) for path in self._paths]
        whole = increments[0] if len(increments) == 1 else torch.stack(increments)
        return -whole / math.sqrt(high - low)


def _seed_of(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))


schedulers.add("DPMSolverSDEScheduler", DPMSolverSDEScheduler)
