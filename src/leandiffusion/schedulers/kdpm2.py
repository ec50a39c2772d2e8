"""DPM-Solver-2 in sigma, the midpoint method: Karras et al., arXiv 2206.00364, as in k-diffusion's sample_dpm_2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..device.capabilities import has_float64
from .base import full_precision, step_result
from .settings import schedulers
from .sigma import SigmaScheduler


class MidpointScheduler(SigmaScheduler):
    """Base of both: half a step to the geometric middle of two sigmas, then the whole step by the slope found there.

    `sigmas`, and `sigmas_interpol` with the middles, are (2 steps + 2,) in diffusers' layout; `_sigmas` holds the noise
    level of each model call, and after them that of the result.
    """

    order: ClassVar[int] = 2

    def _restart(self) -> None:
        super()._restart()
        self._start: torch.Tensor | None = None  # the state that a step half done began with

    @property
    def sample(self) -> torch.Tensor | None:
        """(B, C, H, W) the state that a step half done began with, in float32 at least; None between steps."""
        return self._start

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call starts a step, rather than finishing one."""
        return self._start is None

    @property
    def log_sigmas(self) -> torch.Tensor:
        """(training steps,) logarithm of each training step's sigma, ascending, float32 on the CPU."""
        return torch.from_numpy(np.log(self._train_sigmas))

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Lay out `num_inference_steps` steps (1 … num_train_timesteps); ConfigError outside that range.

        `self.timesteps` has each step's middle between its ends: 2 steps - 1 model calls, since the last step, to no
        noise at all, needs none.
        """
        steps = self._steps_asked(num_inference_steps)
        t = self._float_timesteps(steps, num_train_timesteps)
        sigmas = self._interpolated(t)
        shaped = self._shaped(sigmas, steps)
        if shaped is not None:
            sigmas, t = shaped, self._timesteps_of(shaped)
            t = t.round() if self._asks("use_karras_sigmas") else t
        ends = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
        middles = self._middles(ends)
        self.sigmas = doubled(ends)
        self._sigmas = (*alternating(ends[:-1], middles).tolist(), 0.0)
        between = self._timesteps_of(middles.numpy()[:-1], np.float32).astype(t.dtype)
        self.num_inference_steps = steps
        exact = t.dtype == np.float64 and has_float64(torch.device(device or "cpu"))
        calls = alternating(torch.from_numpy(t), torch.from_numpy(np.append(between, 0).astype(t.dtype)))
        self._place(calls.numpy(), device, torch.float64 if exact else torch.float32)

    def _middles(self, ends: torch.Tensor) -> torch.Tensor:
        """(steps,) where the steps between `ends` (steps + 1,) halve, 0 for the last; sets `sigmas_interpol`."""
        raise NotImplementedError

    def _step(self, output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor) -> tuple[Any, Any, int]:
        """(state, x_0, index) of a call: the state is the middle's, or that of the step's end without fresh noise."""
        i = self._current_index(timestep)
        sigma = self._sigmas[i]
        x, output = full_precision(sample, output)
        x0 = self._predict_denoised(output, x, sigma)
        d = (x - x0) / sigma
        if self._start is None:
            self._start, prev = x, x + (self._sigmas[i + 1] - sigma) * d
        else:
            prev, self._start = self._start + (self._target(i) - self._sigmas[i - 1]) * d, None
        self._step_index = i + 1
        return prev, x0, i

    def _target(self, i: int) -> float:
        """The sigma that call `i`, the second of its step, goes to."""
        return self._sigmas[i + 1]


class KDPM2DiscreteScheduler(MidpointScheduler):
    """DPM2. Settings and defaults as in diffusers' class; 'sample' predictions work here too."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"dpm2": {}, "dpm2-karras": {"use_karras_sigmas": True}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
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

    def _middles(self, ends: torch.Tensor) -> torch.Tensor:
        middles = torch.lerp(ends[1:].log(), ends[:-1].log(), 0.5).exp()
        self.sigmas_interpol = doubled(torch.cat([ends[:1], middles]))
        return middles

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor, return_dict: bool = True
    ) -> Any:
        """The middle of a step from x (B, C, H, W) on its first call; on its second, the step's end from there."""
        prev, x0, _ = self._step(model_output, timestep, sample)
        return step_result(prev, x0, sample, return_dict)


def doubled(values: torch.Tensor) -> torch.Tensor:
    """(n,) -> (2n,): each value twice, the first once and the last three times: diffusers' layout."""
    return torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]])


def alternating(ends: torch.Tensor, middles: torch.Tensor) -> torch.Tensor:
    """(n,), (n,) -> (2n - 1,): an end, the middle after it, the next end, and so on."""
    return torch.stack([ends, middles], dim=1).flatten()[:-1]


schedulers.add("KDPM2DiscreteScheduler", KDPM2DiscreteScheduler)
