"""What the networks of a pipeline say of sizes: pixels, latents, channels; and whether a task fits them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from ..run import inputs
from ..run.tasks.base import Task
from .request import Request
from .tasks import pipeline_for


class Shapes:
    """Mixin of the pipelines."""

    unet: Any
    vae: Any
    _sample_size: Any

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side; 8 where there is no VAE to ask."""
        return 8 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _shape_latents(self, request: Request, task: Task) -> tuple[int, int, int, int]:
        """Shape (B, C, h, w) of the latents for the size asked for, the model's own unless given."""
        height, width = self._pixels(request)
        latent, taken, factor = self._latent_channels(), self._unet_channels(), self.vae_scale_factor
        channels = latent or 4 if taken is None else taken - task.extra_channels
        if latent is not None and channels != latent:
            raise ConfigError(self._unfit(taken or channels, latent))
        return request.batch, channels, height // factor, width // factor

    def _pixels(self, request: Request) -> tuple[int, int]:
        """Height and width of the call, the model's own unless given. ConfigError unless they fit the latents."""
        own_height, own_width = self.own_size
        height = own_height if request.height is None else request.height
        width = own_width if request.width is None else request.width
        inputs.check_side("height", height, self.vae_scale_factor)
        inputs.check_side("width", width, self.vae_scale_factor)
        return height, width

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the model was trained with."""
        own = getattr(getattr(self.unet, "config", None), "sample_size", None) or self._sample_size
        height, width = (own, own) if isinstance(own, int) else own
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def _latent_channels(self) -> int | None:
        return getattr(getattr(self.vae, "config", None), "latent_channels", None)

    def _unet_channels(self) -> int | None:
        config = getattr(self.unet, "config", None)
        return getattr(config, "in_channels", None) or getattr(self.unet, "in_channels", None)

    def _unfit(self, taken: int, latent: int) -> str:
        """Why a UNet that takes so many channels cannot do what is asked, and what to do instead."""
        found = f"the UNet takes {taken} channels and the VAE's latents have {latent}: "
        if taken == 2 * latent + 1:
            inpainting = pipeline_for("inpainting", type(self))
            return (
                f"{found}this is an inpainting model, which wants a picture and a mask. {inpainting}.from_pipe(pipe) "
                f"draws with it; for a text or a picture alone open another model."
            )
        return f"{found}this is a depth or upscaling model, or another kind that is not supported. Open another model."

    def _check_width(self, prompt_embeds: Tensor | None) -> None:
        """ConfigError for embeddings of another text encoder than the UNet was trained with."""
        width = getattr(getattr(self.unet, "config", None), "cross_attention_dim", None)
        if prompt_embeds is not None and isinstance(width, int) and prompt_embeds.shape[-1] != width:
            raise ConfigError(
                f"prompt_embeds has {prompt_embeds.shape[-1]} channels and this UNet reads {width}: encode the prompt "
                "with this pipeline's encode_prompt."
            )
