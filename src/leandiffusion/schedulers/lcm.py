"""Multistep sampling of latent consistency models: Luo et al., arXiv 2310.04378, algorithm 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.notices import warn
from ..core.output import Output
from .base import full_precision
from .ddpm import Chain, descending
from .noise import Generators, randn
from .settings import schedulers

SIGMA_DATA = 0.5


@dataclass(eq=False)
class LCMSchedulerOutput(Output):
    """What `step` returns: x_{t-1} and the consistency function's x_0; both (B, C, H, W)."""

    prev_sample: torch.Tensor
    denoised: torch.Tensor | None = None


class LCMScheduler(Chain):
    """LCM: each step predicts x_0 outright and noises it again for the next. Settings as in diffusers' class."""

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"lcm": {}}

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Sequence[float] | None = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        super().__init__()
        self._final_abar = 1.0 if set_alpha_to_one else self._abar[0]

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """abar after the last step, a scalar."""
        return torch.tensor(self._final_abar)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Pick `num_inference_steps` of the distillation's timesteps (as many of them as `strength` leaves), or use
        the given descending `timesteps`.

        Raises ConfigError for both or neither, and for more steps than the distillation had.
        """
        original = original_inference_steps or self.config.original_inference_steps
        distilled = self._distilled(original_inference_steps, strength)
        if timesteps is not None:
            if num_inference_steps is not None:
                raise ConfigError(f"num_inference_steps={num_inference_steps} and custom timesteps: pass one.")
            t = self._own_timesteps(timesteps, distilled, strength)
        elif num_inference_steps is not None:
            steps = self._steps_asked(num_inference_steps)
            if steps > len(distilled):
                raise ConfigError(
                    f"num_inference_steps={steps}: this model was distilled at {original} timesteps, of which "
                    f"strength={strength} leaves {len(distilled)}; ask for at most that many."
                )
            self.num_inference_steps = steps
            t = distilled[::-1][np.linspace(0, len(distilled), steps, endpoint=False).astype(np.int64)]
        else:
            raise ConfigError("set_timesteps needs num_inference_steps or timesteps.")
        self.custom_timesteps = timesteps is not None
        self._place(t, device, torch.int64)

    def _distilled(self, original_inference_steps: int | None, strength: float) -> np.ndarray:
        """Ascending timesteps that the model was distilled at, as far as `strength` reaches."""
        original = original_inference_steps or self.config.original_inference_steps
        trained = self.config.num_train_timesteps
        if not 1 <= original <= trained:
            raise ConfigError(f"original_inference_steps={original}: pass 1 … num_train_timesteps={trained}.")
        return np.arange(1, int(original * strength) + 1) * (trained // original) - 1

    def _own_timesteps(self, timesteps: Sequence[int], distilled: np.ndarray, strength: float) -> np.ndarray:
        t = descending(timesteps, self.config.num_train_timesteps)
        strange = sorted(set(t[1:].tolist()) - set(distilled.tolist()))
        if strange or (strength == 1.0 and t[0] != self.config.num_train_timesteps - 1):
            warn(
                f"timesteps={t.tolist()} are not those that this model was distilled at (multiples of "
                f"{distilled[0] + 1} minus 1, from {self.config.num_train_timesteps - 1} down): expect artefacts."
            )
        self.num_inference_steps = len(t)
        return t[len(t) - min(int(len(t) * strength), len(t)) :]

    def get_scalings_for_boundary_condition_discrete(self, timestep: float) -> tuple[float, float]:
        """(c_skip, c_out) of the consistency function, which at timestep 0 must return its input: section 4.1."""
        s = timestep * self.config.timestep_scaling
        return SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2), s / math.hypot(s, SIGMA_DATA)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x at the next timestep from x_t (B, C, H, W), with noise from `generator` unless this is the last step."""
        steps = self._require_schedule()
        i = self._current_index(timestep)
        t = int(self._values[i])
        c_skip, c_out = self.get_scalings_for_boundary_condition_discrete(t)
        alpha, sigma = math.sqrt(self._abar[t]), math.sqrt(1 - self._abar[t])
        if alpha == 0 and self.config.prediction_type == "epsilon":
            raise ConfigError("rescale_betas_zero_snr leaves no signal at the first timestep: use 'v_prediction'.")

        x, output = full_precision(sample, model_output)
        x0 = self._clip(self._predict_x0(output, x, alpha, sigma))
        prev = denoised = c_out * x0 + c_skip * x
        if i != steps - 1:
            like = model_output
            noise = randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
            a = self._abar[int(self._values[min(i + 1, len(self._values) - 1)])]
            prev = math.sqrt(a) * denoised + math.sqrt(1 - a) * noise
        self._step_index = i + 1
        out = LCMSchedulerOutput(prev.to(sample.dtype), denoised.to(sample.dtype))
        return out if return_dict else out.to_tuple()


schedulers.add("LCMScheduler", LCMScheduler)
