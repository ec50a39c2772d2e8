"""`check_inputs` of both pipelines: the checks of a call, for those who write the loop themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import inputs
from .absent import no_ip_adapter


class Checks:
    """Mixin of StableDiffusionPipeline."""

    def check_inputs(
        self: Any,
        prompt: Any,
        height: int | None,
        width: int | None,
        callback_steps: int | None = None,
        negative_prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """ConfigError where a call with these arguments would raise it."""
        _check_common(self, height, width, callback_steps, callback_on_step_end_tensor_inputs)
        no_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        inputs.check_one_of("prompt", prompt, "prompt_embeds", prompt_embeds)
        texts = inputs.check_texts("prompt", prompt)
        batch = len(texts or inputs.check_embeddings("prompt_embeds", prompt_embeds))
        inputs.check_negative(negative_prompt, negative_prompt_embeds, batch)
        if prompt_embeds is not None:
            self._check_width(prompt_embeds)
            inputs.check_same_shape("prompt_embeds", prompt_embeds, "negative_prompt_embeds", negative_prompt_embeds)


class ChecksXL:
    """Mixin of StableDiffusionXLPipeline."""

    def check_inputs(
        self: Any,
        prompt: Any,
        prompt_2: Any,
        height: int | None,
        width: int | None,
        callback_steps: int | None = None,
        negative_prompt: Any = None,
        negative_prompt_2: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """ConfigError where a call with these arguments would raise it."""
        _check_common(self, height, width, callback_steps, callback_on_step_end_tensor_inputs)
        no_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        words = inputs.check_both_texts(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds)
        batch = len(words[0] if words else prompt_embeds)  # type: ignore[arg-type]
        inputs.check_both_negatives(
            negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds, batch
        )
        if prompt_embeds is not None:
            self._check_width(prompt_embeds)
            inputs.check_same_shape("prompt_embeds", prompt_embeds, "negative_prompt_embeds", negative_prompt_embeds)


def _check_common(
    pipe: Any, height: int | None, width: int | None, callback_steps: int | None, tensor_inputs: list[str] | None
) -> None:
    """What both share; sizes may be None."""
    for name, side in (("height", height), ("width", width)):
        if side is not None:
            inputs.check_side(name, side, pipe.vae_scale_factor)
    if callback_steps is not None:
        inputs.check_count("callback_steps", callback_steps)
    inputs.check_names("callback_on_step_end_tensor_inputs", tensor_inputs or [], pipe.callback_tensors)
