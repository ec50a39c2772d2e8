"""StableDiffusionInpaintPipeline: parts of a picture drawn anew with any SD1 or SD2 checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import drawing
from .from_pictures import FromPictures
from .picture_checks import ChecksInpaint
from .picture_pieces import InpaintPieces
from .picture_requests import MaskRequest
from .request import arguments_of
from .stable_diffusion import StableDiffusionPipeline, StableDiffusionPipelineOutput


class StableDiffusionInpaintPipeline(InpaintPieces, ChecksInpaint, FromPictures, StableDiffusionPipeline):
    """Draws a part of a picture anew, as a text says. Components as those of StableDiffusionPipeline.

    A UNet of nine channels was trained for it and sees the mask and the picture around it; with one of four what the
    mask leaves out is put back after each step.
    """

    callback_tensors = (*StableDiffusionPipeline.callback_tensors, "mask", "masked_image_latents")
    _callback_tensor_inputs: ClassVar[list[str]] = list(callback_tensors)

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int | None = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
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
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw `image` anew where `mask_image` is white, as `prompt` says.

        `image` as StableDiffusionImg2ImgPipeline takes it; it and the mask are stretched to `height` and `width`, the
        model's own size unless given. `mask_image`: Pillow pictures, arrays (B, H, W, 1) or (H, W), or tensors
        (B, 1, H, W) or (H, W), of the picture's proportions; 0.5 and more counts as white. `strength` as in image to
        image; below 1 something of what the mask covers shines through. `masked_image_latents` (B, 4, h, w) spare an
        inpainting model the encoding of the picture around the mask. With `padding_mask_crop` only the box around the
        mask and so many pixels more is drawn, at the full size, and laid back into the picture.

        Callbacks may also ask for `mask` (B, 1, h, w) and `masked_image_latents` (B, 4, h, w), twice B under guidance.
        All else, and what is returned and raised, as in StableDiffusionPipeline's call.
        """
        request = MaskRequest(**arguments_of(locals()))
        images, flagged = self._draw(request, self._inpainting(request))
        images = self._lay_back(request, images)
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)
