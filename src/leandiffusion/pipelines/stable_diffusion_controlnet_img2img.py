"""StableDiffusionControlNetImg2ImgPipeline: a picture drawn anew along what a ControlNet sees, SD1 and SD2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import drawing
from .control_requests import ControlPictureRequest, Scale
from .from_pictures import FromPictures
from .request import arguments_of
from .stable_diffusion import StableDiffusionPipelineOutput
from .stable_diffusion_controlnet import StableDiffusionWithControlNet


class StableDiffusionControlNetImg2ImgPipeline(FromPictures, StableDiffusionWithControlNet):
    """Draws a picture anew, as a text says and along what a ControlNet sees."""

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Scale = 0.8,
        guess_mode: bool = False,
        control_guidance_start: Scale = 0.0,
        control_guidance_end: Scale = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw `image` anew, as `prompt` says and along `control_image`, what the ControlNet sees.

        `control_image` and what says how much it counts as in StableDiffusionControlNetPipeline's call, all else as in
        StableDiffusionImg2ImgPipeline's.

        Returns StableDiffusionPipelineOutput, or (images, nsfw_content_detected) when `return_dict` is False. Raises
        ConfigError for wrong arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        request = ControlPictureRequest(**arguments_of(locals()), timesteps=None, sigmas=None)
        request, task = self._image_to_image(request)
        request, controls = self._controls(request)
        images, flagged = self._draw(request, task, controls)
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)
