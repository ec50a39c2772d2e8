"""Strategic stochastic sampling of trajectory consistency models: Zheng et al., arXiv 2402.19159, algorithm 4."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.output import Output
from .base import full_precision
from .lcm import LCMScheduler
from .noise import Generators, randn
from .settings import schedulers


@dataclass(eq=False)
class TCDSchedulerOutput(Output):
    """What `step` returns: x at the next timestep, and x_s before noise was added; both (B, C, H, W)."""

    prev_sample: torch.Tensor
    pred_noised_sample: torch.Tensor | None = None


class TCDScheduler(LCMScheduler):
    """TCD: each step goes down to a timestep s = (1 - eta) t' below the next one, t', and up to it again with noise.

    Settings and schedules as in diffusers' class, which are LCM's; with `original_inference_steps` given to
    `set_timesteps`, every training step counts as one of the distillation's.
    """

    short_names: ClassVar[dict[str, dict[str, Any]]] = {"tcd": {}}

    def _distilled(self, original_inference_steps: int | None, strength: float) -> np.ndarray:
        usual = super()._distilled(original_inference_steps, strength)
        return usual if original_inference_steps is None else np.arange(int(self.config.num_train_timesteps * strength))

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """x at the next timestep from x_t (B, C, H, W). `eta`, gamma in the paper, from 0, without noise, to 1."""
        steps = self._require_schedule()
        if not 0 <= eta <= 1:
            raise ConfigError(f"eta={eta}: pass a number from 0, no noise, to 1.")
        i = self._current_index(timestep)
        t = int(self._values[i])
        after = int(self._values[i + 1]) if i + 1 < len(self._values) else 0
        s = math.floor(np.float32(1 - eta) * np.float32(after))  # rounded as torch does
        alpha, sigma = math.sqrt(self._abar[t]), math.sqrt(1 - self._abar[t])
        if alpha == 0 and self.config.prediction_type == "epsilon":
            raise ConfigError("rescale_betas_zero_snr leaves no signal at the first timestep: use 'v_prediction'.")

        x, output = full_precision(sample, model_output)
        x0 = self._predict_x0(output, x, alpha, sigma)
        eps = self._predict_eps(output, x, alpha, sigma)
        prev = noised = math.sqrt(self._abar[s]) * x0 + math.sqrt(1 - self._abar[s]) * eps
        if eta > 0 and i != steps - 1:
            like = model_output
            noise = randn(like.shape, generator=generator, device=like.device, dtype=noised.dtype)
            ratio = self._abar[after] / self._abar[s]
            prev = math.sqrt(ratio) * noised + math.sqrt(1 - ratio) * noise
        self._step_index = i + 1
        out = TCDSchedulerOutput(prev.to(sample.dtype), noised.to(sample.dtype))
        return out if return_dict else out.to_tuple()


schedulers.add("TCDScheduler", TCDScheduler)
