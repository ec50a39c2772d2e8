"""What a pipeline's call is asked for: its arguments, checked as far as they can be alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..families.two_encoders import Sizes
from ..run import inputs
from .absent import ATTENTION, unsupported
from .callbacks import wanted_tensors
from .image_prompts import check_image_prompt
from .images import check_output_type


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call's arguments, under the names that `__call__` gives them. ConfigError for wrong ones.

    A call makes it of all its arguments, so that none can be forgotten: `Request(**arguments_of(locals()))`. What
    depends on the model (sizes, the shape of latents, the scheduler's abilities) is checked by the pipeline.
    """

    PROMPT: ClassVar[tuple[str, ...]] = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")

    prompt: Any
    negative_prompt: Any
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None
    timesteps: list[int] | None
    sigmas: list[float] | None
    denoising_start: float | None = None
    denoising_end: float | None = None
    guidance_scale: float
    guidance_rescale: float = 0.0
    num_images_per_prompt: int | None
    eta: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None = None
    ip_adapter_image: Any
    ip_adapter_image_embeds: Any
    output_type: str
    return_dict: bool
    cross_attention_kwargs: dict[str, Any] | None
    clip_skip: int | None
    callback_on_step_end: Callable[..., Any] | None
    callback_on_step_end_tensor_inputs: list[str] | None

    def __post_init__(self) -> None:
        check_image_prompt(self.ip_adapter_image, self.ip_adapter_image_embeds)
        others = {name for name in self.cross_attention_kwargs or () if name != "scale"}
        unsupported({f"cross_attention_kwargs[{name!r}]": True for name in sorted(others)}, ATTENTION)
        inputs.check_one_of("prompt", self.prompt, "prompt_embeds", self.prompt_embeds)
        inputs.check_texts("prompt", self.prompt)
        if self.prompt_embeds is not None:
            inputs.check_embeddings("prompt_embeds", self.prompt_embeds)
        if self.num_inference_steps is not None or (self.timesteps is None and self.sigmas is None):
            inputs.check_count("num_inference_steps", self.num_inference_steps)
        inputs.check_count("num_images_per_prompt", self.images_per_prompt)
        inputs.check_number("guidance_scale", self.guidance_scale, -1000, 1000)
        inputs.check_number("guidance_rescale", self.guidance_rescale, 0, 1)
        inputs.check_number("eta", self.eta, 0, 1)
        if self.denoising_end is not None:
            inputs.check_number("denoising_end", self.denoising_end, 0, 1)
        if self.timesteps is not None and self.sigmas is not None:
            raise ConfigError("timesteps and sigmas both lay out the schedule: pass one of them.")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ConfigError(f"callback_on_step_end={self.callback_on_step_end!r} cannot be called: pass a function.")
        inputs.check_generators(self.generator, self.batch)
        check_output_type(self.output_type)

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline shows of the call while it runs and afterwards."""
        names = (
            "guidance_scale", "guidance_rescale", "clip_skip", "cross_attention_kwargs", "denoising_start",
            "denoising_end",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def lora_scale(self) -> float | None:
        """What the call multiplies all LoRA adapters by; None where it does not say."""
        return (self.cross_attention_kwargs or {}).get("scale")

    @property
    def prompt_arguments(self) -> dict[str, Any]:
        """What says what to draw, under the names that `encode_prompt` gives them too."""
        return {name: getattr(self, name) for name in self.PROMPT}

    @property
    def images_per_prompt(self) -> int:
        """How often each prompt is drawn; None means once."""
        return 1 if self.num_images_per_prompt is None else self.num_images_per_prompt

    @property
    def batch(self) -> int:
        """Pictures in all."""
        texts = inputs.check_texts("prompt", self.prompt)
        return len(texts if texts is not None else self.prompt_embeds) * self.images_per_prompt  # type: ignore[arg-type]

    @property
    def callback_inputs(self) -> list[str]:
        """Tensors that the callback wants to see."""
        return wanted_tensors(self.callback_on_step_end, self.callback_on_step_end_tensor_inputs)


@dataclass(frozen=True, kw_only=True)
class RequestXL(Request, Sizes):
    """A call's arguments where there are two text encoders, and the sizes to condition on."""

    PROMPT: ClassVar[tuple[str, ...]] = (
        *Request.PROMPT, "prompt_2", "negative_prompt_2", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    )  # fmt: skip

    prompt_2: Any
    negative_prompt_2: Any
    pooled_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None


def arguments_of(frame: dict[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """The arguments of a method that passes its `locals()` before it sets any: all, or those of these names."""
    return {name: value for name, value in frame.items() if name != "self" and (names is None or name in names)}
