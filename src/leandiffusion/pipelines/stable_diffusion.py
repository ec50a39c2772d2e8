"""StableDiffusionPipeline: text to picture with SD1 and SD2 checkpoints (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.output import Output
from . import inputs
from .absent import ATTENTION, IP_ADAPTER, LORA, no_ip_adapter, unsupported
from .base import DiffusionPipeline, drawing, undisturbed
from .checks import Checks
from .compat import deprecated
from .images import numpy_to_pil, to_output
from .outdated import mend_scheduler, mend_unet
from .request import Request
from .stages import Conditioning, both_halves, check_clip_skip, decode_raw, encode_text, to_unit, tokenize


@dataclass(eq=False)
class StableDiffusionPipelineOutput(Output):
    """`images`: as `output_type` asked; `nsfw_content_detected`: one bool per picture, or None if unchecked."""

    images: Any
    nsfw_content_detected: list[bool] | None = None


class StableDiffusionPipeline(DiffusionPipeline, Checks):
    """Draws pictures from words. Call it; `.images` of the result holds them.

    Components: `vae`, `text_encoder`, `tokenizer`, `unet`, `scheduler`, and optionally `safety_checker` with its
    `feature_extractor`. Calls in several threads at once do not disturb each other.
    """

    component_names: ClassVar[tuple[str, ...]] = (
        "vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor", "image_encoder",
    )  # fmt: skip

    model_cpu_offload_seq: ClassVar[str] = "text_encoder->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["safety_checker", "feature_extractor", "image_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = list(DiffusionPipeline.callback_tensors)

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
        unsupported({"image_encoder": image_encoder}, IP_ADAPTER)
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
        no_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        unsupported({"cross_attention_kwargs": cross_attention_kwargs or None}, ATTENTION)
        request = Request(
            prompt=prompt, prompt_embeds=prompt_embeds, height=height, width=width,
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas,
            guidance_scale=guidance_scale, guidance_rescale=guidance_rescale,
            num_images_per_prompt=num_images_per_prompt, eta=eta, generator=generator, latents=latents,
            output_type=output_type, clip_skip=clip_skip, cross_attention_kwargs=cross_attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        clock = self._clock()
        with self._begin(request) as call:
            with clock.stage("encode"):
                positive, negative = call.encode_prompt(
                    prompt, self.device, request.images_per_prompt, call.do_classifier_free_guidance, negative_prompt,
                    prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds, clip_skip=clip_skip,
                )  # fmt: skip
            with clock.stage("denoise"):
                conditioning = Conditioning(both_halves(negative, positive), None, call._guidance_input())
                images = call._denoise(request, conditioning, {"negative_prompt_embeds": negative})
            flagged = None
            if output_type != "latent":
                with clock.stage("decode"):
                    images = decode_raw(call.vae, images)
                if call.safety_checker is not None:
                    with clock.stage("safety"):
                        images, flagged = call._withhold(images)
                images = to_unit(images)
            images = to_output(images, output_type)
        self.last_times = clock.seconds
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)

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
        """Words -> embeddings (B * num_images_per_prompt, T, C) with and, under guidance, without them (else None).

        `clip_skip` is of the words alone: the embeddings without them are always the last layer's.
        """
        unsupported({"lora_scale": lora_scale}, LORA)
        inputs.check_one_of("prompt", prompt, "prompt_embeds", prompt_embeds)
        texts = inputs.check_texts("prompt", prompt)
        batch = len(texts or inputs.check_embeddings("prompt_embeds", prompt_embeds))
        negatives = None
        if do_classifier_free_guidance:
            negatives = inputs.check_negative(negative_prompt, negative_prompt_embeds, batch)
        if texts or negatives:
            self._require("text_encoder", "tokenizer", otherwise="pass prompt_embeds and negative_prompt_embeds")
            check_clip_skip(clip_skip, self.text_encoder, penultimate=False)

        if texts:
            self._give_notice(texts)
            prompt_embeds, _ = encode_text(self.text_encoder, tokenize(self.tokenizer, texts), clip_skip=clip_skip)
        positive = inputs.check_embeddings("prompt_embeds", prompt_embeds)
        if negatives:
            ids = tokenize(self.tokenizer, negatives, positive.shape[1], "negative_prompt")
            negative_prompt_embeds, _ = encode_text(self.text_encoder, ids)
        negative = negative_prompt_embeds if do_classifier_free_guidance else None
        inputs.check_same_shape("prompt_embeds", positive, "negative_prompt_embeds", negative)
        prompt_embeds, negative_prompt_embeds = self._spread(
            device, num_images_per_prompt, prompt_embeds=positive, negative_prompt_embeds=negative
        )
        return prompt_embeds, negative_prompt_embeds  # type: ignore[return-value]

    def run_safety_checker(
        self, image: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, Any]:
        """Pictures as the VAE decodes them, (B, 3, H, W) in [-1, 1], or an array (B, H, W, 3) in [0, 1] -> what the
        safety checker makes of them, and what it flagged: one bool per picture, None if there is no checker.

        It is called as `checker(images=…, clip_input=…)`, on its own device and dtype unless they are given; any
        callable will do. `clip_input` is what the `feature_extractor` makes of the pictures, None if there is none.
        """
        checker, pixels = self.safety_checker, None
        if checker is None:
            return image, None
        if self.feature_extractor is not None:
            array = image if isinstance(image, np.ndarray) else to_output(to_unit(image.clone()), "np")
            pixels = self.feature_extractor(numpy_to_pil(array), return_tensors="pt").pixel_values.to(
                getattr(checker, "device", self.device) if device is None else device,
                getattr(checker, "dtype", self.dtype) if dtype is None else dtype,
            )
        return checker(images=image, clip_input=pixels)

    @undisturbed
    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) -> pictures (B, H, W, 3) in [0, 1]. Deprecated, as in diffusers."""
        deprecated("decode_latents", "pipe.vae.decode and pipe.image_processor.postprocess", decorators=2)
        return to_output(to_unit(decode_raw(self.vae, latents)), "np")

    def _withhold(self, pictures: Tensor) -> tuple[Tensor, list[bool]]:
        """Decoded pictures (B, 3, H, W) as the safety checker leaves them, and which it flagged.

        What it puts in the place of a flagged picture is in [0, 1], as in diffusers: it comes back in [-1, 1].
        """
        checked, flagged = self.run_safety_checker(pictures)
        flags = [bool(each) for each in flagged] if isinstance(flagged, Iterable) else [bool(flagged)] * len(pictures)
        checked = torch.as_tensor(checked, dtype=torch.float32).clone()
        if len(checked) != len(pictures) or len(flags) != len(pictures):
            raise ConfigError(
                f"the safety checker returned {len(checked)} pictures and {len(flags)} flags for {len(pictures)}: it "
                "must return all pictures and a flag for each, or None for the flags."
            )
        for i, flag in enumerate(flags):
            if flag:
                checked[i] = checked[i] * 2 - 1
        return checked, flags
