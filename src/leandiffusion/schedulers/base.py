"""What every scheduler shares: settings, the training noise schedule, the run's position, noising.

A scheduler holds immutable tables (betas, timesteps, sigmas) and a little run state (position, past outputs) that is
replaced, never changed in place. So `clone()` is a shallow copy, and calls that each step a clone cannot disturb each
other. Everything `step` needs is a Python float by then: nothing reads the device inside the denoising loop.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ..core.errors import ConfigError
from ..core.output import Output
from ..device.host import is_host
from .schedule import SPACINGS, check_choice, dynamic_threshold, make_betas, rescale_zero_terminal_snr
from .settings import SchedulerSettings


@dataclass(eq=False)
class SchedulerOutput(Output):
    """What `step` returns: x_{t-1} and, where the sampler forms one, its current estimate of x_0; both (B, C, H, W)."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class NotInSchedule(ConfigError):
    """A timestep that the schedule does not have."""


class Scheduler(SchedulerSettings):
    """Base of the schedulers. Subclasses list their settings as constructor keywords and define `step`.

    Attributes: `timesteps` (steps,) on the device asked for, descending; `betas`, `alphas`, `alphas_cumprod`
    (num_train_timesteps,) float32 on the CPU; `num_inference_steps`; `order`, the model calls per step.
    Until `set_timesteps` is called, `timesteps` are those of training.
    Every wrong setting is a ConfigError that names it.
    """

    order: ClassVar[int] = 1
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample")
    short_names: ClassVar[dict[str, dict[str, Any]]] = {}
    """Names that the command line takes, each with the settings that it implies."""

    def __init__(self) -> None:
        self._note_defaults()
        self._check()
        self.num_inference_steps: int | None = None
        self._lay_out_training()

    def _lay_out_training(self) -> None:
        """Set the tables of the noise that the model was trained with, and its timesteps as the schedule so far."""
        config = self.config
        self.betas = make_betas(
            config.beta_schedule, config.beta_start, config.beta_end, config.num_train_timesteps, config.trained_betas
        )
        if self._asks("rescale_betas_zero_snr"):
            self.betas = rescale_zero_terminal_snr(self.betas)
        self.alphas = 1.0 - self.betas
        self._set_alphas_cumprod(torch.cumprod(self.alphas, dim=0))
        self._place(np.arange(config.num_train_timesteps)[::-1], None, torch.int64)

    def _check(self) -> None:
        """Refuse settings that this class does not support."""
        check_choice("prediction_type", self.config.prediction_type, self.prediction_types)
        if "timestep_spacing" in self._own:
            check_choice("timestep_spacing", self.config.timestep_spacing, SPACINGS)

    def _set_alphas_cumprod(self, abar: torch.Tensor) -> None:
        if not bool(((abar >= 0) & (abar < 1)).all()) or not bool((abar[:-1] > 0).all()):
            raise ConfigError(
                f"the betas of {type(self).__name__} are not a noise schedule: each must lie between 0 and 1, and some "
                "signal be left before the last step. Check beta_start, beta_end and trained_betas."
            )
        self.alphas_cumprod = abar
        self._abar: tuple[float, ...] = tuple(abar.tolist())

    def clone(self) -> Self:
        """An independent scheduler with the same settings and schedule, at the start of a run. Computes nothing."""
        twin = copy.copy(self)
        twin._restart()
        return twin

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # Position in the run

    @property
    def timesteps(self) -> torch.Tensor:
        """(steps,) the timesteps to call the model with, in order."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: torch.Tensor) -> None:
        self._timesteps = value
        self._values: tuple[float, ...] = tuple(value.tolist())

    @property
    def step_index(self) -> int | None:
        """Index into `timesteps` of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step when a run starts part-way; None to find it from the first timestep."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at `timesteps[begin_index]`, as image-to-image does."""
        self._begin_index = begin_index

    @property
    def init_noise_sigma(self) -> float | torch.Tensor:
        """Standard deviation of the noise that a run starts from."""
        return 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The model's input for `sample` (B, C, H, W) at `timestep`: here the sample itself."""
        return sample

    def _place(self, timesteps: np.ndarray, device: torch.device | str | None, dtype: torch.dtype) -> None:
        """Adopt a new schedule and go to its start."""
        on_cpu = torch.from_numpy(timesteps.copy()).to(dtype)
        self._values = tuple(on_cpu.tolist())
        self._timesteps = on_cpu.to(device or "cpu")
        self._begin_index: int | None = None
        self._restart()

    def _restart(self) -> None:
        """Forget everything about the run so far. Subclasses drop their past outputs here."""
        self._step_index: int | None = None
        self._next = 0  # position that follows the last timestep seen

    def _steps_asked(self, num_inference_steps: int) -> int:
        """`num_inference_steps`, checked: ConfigError unless it is a whole number from 1 to num_train_timesteps."""
        most = self.config.num_train_timesteps
        whole = isinstance(num_inference_steps, int | np.integer) and not isinstance(num_inference_steps, bool)
        if not whole or not 1 <= num_inference_steps <= most:
            raise ConfigError(
                f"num_inference_steps={num_inference_steps!r}: pass a whole number from 1 to {most}, "
                f"the number of steps that the model was trained with."
            )
        return int(num_inference_steps)

    def _require_schedule(self) -> int:
        """The number of steps; ConfigError when `set_timesteps` was not called."""
        if self.num_inference_steps is None:
            raise ConfigError(f"{type(self).__name__}.step before set_timesteps: call set_timesteps(steps) first.")
        return self.num_inference_steps

    def _offset(self, timestep: object) -> int | None:
        """Where in `self.timesteps` an element or slice of it starts, by its storage offset: no value is read."""
        own = self._timesteps
        if not isinstance(timestep, torch.Tensor) or timestep.device != own.device or timestep.dtype != own.dtype:
            return None
        if timestep.untyped_storage().data_ptr() != own.untyped_storage().data_ptr():
            return None
        index, rest = divmod(int(timestep.storage_offset() - own.storage_offset()), int(own.stride(0)))
        return index if rest == 0 and 0 <= index < len(self._values) else None

    def _value(self, timestep: torch.Tensor | float) -> float:
        """`timestep` as a number.

        An element of `self.timesteps` is recognised by its storage offset. Any other tensor on an accelerator is taken,
        unread, to be the one that follows the last, once a run has begun; the first of a run is read, and so are
        tensors on the CPU.
        """
        index = self._offset(timestep)
        if index is None and isinstance(timestep, torch.Tensor):
            started = 0 < self._next < len(self._values)
            if is_host(timestep.device) or not started:
                return timestep.flatten()[0].item()
            index = self._next
        if index is None:
            return timestep  # type: ignore[return-value]  # a plain number
        self._next = index + 1
        return self._values[index]

    def _train_step(self, timestep: torch.Tensor | float) -> int:
        """`timestep` as an index into `alphas_cumprod`; ConfigError when it lies outside."""
        t = int(self._value(timestep))
        if not 0 <= t < len(self._abar):
            raise ConfigError(
                f"timestep {t} is outside 0 … {len(self._abar) - 1}: pass an element of scheduler.timesteps"
                + (f" or lower steps_offset={self.config.steps_offset}." if t == len(self._abar) else ".")
            )
        return t

    def index_for_timestep(self, timestep: torch.Tensor | float, schedule_timesteps: torch.Tensor | None = None) -> int:
        """Index of `timestep` in `timesteps`, or in `schedule_timesteps`. Raises ConfigError when it is not there.

        A value that occurs more than once gives its second place, so that a run that starts part-way skips no sigma;
        an element taken from `self.timesteps` gives its own place and is not read.
        """
        values = self._values if schedule_timesteps is None else schedule_timesteps.tolist()
        index = self._offset(timestep) if schedule_timesteps is None else None
        if index is not None:
            return index
        number = timestep.item() if isinstance(timestep, torch.Tensor) else timestep
        places = [place for place, value in enumerate(values) if value == number]
        if not places:
            raise NotInSchedule(
                f"timestep {number} is not in the schedule of {len(values)} steps ({values[0]} … {values[-1]}): "
                f"pass an element of scheduler.timesteps."
            )
        return places[1] if len(places) > 1 else places[0]

    def _current_index(self, timestep: torch.Tensor | float) -> int:
        """The index of this step: found on the first call of a run, counted from then on."""
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if self._step_index >= len(self._values):
            raise ConfigError(f"all {len(self._values)} steps were taken: call set_timesteps to start another run.")
        return self._step_index

    # Noising

    def _abar_at(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """abar at `timesteps` (B,), float32, shaped to multiply `like` (B, ...)."""
        abar = self.alphas_cumprod.to(like.device)[timesteps.to(like.device, torch.int64)]
        return abar.flatten().reshape(-1, *(1,) * (like.ndim - 1))

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, for samples (B, ...) and timesteps (B,) or (1,)."""
        abar = self._abar_at(timesteps, original_samples)
        return (abar.sqrt() * original_samples + (1 - abar).sqrt() * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v_t = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0, what a v-prediction model learns: arXiv 2202.00512."""
        abar = self._abar_at(timesteps, sample)
        return (abar.sqrt() * noise - (1 - abar).sqrt() * sample).to(sample.dtype)

    # Predictions

    def _predict_x0(self, output: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """x_0 from the model's output, where x = alpha x_0 + sigma eps."""
        if self.config.prediction_type == "epsilon":
            return (x - sigma * output) / alpha
        if self.config.prediction_type == "v_prediction":
            return alpha * x - sigma * output
        return output

    def _predict_eps(self, output: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """The noise eps from the model's output, where x = alpha x_0 + sigma eps."""
        if self.config.prediction_type == "epsilon":
            return output
        if self.config.prediction_type == "v_prediction":
            return alpha * output + sigma * x
        return (x - alpha * output) / sigma

    def _clip(self, x0: torch.Tensor) -> torch.Tensor:
        """`x0` (B, ...) thresholded or clipped, where the settings ask for it."""
        if self._asks("thresholding"):
            return dynamic_threshold(x0, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        if self._asks("clip_sample"):
            return x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x0


def full_precision(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in float32 at least: half-precision states are stepped in float32 and returned as they came."""
    return tuple(each.to(torch.promote_types(each.dtype, torch.float32)) for each in tensors)


def step_result(prev: torch.Tensor, x0: torch.Tensor | None, like: torch.Tensor, return_dict: bool) -> Any:
    """A `step` result in the dtype of `like`: SchedulerOutput, or the tuple of what is set."""
    out = SchedulerOutput(prev.to(like.dtype), None if x0 is None else x0.to(like.dtype))
    return out if return_dict else out.to_tuple()
