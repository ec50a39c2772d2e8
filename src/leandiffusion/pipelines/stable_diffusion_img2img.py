"""StableDiffusionImg2ImgPipeline: text and a picture to a picture with SD1 and SD2 checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import drawing
from .from_pictures import FromPictures
from .picture_checks import ChecksImg2Img
from .picture_pieces import Img2ImgPieces
from .picture_requests import PictureRequest
from .request import arguments_of
from .stable_diffusion import StableDiffusionPipeline, StableDiffusionPipelineOutput


class StableDiffusionImg2ImgPipeline(Img2ImgPieces, ChecksImg2Img, FromPictures, StableDiffusionPipeline):
    """Draws a picture anew, as a text says. Components as those of StableDiffusionPipeline."""

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw `image` anew as `prompt` says, `num_images_per_prompt` times for each prompt.

        `image`: a Pillow picture, an array (B, H, W, 3) or tensor (B, 3, H, W) in [0, 1], a list of one of them, or
        latents (B, 4, h, w), which are not encoded. What is drawn has its size, brought down to a multiple of 8. With
        fewer pictures than are drawn they are taken over and over: p, q, p, q. `strength` in [0, 1] is how much becomes
        new: noise as of that share of the schedule is added, and only the steps from there on are run. At 1 nothing but
        noise is left. All else as in StableDiffusionPipeline's call.

        Returns StableDiffusionPipelineOutput, or (images, nsfw_content_detected) when `return_dict` is False. Raises
        ConfigError for wrong arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        request = PictureRequest(**arguments_of(locals()))
        images, flagged = self._draw(*self._image_to_image(request))
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)
