"""`check_inputs` of the pipelines that draw on pictures, for those who write the loop themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..families.one_encoder import Prompt
from ..families.two_encoders import PromptPair
from ..run import inputs
from .checks import check
from .picture_requests import check_crop
from .request import Request, RequestXL, arguments_of


class ChecksImg2Img:
    """Mixin of StableDiffusionImg2ImgPipeline."""

    def check_inputs(
        self: Any,
        prompt: Any,
        strength: float,
        callback_steps: int | None,
        negative_prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """ConfigError where a call with these arguments would raise it."""
        _check(self, self._prompt_of(arguments_of(locals(), Request.PROMPT)), locals())


class ChecksInpaint:
    """Mixin of StableDiffusionInpaintPipeline."""

    def check_inputs(
        self: Any,
        prompt: Any,
        image: Any,
        mask_image: Any,
        height: int | None,
        width: int | None,
        strength: float,
        callback_steps: int | None,
        output_type: str,
        negative_prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        padding_mask_crop: int | None = None,
    ) -> None:
        """ConfigError where a call with these arguments would raise it."""
        _check(self, self._prompt_of(arguments_of(locals(), Request.PROMPT)), locals())


class ChecksImg2ImgXL:
    """Mixin of StableDiffusionXLImg2ImgPipeline."""

    def check_inputs(
        self: Any,
        prompt: Any,
        prompt_2: Any,
        strength: float,
        num_inference_steps: int | None,
        callback_steps: int | None,
        negative_prompt: Any = None,
        negative_prompt_2: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """ConfigError where a call with these arguments would raise it."""
        inputs.check_count("num_inference_steps", num_inference_steps)
        _check(self, _pair(self, locals()), locals())


class ChecksInpaintXL:
    """Mixin of StableDiffusionXLInpaintPipeline."""

    def check_inputs(
        self: Any,
        prompt: Any,
        prompt_2: Any,
        image: Any,
        mask_image: Any,
        height: int | None,
        width: int | None,
        strength: float,
        callback_steps: int | None,
        output_type: str,
        negative_prompt: Any = None,
        negative_prompt_2: Any = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        padding_mask_crop: int | None = None,
    ) -> None:
        """ConfigError where a call with these arguments would raise it."""
        _check(self, _pair(self, locals()), locals())


def _pair(pipe: Any, arguments: dict[str, Any]) -> PromptPair:
    """The prompts; their pooled embeddings are no argument of these checks."""
    given = arguments_of(arguments, RequestXL.PROMPT)
    pooled = {f"{prefix}pooled_prompt_embeds": _pooled(given[f"{prefix}prompt_embeds"]) for prefix in ("", "negative_")}
    return pipe._prompt_of(given | pooled)


def _pooled(embeds: Any) -> Any:
    """What passes for the pooled embeddings (B, C) of embeddings (B, T, C)."""
    return embeds[:, 0] if isinstance(embeds, Tensor) and embeds.ndim == 3 else None


def _check(pipe: Any, prompt: Prompt | PromptPair, arguments: dict[str, Any]) -> None:
    inputs.check_number("strength", arguments["strength"], 0, 1)
    check(pipe, prompt, arguments)
    if arguments.get("padding_mask_crop") is not None:
        check_crop(*(arguments[name] for name in ("padding_mask_crop", "image", "mask_image", "output_type")))
