"""StableDiffusionXLImg2ImgPipeline: text and a picture to a picture with SDXL checkpoints, refiners among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..families.two_encoders import Size
from .base import drawing
from .picture_checks import ChecksImg2ImgXL
from .picture_pieces import Img2ImgPieces
from .picture_requests import PictureRequestXL
from .request import arguments_of
from .sdxl_with_picture import StableDiffusionXLWithPicture
from .stable_diffusion_xl import StableDiffusionXLPipelineOutput


class StableDiffusionXLImg2ImgPipeline(Img2ImgPieces, ChecksImg2ImgXL, StableDiffusionXLWithPicture):
    """Draws a picture anew, as a text says. Components as those of StableDiffusionXLPipeline.

    A refiner has no `text_encoder` and `tokenizer`, and is told an `aesthetic_score`, which its checkpoint says as
    `requires_aesthetics_score`.
    """

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.3,
        num_inference_steps: int | None = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
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
        guidance_rescale: float = 0.0,
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
        """Draw `image` anew as `prompt` says, `num_images_per_prompt` times for each prompt.

        `image`, `strength` as in StableDiffusionImg2ImgPipeline's call, all else as in StableDiffusionXLPipeline's.
        `denoising_start` in (0, 1) goes on where a first model's `denoising_end` stopped, with that model's latents as
        `image`; `strength` then does not count and no noise is added. `latents` (B, 4, h, w) to begin with take the
        picture's place. Refiners are told `aesthetic_score`, and away from `negative_aesthetic_score`, instead of
        a target size.

        Returns StableDiffusionXLPipelineOutput, or (images,) when `return_dict` is False. Raises ConfigError for wrong
        arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        request = PictureRequestXL(**arguments_of(locals()))
        images, _ = self._draw(*self._image_to_image(request))
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)
