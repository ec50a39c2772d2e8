"""StableDiffusionXLPipeline: text to picture with SDXL checkpoints (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.output import Output
from . import inputs
from .absent import ATTENTION, IP_ADAPTER, LORA, WATERMARK, no_ip_adapter, unsupported
from .base import DiffusionPipeline, drawing, undisturbed
from .checks import ChecksXL
from .compat import deprecated
from .images import to_output
from .request import Request
from .stages import Conditioning, both_halves, check_clip_skip, decode, encode_text, tokenize

Size = tuple[int, int]


@dataclass(eq=False)
class StableDiffusionXLPipelineOutput(Output):
    """`images`: as `output_type` asked."""

    images: Any


class StableDiffusionXLPipeline(DiffusionPipeline, ChecksXL):
    """Draws pictures from words with two text encoders. Call it; `.images` of the result holds them.

    Components: `vae`, `text_encoder` and `tokenizer` (CLIP-L; may be None), `text_encoder_2` and `tokenizer_2`
    (OpenCLIP bigG), `unet`, `scheduler`. Calls in several threads at once do not disturb each other.
    """

    component_names: ClassVar[tuple[str, ...]] = (
        "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler",
        "image_encoder", "feature_extractor",
    )  # fmt: skip
    callback_tensors: ClassVar[tuple[str, ...]] = (
        "latents", "prompt_embeds", "negative_prompt_embeds", "add_text_embeds", "add_time_ids",
        "negative_pooled_prompt_embeds", "negative_add_time_ids",
    )  # fmt: skip

    model_cpu_offload_seq: ClassVar[str] = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "image_encoder", "feature_extractor",
    ]  # fmt: skip
    _callback_tensor_inputs: ClassVar[list[str]] = list(callback_tensors)
    watermark = None

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
        unsupported({"image_encoder": image_encoder}, IP_ADAPTER)
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
        no_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        unsupported({"cross_attention_kwargs": cross_attention_kwargs or None}, ATTENTION)
        request = Request(
            prompt=prompt, prompt_embeds=prompt_embeds, height=height, width=width,
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas, denoising_end=denoising_end,
            guidance_scale=guidance_scale, guidance_rescale=guidance_rescale,
            num_images_per_prompt=num_images_per_prompt, eta=eta, generator=generator, latents=latents,
            output_type=output_type, clip_skip=clip_skip, cross_attention_kwargs=cross_attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        clock = self._clock()
        with self._begin(request) as call:
            time_ids = call._time_ids("", original_size, crops_coords_top_left, target_size)
            negative_ids = call._negative_time_ids(
                time_ids, negative_original_size, negative_crops_coords_top_left, negative_target_size
            )
            with clock.stage("encode"):
                positive, negative, pooled, negative_pooled = call.encode_prompt(
                    prompt, prompt_2, self.device, request.images_per_prompt, call.do_classifier_free_guidance,
                    negative_prompt, negative_prompt_2, prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds,
                    negative_pooled_prompt_embeds, clip_skip=clip_skip,
                )  # fmt: skip
            with clock.stage("denoise"):
                added = {
                    "text_embeds": both_halves(negative_pooled, pooled),
                    "time_ids": time_ids if negative is None else torch.cat([negative_ids, time_ids]),
                }
                conditioning = Conditioning(both_halves(negative, positive), added, call._guidance_input())
                images = call._denoise(
                    request,
                    conditioning,
                    {
                        "negative_prompt_embeds": negative,
                        "add_text_embeds": added["text_embeds"],
                        "add_time_ids": added["time_ids"],
                        "negative_pooled_prompt_embeds": negative_pooled,
                        "negative_add_time_ids": negative_ids,
                    },
                )
            if output_type != "latent":
                with clock.stage("decode"):
                    images = decode(call.vae, images, upcast=bool(getattr(call.vae.config, "force_upcast", False)))
            images = to_output(images, output_type)
        self.last_times = clock.seconds
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

    @property
    def default_sample_size(self) -> Any:
        """Latents along a side unless a size is asked for."""
        return getattr(getattr(self.unet, "config", None), "sample_size", None) or 128

    def upcast_vae(self) -> None:
        """Deprecated, as in diffusers: make the VAE float32."""
        deprecated("upcast_vae", "pipe.vae.to(torch.float32), or leave it out: one that overflows is upcast by itself")
        self._stack.lifted(lambda: self.vae.to(torch.float32))

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
        """Words -> embeddings (B, T, C), the same without words, pooled (B, P), and pooled without words.

        B counts `num_images_per_prompt` pictures for each prompt; the two without words are None unless guidance asks.
        """
        unsupported({"lora_scale": lora_scale}, LORA)
        words = inputs.check_both_texts(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds)
        batch = len(words[0] if words else prompt_embeds)  # type: ignore[arg-type]
        guided, wordless = do_classifier_free_guidance, None
        zeros = negative_prompt is None and negative_prompt_embeds is None and self.config.force_zeros_for_empty_prompt
        if guided and zeros:
            inputs.refuse({"negative_prompt_2": negative_prompt_2}, "pass negative_prompt too, '' for nothing")
        elif guided:
            wordless = inputs.check_both_negatives(
                negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds, batch
            )
        if words or wordless:
            self._check_encoders(clip_skip)

        if words:
            self._give_notice(words[0])
            prompt_embeds, pooled = self._encode("prompt", words, None, clip_skip)
            pooled_prompt_embeds = pooled if pooled_prompt_embeds is None else pooled_prompt_embeds
        assert prompt_embeds is not None
        assert pooled_prompt_embeds is not None
        if not guided:
            negative_prompt_embeds = negative_pooled_prompt_embeds = None
        elif zeros:
            negative_prompt_embeds = torch.zeros_like(prompt_embeds)
            negative_pooled_prompt_embeds = torch.zeros_like(pooled_prompt_embeds)
        elif wordless:
            negative_prompt_embeds, pooled = self._encode("negative_prompt", wordless, prompt_embeds.shape[1], None)
            negative_pooled_prompt_embeds = (
                pooled if negative_pooled_prompt_embeds is None else negative_pooled_prompt_embeds
            )
        pairs = (prompt_embeds, negative_prompt_embeds), (pooled_prompt_embeds, negative_pooled_prompt_embeds)
        for name, (positive, negative) in zip(("prompt_embeds", "pooled_prompt_embeds"), pairs, strict=True):
            inputs.check_same_shape(name, positive, f"negative_{name}", negative)
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = self._spread(
            device, num_images_per_prompt, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds, negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
        )  # fmt: skip
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds  # type: ignore[return-value]

    def _check_encoders(self, clip_skip: int | None) -> None:
        """ConfigError when prompts can not be encoded. SDXL may go without its first text encoder."""
        otherwise = "pass prompt_embeds, pooled_prompt_embeds and their negative_ ones"
        self._require("text_encoder_2", "tokenizer_2", otherwise=otherwise)
        check_clip_skip(clip_skip, self.text_encoder_2, penultimate=True)
        if self.text_encoder is not None:
            self._require("tokenizer", otherwise=otherwise)
            check_clip_skip(clip_skip, self.text_encoder, penultimate=True)

    def _encode(
        self, name: str, words: inputs.BothTexts, length: int | None, clip_skip: int | None
    ) -> tuple[Tensor, Tensor]:
        """Both encoders' embeddings side by side (B, T, C1 + C2), and the second's pooled output (B, P)."""
        encoders = ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        hidden, pooled = [], None
        for (tokenizer, text_encoder), texts, suffix in zip(encoders, words, ("", "_2"), strict=True):
            if text_encoder is not None:
                ids = tokenize(tokenizer, texts, length, name if texts == words[0] else name + suffix)
                embeds, pooled = encode_text(text_encoder, ids, clip_skip=clip_skip, penultimate=True)
                hidden.append(embeds)
        return torch.cat(hidden, dim=-1), inputs.check_embeddings("the output of text_encoder_2", pooled, ndim=2)

    def _take_changes(self, conditioning: Conditioning, tensors: Mapping[str, Any]) -> None:
        super()._take_changes(conditioning, tensors)
        conditioning.added = {"text_embeds": tensors["add_text_embeds"], "time_ids": tensors["add_time_ids"]}

    def _time_ids(self, prefix: str, original: Size | None, corner: Size, target: Size | None) -> Tensor:
        """Original size, crop corner and target size, each the picture's own if None, a row per picture: (B, 6)."""
        own = self._picture_size
        named = {
            "original_size": own if original is None else original,
            "crops_coords_top_left": corner,
            "target_size": own if target is None else target,
        }
        for name, pair in named.items():
            inputs.check_pair(f"{prefix}{name}", pair)
        row = torch.tensor([[float(value) for pair in named.values() for value in pair]])
        return row.repeat(self._latent_shape[0], 1).to(self.device, self.dtype)

    def _negative_time_ids(self, positive: Tensor, original: Size | None, corner: Size, target: Size | None) -> Tensor:
        """The rows of the sizes to steer away from, which are the positive ones unless given."""
        if original is None and target is None and corner in ((0, 0), [0, 0]):
            return positive
        if original is None or target is None:
            raise ConfigError(
                f"negative_original_size={original}, negative_target_size={target}: pass both, also when "
                "negative_crops_coords_top_left is given."
            )
        return self._time_ids("negative_", original, corner, target)
