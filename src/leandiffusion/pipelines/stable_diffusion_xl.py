"""StableDiffusionXLPipeline: text to picture with SDXL checkpoints (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.output import Output
from ..families.two_encoders import PromptPair, Size, TwoEncoders
from ..run.run import Run
from ..run.tasks.text_to_image import TextToImage
from .absent import WATERMARK, unsupported
from .base import DiffusionPipeline, drawing, undisturbed
from .checks import ChecksXL
from .compat import deprecated
from .request import RequestXL, arguments_of


@dataclass(eq=False)
class StableDiffusionXLPipelineOutput(Output):
    """`images`: as `output_type` asked."""

    images: Any


class StableDiffusionXLPipeline(DiffusionPipeline, ChecksXL):
    """Draws pictures from text with two text encoders. Call it; `.images` of the result holds them.

    Components: `vae`, `text_encoder` and `tokenizer` (CLIP-L; may be None), `text_encoder_2` and `tokenizer_2`
    (OpenCLIP bigG), `unet`, `scheduler`. Calls in several threads at once do not disturb each other.
    """

    component_names: ClassVar[tuple[str, ...]] = (
        "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler",
        "image_encoder", "feature_extractor",
    )  # fmt: skip
    conditioner = TwoEncoders
    callback_tensors = TwoEncoders.callback_tensors
    model_cpu_offload_seq: ClassVar[str] = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "image_encoder", "feature_extractor",
    ]  # fmt: skip
    _callback_tensor_inputs: ClassVar[list[str]] = list(callback_tensors)
    watermark = None
    _heeds_force_upcast = True

    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        super().__init__(
            {
                "vae": vae,
                "text_encoder": text_encoder,
                "text_encoder_2": text_encoder_2,
                "tokenizer": tokenizer,
                "tokenizer_2": tokenizer_2,
                "unet": unet,
                "scheduler": scheduler,
                "image_encoder": image_encoder,
                "feature_extractor": feature_extractor,
            },
            {"force_zeros_for_empty_prompt": force_zeros_for_empty_prompt},
        )
        unsupported({"add_watermarker": add_watermarker or None}, WATERMARK)

    @property
    def denoising_end(self) -> float | None:
        """The share of the noise schedule after which the call stopped."""
        return self._denoising_end

    @drawing
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
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
        guidance_rescale: float = 0.0,
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
        """Draw `prompt` (and `prompt_2`, for the second encoder), `num_images_per_prompt` times each.

        As StableDiffusionPipeline's call, and: embeddings of one's own need their pooled ones (B, P) too.
        `original_size`, `target_size` (height, width) and `crops_coords_top_left` are what the network was told of its
        training pictures (sec. 2.2); the picture's own size and no crop unless given, and the `negative_` ones steer
        away. `denoising_end` in (0, 1) stops after that share of the noise schedule, for a second model to go on.

        Returns StableDiffusionXLPipelineOutput, or (images,) when `return_dict` is False. Raises ConfigError for wrong
        arguments before anything is computed, NonFiniteError instead of a black picture.
        """
        request = RequestXL(**arguments_of(locals()))
        images, _ = self._draw(request, TextToImage(generator, latents))
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

    @property
    def default_sample_size(self) -> Any:
        """Latents along a side unless a size is asked for."""
        return getattr(getattr(self.unet, "config", None), "sample_size", None) or 128

    def upcast_vae(self) -> None:
        """Deprecated, as in diffusers: make the VAE float32."""
        deprecated("upcast_vae", "pipe.vae.to(torch.float32), or leave it out: one that overflows is upcast by itself")
        self._stack.lifted(lambda: self.vae.to(torch.float32))

    def _prompt_of(self, arguments: Mapping[str, Any]) -> PromptPair:
        zeros: bool = self.config.force_zeros_for_empty_prompt
        return PromptPair(**arguments, zeros=zeros)

    @undisturbed
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Texts -> embeddings (B, T, C), the negative prompt's, pooled ones (B, P), and the negative prompt's.

        B counts `num_images_per_prompt` pictures for each prompt; the negative prompt's are None without guidance.
        """
        given = self._prompt_of(arguments_of(locals(), RequestXL.PROMPT))
        with self._lora_scaled(lora_scale):
            encoded: Any = self._encode(given, device, num_images_per_prompt, do_classifier_free_guidance, clip_skip)
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = encoded
        # Returned by name, as diffusers does: there are tools that read the names in this line.
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds  # type: ignore[return-value]

    def _conditions_besides_text(self, request: RequestXL, run: Run) -> tuple[Tensor, ...]:
        batch, _, h, w = run.shape
        factor = self.vae_scale_factor
        rows = request.time_ids((h * factor, w * factor), batch)
        return tuple(each.to(self.device, self.dtype) for each in rows)
