"""Denoising diffusion probabilistic models: Ho et al., arXiv 2006.11239; learned variances: arXiv 2102.09672."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from .base import Scheduler, full_precision, step_result
from .noise import Generators, randn
from .schedule import check_choice, spaced_timesteps
from .settings import schedulers

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


class Chain(Scheduler):
    """A scheduler whose steps lead from each timestep to the one that follows it in the run."""

    custom_timesteps: bool = False

    def _follower(self, t: int) -> int:
        """The timestep after `t` in the run, -1 after the last; one lower where no schedule was set."""
        if self.num_inference_steps is None:
            return t - 1
        i = self.index_for_timestep(t)
        return int(self._values[i + 1]) if i + 1 < len(self._values) else -1

    def previous_timestep(self, timestep: torch.Tensor | int) -> torch.Tensor | int:
        """The timestep after this one in the run as a scalar on the CPU, -1 after the last.

        Where no schedule was set, one lower, in the type of the argument. ConfigError for one that is not there.
        """
        if self.num_inference_steps is None:
            return timestep - 1
        return torch.tensor(self._follower(int(self._value(timestep))))


class DDPMScheduler(Chain):
    """Ancestral sampling of the DDPM chain. Settings and defaults as in diffusers' class.

    The `_log` variances name the same numbers as those without: they only differ in how training computed them. None,
    which configs of DPM-Solver say, is 'fixed_small'.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"ddpm": {}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str | None = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        super().__init__()

    def _check(self) -> None:
        super()._check()
        check_choice("variance_type", self.config.variance_type, (None, *VARIANCES))

    @property
    def _variance_type(self) -> str:
        return self.config.variance_type or "fixed_small"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Lay out `num_inference_steps` steps (1 … num_train_timesteps), or the given descending `timesteps`.

        Raises ConfigError for both or neither, or for `timesteps` that do not descend inside the trained range.
        """
        c = self.config
        if timesteps is not None:
            if num_inference_steps is not None:
                raise ConfigError(f"num_inference_steps={num_inference_steps} and custom timesteps: pass one.")
            t = descending(timesteps, c.num_train_timesteps)
        elif num_inference_steps is not None:
            steps = self._steps_asked(num_inference_steps)
            t = spaced_timesteps(c.timestep_spacing, steps, c.num_train_timesteps, offset=c.steps_offset).round()
        else:
            raise ConfigError("set_timesteps needs num_inference_steps or timesteps.")
        self.num_inference_steps = len(t)
        self.custom_timesteps = timesteps is not None
        self._place(t, device, torch.int64)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x_{t-1} from x_t (B, C, H, W), equation 7, plus noise from `generator` where t > 0.

        With a learned variance the model's output is (B, 2 C, H, W). Without `set_timesteps` it walks all of training.
        """
        t = self._train_step(timestep)
        t_prev = self._follower(t)
        abar, abar_prev = self._abar[t], self._abar[t_prev] if t_prev >= 0 else 1.0
        if abar_prev == 0:
            raise ConfigError(f"no signal is left at timestep {t_prev}: lower beta_end={self.config.beta_end}.")
        beta = 1 - abar / abar_prev
        if abar == 0 and self.config.prediction_type == "epsilon":
            raise ConfigError(
                "rescale_betas_zero_snr leaves no signal at the first timestep, from which an epsilon prediction can "
                "not give x_0: use prediction_type='v_prediction' or rescale_betas_zero_snr=False."
            )

        x, output = full_precision(sample, model_output)
        learned = None
        if self._variance_type.startswith("learned"):
            if output.shape[1] != 2 * x.shape[1]:
                raise ConfigError(
                    f"variance_type={self.config.variance_type!r} needs a model output of {2 * x.shape[1]} channels, "
                    f"got {output.shape[1]}: use variance_type='fixed_small' with this model."
                )
            output, learned = output.chunk(2, dim=1)
        x0 = self._clip(self._predict_x0(output, x, math.sqrt(abar), math.sqrt(1 - abar)))
        prev = (math.sqrt(abar_prev) * beta * x0 + math.sqrt(1 - beta) * (1 - abar_prev) * x) / (1 - abar)
        if t > 0:
            like = model_output
            noise = randn(output.shape, generator=generator, device=like.device, dtype=like.dtype)
            prev = prev + self._std(abar, abar_prev, learned) * noise
        return step_result(prev, x0, sample, return_dict)

    def _std(self, abar: float, abar_prev: float, learned: torch.Tensor | None) -> Any:
        """Standard deviation of the noise: a float, or a tensor where the model predicts it."""
        beta = 1 - abar / abar_prev
        small = max((1 - abar_prev) / (1 - abar) * beta, 1e-20)  # equation 7's beta tilde, kept above log(0)
        if learned is None:
            return math.sqrt(small if self._variance_type.startswith("fixed_small") else beta)
        if self.config.variance_type == "learned":
            return learned.sqrt()
        share = (learned + 1) / 2  # of the way from log(small) to log(beta): arXiv 2102.09672, equation 15
        return torch.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(small)))


def descending(timesteps: Sequence[int], trained: int) -> np.ndarray:
    """A caller's own timesteps as int64; ConfigError unless they descend and lie in 0 … trained - 1."""
    t = np.array(timesteps, dtype=np.int64)
    if t.size == 0 or (np.diff(t) >= 0).any() or t[0] >= trained or t[-1] < 0:
        raise ConfigError(f"timesteps={list(timesteps)}: pass descending timesteps from 0 … {trained - 1}.")
    return t


schedulers.add("DDPMScheduler", DDPMScheduler)
