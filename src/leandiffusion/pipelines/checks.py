"""`check_inputs` of both pipelines: the checks of a call, for those who write the loop themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..families.one_encoder import Prompt
from ..families.two_encoders import PromptPair
from ..run import inputs
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
        given = Prompt(
            prompt=prompt, negative_prompt=negative_prompt, prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )  # fmt: skip
        _check_prompt(self, given)


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
        given = PromptPair(
            prompt=prompt, prompt_2=prompt_2, negative_prompt=negative_prompt, negative_prompt_2=negative_prompt_2,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds, negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            zeros=self.config.force_zeros_for_empty_prompt,
        )  # fmt: skip
        _check_prompt(self, given)


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


def _check_prompt(pipe: Any, given: Prompt | PromptPair) -> None:
    given.check()
    embeds, negative = given.prompt_embeds, given.negative_prompt_embeds
    pipe._check_width(embeds)
    inputs.check_same_shape("prompt_embeds", embeds, "negative_prompt_embeds", negative)
