"""StableDiffusionControlNetPipeline: text and a picture of edges, depth or the like to a picture, SD1 and SD2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..run.tasks.text_to_image import TextToImage
from .base import drawing
from .control_requests import ControlRequest, Scale
from .request import arguments_of
from .stable_diffusion import StableDiffusionPipeline, StableDiffusionPipelineOutput
from .with_controlnet import WithControlNet


class StableDiffusionWithControlNet(WithControlNet, StableDiffusionPipeline):
    """Base of SD1's and SD2's pipelines with ControlNets: the components of StableDiffusionPipeline, and
    `controlnet`."""

    component_names: ClassVar[tuple[str, ...]] = (*StableDiffusionPipeline.component_names, "controlnet")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self.controlnet = self._take_controlnet(controlnet)


class StableDiffusionControlNetPipeline(StableDiffusionWithControlNet):
    """Draws pictures from text, along what a ControlNet sees: edges, depth, poses.

    `controlnet` is a ControlNetModel, or a list of several, whose contributions add up.
    """

    @drawing
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
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
        controlnet_conditioning_scale: Scale = 1.0,
        guess_mode: bool = False,
        control_guidance_start: Scale = 0.0,
        control_guidance_end: Scale = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw `prompt` along `image`, what the ControlNet sees: a Pillow picture, an array (B, H, W, 3) or tensor
        (B, 3, H, W) in [0, 1], or a list of one of them with one for each prompt. With several ControlNets it is a list
        with an entry for each of them, or a list for each prompt with a picture for each of them.

        What is drawn has its size, unless `height` and `width` say another. `controlnet_conditioning_scale` times what
        a ControlNet says is added, from the share `control_guidance_start` of the steps to `control_guidance_end`; with
        several each may be a list. In `guess_mode` it is added to the conditional prediction only, the outer levels'
        part by a tenth: it then counts without a prompt too. All else as in StableDiffusionPipeline's call.

        Returns StableDiffusionPipelineOutput, or (images, nsfw_content_detected) when `return_dict` is False. Raises
        ConfigError for wrong arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        arguments = arguments_of(locals())
        request, controls = self._controls(
            ControlRequest(control_image=arguments.pop("image"), **arguments), takes_size=True
        )
        images, flagged = self._draw(request, TextToImage(generator, latents), controls)
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)
