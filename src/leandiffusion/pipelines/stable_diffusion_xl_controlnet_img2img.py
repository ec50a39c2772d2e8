"""StableDiffusionXLControlNetImg2ImgPipeline: a picture drawn anew along what a ControlNet sees, with SDXL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..families.two_encoders import Size
from .base import drawing
from .control_requests import ControlPictureRequestXL, Scale
from .request import arguments_of
from .sdxl_with_picture_and_controlnet import StableDiffusionXLWithPictureAndControlNet
from .stable_diffusion_xl import StableDiffusionXLPipelineOutput


class StableDiffusionXLControlNetImg2ImgPipeline(StableDiffusionXLWithPictureAndControlNet):
    """Draws a picture anew, as a text says and along what a ControlNet sees."""

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Any = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: Scale = 0.8,
        guess_mode: bool = False,
        control_guidance_start: Scale = 0.0,
        control_guidance_end: Scale = 1.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Draw `image` anew, as `prompt` says and along `control_image`, what the ControlNet sees.

        `control_image` and what says how much it counts as in StableDiffusionXLControlNetPipeline's call, all else as
        in StableDiffusionXLImg2ImgPipeline's.

        Returns StableDiffusionXLPipelineOutput, or (images,) when `return_dict` is False. Raises
        ConfigError for wrong arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        request = ControlPictureRequestXL(**arguments_of(locals()), timesteps=None, sigmas=None)
        request, task = self._image_to_image(request)
        request, controls = self._controls(request)
        images, _ = self._draw(request, task, controls)
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)
