"""What the pipelines share in running: checks of common arguments, this call's own state, the denoising loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import ConfigError
from ..schedulers import randn
from . import inputs
from .assembly import Assembly
from .stages import Conditioning, Guidance, denoise, embed_guidance, set_timesteps


class DiffusionPipeline(Assembly):
    """Base of the pipelines. `last_times` holds the seconds per stage of the most recent finished call."""

    callback_tensors: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")
    unet: Any
    vae: Any
    scheduler: Any
    _guidance_scale: float
    _guidance_rescale: float
    _num_timesteps: int

    def __init__(self, components: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        super().__init__(components, settings)
        self.last_times: dict[str, float] = {}
        self._progress: dict[str, Any] = {}
        self._interrupt = False

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Arguments for tqdm, such as `disable=True`, `desc=` or `leave=False`."""
        self._progress = settings

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop after that step and decode what there is."""
        return self._interrupt

    def _begin(self, guidance_scale: float, guidance_rescale: float) -> Self:
        """This call's own view of the pipeline: shared weights, private scheduler and settings.

        It is what callbacks receive, so that they may change it without touching calls in other threads.
        """
        call = copy.copy(self)
        call.scheduler = self.scheduler.clone() if hasattr(self.scheduler, "clone") else copy.deepcopy(self.scheduler)
        call._guidance_scale, call._guidance_rescale, call._interrupt = guidance_scale, guidance_rescale, False
        return call

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the running call; callbacks may set `_guidance_scale` to change it between steps."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running call predicts with and without the words."""
        return self._guidance_scale > 1 and not self._distilled

    @property
    def num_timesteps(self) -> int:
        """Steps of the running call."""
        return self._num_timesteps

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _default_size(self) -> tuple[int, int]:
        size = getattr(getattr(self.unet, "config", None), "sample_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def _check_call(
        self, height: Any, width: Any, steps: Any, guidance_scale: Any, guidance_rescale: Any, eta: Any
    ) -> tuple[int, int]:
        """The picture's height and width. ConfigError for numbers out of their ranges."""
        own_height, own_width = self._default_size()
        height, width = own_height if height is None else height, own_width if width is None else width
        inputs.check_size(height, width, self.vae_scale_factor)
        inputs.check_count("num_inference_steps", steps)
        inputs.check_number("guidance_scale", guidance_scale, -1000, 1000)
        inputs.check_number("guidance_rescale", guidance_rescale, 0, 1)
        inputs.check_number("eta", eta, 0, 1)
        return height, width

    def _give_notice(self, texts: Sequence[str]) -> None:
        """Warn of what this model does not know in `texts`, if it came with a way to tell."""
        notices = [self.notice(text) for text in texts] if self.notice is not None else []
        for notice in dict.fromkeys(filter(None, notices)):
            warnings.warn(notice, stacklevel=5)

    def _distilled_input(self, batch: int) -> Tensor | None:
        """The guidance scale as an input (B, D) of a distilled UNet; None for others."""
        if not self._distilled:
            return None
        dim = self.unet.config.time_cond_proj_dim
        return embed_guidance(self._guidance_scale, batch, dim, self.dtype).to(self.device)

    def _prepare_latents(
        self, batch: int, height: int, width: int, dtype: torch.dtype, generator: Any, latents: Any
    ) -> Tensor:
        """Starting noise at the scheduler's scale, drawn as diffusers draws it, or the caller's at that scale."""
        channels = getattr(getattr(self.unet, "config", None), "in_channels", None) or self.unet.in_channels
        if channels != self.vae.config.latent_channels:
            raise ConfigError(
                f"the UNet takes {channels} channels and the VAE makes latents of {self.vae.config.latent_channels}: "
                "this is an inpainting or depth model, which text-to-image can not run."
            )
        shape = (batch, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        inputs.check_latents(latents, shape)
        if latents is None:
            latents = randn(shape, generator=generator, device=self.device, dtype=dtype)
        return latents.to(self.device, dtype) * self.scheduler.init_noise_sigma

    def _denoise(
        self,
        steps: int,
        own_schedule: Mapping[str, Any],
        conditioning: Conditioning,
        latents: Callable[[], Tensor],
        *,
        step_arguments: Mapping[str, Any],
        callback: Callable[..., Any] | None,
        callback_inputs: list[str],
        tensors: dict[str, Tensor],
        until: Callable[[Tensor], Tensor] = lambda timesteps: timesteps,
    ) -> Tensor:
        """Run the denoising loop with progress bar and callback. `tensors` are those that the callback may ask for."""
        timesteps = until(set_timesteps(self.scheduler, steps, self.device, **own_schedule))
        self._num_timesteps = len(timesteps)
        guidance = Guidance(self._guidance_scale, self._guidance_rescale, self._distilled)
        noise = latents()

        with self.progress_bar(total=len(timesteps) // getattr(self.scheduler, "order", 1)) as bar:
            every = max(len(timesteps) // max(bar.total, 1), 1)

            def after_step(i: int, t: Tensor, latents: Tensor) -> Tensor:
                if callback is not None:
                    tensors.update(latents=latents, prompt_embeds=conditioning.embeds)
                    changed = callback(self, i, t, {name: tensors[name] for name in callback_inputs}) or {}
                    tensors.update(changed)
                    latents = tensors["latents"]
                    self._take_changes(conditioning, tensors)
                    guidance.scale = self._guidance_scale
                if (i + 1) % every == 0:
                    bar.update()
                return latents

            return denoise(
                self.unet, self.scheduler, timesteps, noise, conditioning, guidance,
                step_arguments=step_arguments, after_step=after_step, stop=lambda: self._interrupt,
            )  # fmt: skip

    def _take_changes(self, conditioning: Conditioning, tensors: Mapping[str, Tensor]) -> None:
        """What a callback returned besides latents."""
        conditioning.embeds = tensors["prompt_embeds"]

    @property
    def _distilled(self) -> bool:
        return getattr(getattr(self.unet, "config", None), "time_cond_proj_dim", None) is not None

    @contextmanager
    def progress_bar(self, total: int) -> Iterator[tqdm]:
        """A tqdm bar over the steps, configured by `set_progress_bar_config`; cleared of half lines on errors."""
        with tqdm(total=total, **self._progress) as bar:
            yield bar
