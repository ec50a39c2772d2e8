"""StableDiffusionXLPipeline: text to picture with SDXL checkpoints (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.output import Output
from ..measure.clock import StageClock
from . import inputs
from .base import DiffusionPipeline
from .images import check_output_type, to_output
from .stages import Conditioning, decode, encode_text, tokenize

Size = tuple[int, int]


@dataclass(eq=False)
class StableDiffusionXLPipelineOutput(Output):
    """`images`: as `output_type` asked."""

    images: Any


class StableDiffusionXLPipeline(DiffusionPipeline):
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
        values = locals()
        super().__init__(
            {name: values[name] for name in self.component_names},
            {"force_zeros_for_empty_prompt": force_zeros_for_empty_prompt},
        )
        inputs.refuse({"image_encoder": image_encoder}, "IP-Adapters are not supported, so it would have no effect")
        inputs.refuse({"add_watermarker": add_watermarker or None}, "watermarks are not supported: leave it out")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
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
        inputs.refuse(
            {
                "ip_adapter_image": ip_adapter_image,
                "ip_adapter_image_embeds": ip_adapter_image_embeds,
                "cross_attention_kwargs": cross_attention_kwargs or None,
            },
            "not supported, so it would have no effect: leave it out",
        )
        call = self._begin(guidance_scale, guidance_rescale)
        height, width = self._check_call(height, width, num_inference_steps, guidance_scale, guidance_rescale, eta)
        count = 1 if num_images_per_prompt is None else num_images_per_prompt
        inputs.check_count("num_images_per_prompt", count)
        inputs.check_one_of("prompt", prompt, "prompt_embeds", prompt_embeds)
        names = callback_on_step_end_tensor_inputs or ["latents"]
        inputs.check_callback(names, self.callback_tensors)
        check_output_type(output_type)
        texts = inputs.check_texts("prompt", prompt)
        given = None if texts is not None else inputs.check_embeddings("prompt_embeds", prompt_embeds)
        batch = (len(texts) if texts is not None else len(given)) * count  # type: ignore[arg-type]
        inputs.check_generators(generator, batch)
        if denoising_end is not None:
            inputs.check_number("denoising_end", denoising_end, 0, 1)
        own = (height, width)
        sizes = (original_size or own, crops_coords_top_left, target_size or own)
        if negative_original_size is not None and negative_target_size is not None:
            negative_sizes = (negative_original_size, negative_crops_coords_top_left, negative_target_size)
        else:
            negative_sizes = sizes

        clock = StageClock(torch.cuda.synchronize if self.device.type == "cuda" else None)
        with clock.stage("encode"):
            positive, negative, pooled, negative_pooled = call.encode_prompt(
                prompt, prompt_2, self.device, count, call.do_classifier_free_guidance, negative_prompt,
                negative_prompt_2, prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds,
                negative_pooled_prompt_embeds, clip_skip=clip_skip,
            )  # fmt: skip
            time_ids = _time_ids(sizes, batch).to(self.device, positive.dtype)
            negative_ids = _time_ids(negative_sizes, batch).to(self.device, positive.dtype)
            if negative is not None and negative_pooled is not None:
                embeds = torch.cat([negative, positive])
                added = {"text_embeds": torch.cat([negative_pooled, pooled])}
                added["time_ids"] = torch.cat([negative_ids, time_ids])
            else:
                embeds, added = positive, {"text_embeds": pooled, "time_ids": time_ids}
        named = {
            "negative_prompt_embeds": negative,
            "add_text_embeds": added["text_embeds"],
            "add_time_ids": added["time_ids"],
            "negative_pooled_prompt_embeds": negative_pooled,
            "negative_add_time_ids": negative_ids,
        }
        with clock.stage("denoise"):
            result = call._denoise(
                num_inference_steps,
                {"timesteps": timesteps, "sigmas": sigmas},
                Conditioning(embeds, added, call._distilled_input(batch)),
                lambda: call._prepare_latents(batch, height, width, positive.dtype, generator, latents),
                step_arguments={"eta": eta, "generator": generator},
                callback=callback_on_step_end,
                callback_inputs=names,
                tensors={name: tensor for name, tensor in named.items() if tensor is not None},
                until=lambda steps: call._until(steps, denoising_end),
            )
        with clock.stage("decode"):
            images = result if output_type == "latent" else to_output(decode(self.vae, result), output_type)
        self.last_times = dict(clock.seconds)
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

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
        inputs.refuse({"lora_scale": lora_scale}, "LoRA weights are not supported, so it would have no effect")
        texts = inputs.check_texts("prompt", prompt)
        negatives = inputs.check_texts("negative_prompt", negative_prompt)
        if texts is not None:
            self._give_notice(texts)
            texts_2 = inputs.match_batch("prompt_2", inputs.check_texts("prompt_2", prompt_2) or texts, len(texts))
            prompt_embeds, pooled_prompt_embeds = self._encode(texts, texts_2, None, clip_skip)
        positive = inputs.check_embeddings("prompt_embeds", prompt_embeds)
        pooled = inputs.check_embeddings("pooled_prompt_embeds", pooled_prompt_embeds, ndim=2)

        if do_classifier_free_guidance and negative_prompt_embeds is None:
            if negatives is None and self.config.force_zeros_for_empty_prompt:
                negative_prompt_embeds, negative_pooled_prompt_embeds = torch.zeros_like(positive), pooled * 0
            else:
                matched = inputs.match_batch("negative_prompt", negatives, len(positive))
                second = inputs.check_texts("negative_prompt_2", negative_prompt_2) or matched
                matched_2 = inputs.match_batch("negative_prompt_2", second, len(positive))
                negative_prompt_embeds, negative_pooled_prompt_embeds = self._encode(
                    matched, matched_2, positive.shape[1], clip_skip=None
                )
        if do_classifier_free_guidance:
            inputs.check_embeddings("negative_prompt_embeds", negative_prompt_embeds)
            inputs.check_embeddings("negative_pooled_prompt_embeds", negative_pooled_prompt_embeds, ndim=2)
            inputs.check_same_shape("prompt_embeds", positive, "negative_prompt_embeds", negative_prompt_embeds)
        else:
            negative_prompt_embeds = negative_pooled_prompt_embeds = None
        place = torch.device(device) if device is not None else self.device
        repeated = [
            None if each is None else each.to(place, self.dtype).repeat_interleave(num_images_per_prompt, dim=0)
            for each in (positive, negative_prompt_embeds, pooled, negative_pooled_prompt_embeds)
        ]
        return tuple(repeated)  # type: ignore[return-value]

    def _encode(
        self, texts: list[str], texts_2: list[str], length: int | None, clip_skip: int | None
    ) -> tuple[Tensor, Tensor]:
        """Both encoders' embeddings side by side (B, T, C1 + C2), and the second's pooled output (B, P)."""
        encoders = ((self.tokenizer, self.text_encoder, texts), (self.tokenizer_2, self.text_encoder_2, texts_2))
        hidden, pooled = [], None
        for tokenizer, text_encoder, words in encoders:
            if text_encoder is None:
                continue
            ids = tokenize(tokenizer, words, length)
            embeds, pooled = encode_text(text_encoder, ids, clip_skip=clip_skip, penultimate=True)
            hidden.append(embeds)
        return torch.cat(hidden, dim=-1), inputs.check_embeddings("the second text encoder's output", pooled, ndim=2)

    def _until(self, timesteps: Tensor, denoising_end: float | None) -> Tensor:
        """The timesteps down to the share `denoising_end` of the training schedule."""
        if denoising_end is None or denoising_end in (0, 1):
            return timesteps
        train = self.scheduler.config.num_train_timesteps
        cutoff = round(train * (1 - denoising_end))
        return timesteps[: int((timesteps >= cutoff).sum())]

    def _take_changes(self, conditioning: Conditioning, tensors: dict[str, Tensor]) -> None:
        super()._take_changes(conditioning, tensors)
        conditioning.added = {"text_embeds": tensors["add_text_embeds"], "time_ids": tensors["add_time_ids"]}


def _time_ids(sizes: tuple[Size, Size, Size], batch: int) -> Tensor:
    """Original size, crop corner and target size as one row per picture: (B, 6)."""
    if any(len(size) != 2 for size in sizes):
        raise inputs.ConfigError(f"sizes and crop corners are pairs (height, width): found {sizes}.")
    return torch.tensor([[float(value) for size in sizes for value in size]]).repeat(batch, 1)
