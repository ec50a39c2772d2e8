"""`check_inputs` of the pipelines that draw from a text: the checks of a call, for those who write the loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..families.one_encoder import Prompt
from ..families.two_encoders import PromptPair
from ..run import inputs
from .image_prompts import check_image_prompt
from .request import Request, RequestXL, arguments_of


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
        check(self, self._prompt_of(arguments_of(locals(), Request.PROMPT)), locals())


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
        check(self, self._prompt_of(arguments_of(locals(), RequestXL.PROMPT)), locals())


def check(pipe: Any, prompt: Prompt | PromptPair, arguments: dict[str, Any]) -> None:
    """The checks of all, given the arguments by name; sizes may be None or missing."""
    for name in ("height", "width"):
        if arguments.get(name) is not None:
            inputs.check_side(name, arguments[name], pipe.vae_scale_factor)
    if arguments["callback_steps"] is not None:
        inputs.check_count("callback_steps", arguments["callback_steps"])
    name = "callback_on_step_end_tensor_inputs"
    inputs.check_names(name, arguments[name] or [], pipe.callback_tensors)
    check_image_prompt(arguments["ip_adapter_image"], arguments["ip_adapter_image_embeds"])
    prompt.check()
    embeds, negative = prompt.prompt_embeds, prompt.negative_prompt_embeds
    pipe._check_width(embeds)
    inputs.check_same_shape("prompt_embeds", embeds, "negative_prompt_embeds", negative)
