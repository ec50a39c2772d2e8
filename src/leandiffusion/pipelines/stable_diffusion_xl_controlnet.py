"""StableDiffusionXLControlNetPipeline: text and a picture of edges, depth or the like to a picture, with SDXL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..families.two_encoders import Size
from ..run.tasks.text_to_image import TextToImage
from .base import drawing
from .control_requests import ControlRequestXL, Scale
from .request import arguments_of
from .stable_diffusion_xl import StableDiffusionXLPipeline, StableDiffusionXLPipelineOutput
from .with_controlnet import WithControlNet


class StableDiffusionXLWithControlNet(WithControlNet, StableDiffusionXLPipeline):
    """Base of SDXL's pipelines with ControlNets: the components of StableDiffusionXLPipeline, and `controlnet`."""

    component_names: ClassVar[tuple[str, ...]] = (*StableDiffusionXLPipeline.component_names, "controlnet")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
    ) -> None:
        super().__init__(
            vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, scheduler, image_encoder,
            feature_extractor, force_zeros_for_empty_prompt, add_watermarker,
        )  # fmt: skip
        self.controlnet = self._take_controlnet(controlnet)


class StableDiffusionXLControlNetPipeline(StableDiffusionXLWithControlNet):
    """Draws pictures from text with two text encoders, along what a ControlNet sees: edges, depth, poses.

    `controlnet` is a ControlNetModel, or a list of several, whose contributions add up.
    """

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
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
        controlnet_conditioning_scale: Scale = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Scale = 0.0,
        control_guidance_end: Scale = 1.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any]:
        """Draw `prompt` along `image`, what the ControlNet sees, as StableDiffusionControlNetPipeline's call does with
        it and with `controlnet_conditioning_scale`, `guess_mode`, `control_guidance_start` and `control_guidance_end`.

        All else, and what is returned and raised, as in StableDiffusionXLPipeline's call.
        """
        arguments = arguments_of(locals())
        request, controls = self._controls(
            ControlRequestXL(control_image=arguments.pop("image"), **arguments), takes_size=True
        )
        images, _ = self._draw(request, TextToImage(generator, latents), controls)
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)
