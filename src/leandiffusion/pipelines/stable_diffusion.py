"""StableDiffusionPipeline: text to picture with SD1 and SD2 checkpoints (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.output import Output
from ..families.one_encoder import OneEncoder, Prompt
from ..run import inputs
from ..run.decoding import decode_raw, to_unit
from ..run.tasks.text_to_image import TextToImage
from .base import DiffusionPipeline, drawing, undisturbed
from .checks import Checks
from .compat import deprecated
from .images import to_output
from .outdated import mend_scheduler, mend_unet
from .request import Request, arguments_of
from .safety import SafetyChecking


@dataclass(eq=False)
class StableDiffusionPipelineOutput(Output):
    """`images`: as `output_type` asked; `nsfw_content_detected`: one bool per picture, or None if unchecked."""

    images: Any
    nsfw_content_detected: list[bool] | None = None


class StableDiffusionPipeline(DiffusionPipeline, SafetyChecking, Checks):
    """Draws pictures from text. Call it; `.images` of the result holds them.

    Components: `vae`, `text_encoder`, `tokenizer`, `unet`, `scheduler`, and optionally `safety_checker` with its
    `feature_extractor`. Calls in several threads at once do not disturb each other.
    """

    component_names: ClassVar[tuple[str, ...]] = (
        "vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor", "image_encoder",
    )  # fmt: skip

    conditioner = OneEncoder
    callback_tensors = OneEncoder.callback_tensors
    model_cpu_offload_seq: ClassVar[str] = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["safety_checker", "feature_extractor", "image_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = list(callback_tensors)

    vae: Any
    text_encoder: Any
    tokenizer: Any
    safety_checker: Any
    feature_extractor: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        mend_unet(unet)
        mend_scheduler(scheduler)
        super().__init__(
            {
                "vae": vae,
                "text_encoder": text_encoder,
                "tokenizer": tokenizer,
                "unet": unet,
                "scheduler": scheduler,
                "safety_checker": safety_checker,
                "feature_extractor": feature_extractor,
                "image_encoder": image_encoder,
            },
            {"requires_safety_checker": requires_safety_checker},
        )
        if safety_checker is not None and feature_extractor is None:
            inputs.refuse({"safety_checker": safety_checker}, "it needs a feature_extractor: pass both or neither")

    @drawing
    def __call__(
        self,
        prompt: str | list[str] | None = None,
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
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Draw `prompt`, a text or a list of them (or `prompt_embeds` (B, T, C)), `num_images_per_prompt` times each.

        `height`, `width`: pixels, divisible by 8; the model's own size unless given. `guidance_scale` above 1 pushes
        away from `negative_prompt` (nothing, unless given) towards the prompt; `guidance_rescale` in [0, 1] tames its
        contrast. `timesteps` or `sigmas` replace the schedule of `num_inference_steps`. `eta` in [0, 1] is DDIM's
        noise. `generator`: one for all or a list with one per picture; the same seed gives the same picture.
        `latents` (B, 4, h, w): starting noise of variance 1. `output_type`: 'pil', 'np' (B, H, W, 3), 'pt'
        (B, 3, H, W), or 'latent'. `clip_skip`: text-encoder layers to leave out at the end.

        `callback_on_step_end(pipe, step, timestep, tensors)` runs after each step with the tensors it names in
        `callback_on_step_end_tensor_inputs` (`latents`, `prompt_embeds`, `negative_prompt_embeds`) and may return
        changed ones.

        Returns StableDiffusionPipelineOutput, or (images, nsfw_content_detected) when `return_dict` is False. Raises
        ConfigError for wrong arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        request = Request(**arguments_of(locals()))
        images, flagged = self._draw(request, TextToImage(generator, latents))
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)

    def _prompt_of(self, arguments: Mapping[str, Any]) -> Prompt:
        return Prompt(**arguments)

    @undisturbed
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Texts -> embeddings (B * num_images_per_prompt, T, C), and under guidance those of the negative prompt.

        The negative embeddings are None without guidance, and always the last layer's, whatever `clip_skip`.
        """
        given = self._prompt_of(arguments_of(locals(), Request.PROMPT))
        with self._lora_scaled(lora_scale):
            encoded: Any = self._encode(given, device, num_images_per_prompt, do_classifier_free_guidance, clip_skip)
        prompt_embeds, negative_prompt_embeds = encoded
        # Returned by name, as diffusers does: there are tools that read the names in this line.
        return prompt_embeds, negative_prompt_embeds  # type: ignore[return-value]

    @undisturbed
    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) -> pictures (B, H, W, 3) in [0, 1]. Deprecated, as in diffusers."""
        deprecated("decode_latents", "pipe.vae.decode and pipe.image_processor.postprocess", decorators=2)
        return to_output(to_unit(decode_raw(self.vae, latents)), "np")
