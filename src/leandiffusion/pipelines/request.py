"""What a pipeline's call is asked for: the arguments that all pipelines share, checked as far as they can be alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from . import inputs
from .callbacks import wanted_tensors
from .images import check_output_type


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call's arguments, under the names that `__call__` gives them. ConfigError for wrong ones.

    What depends on the model (sizes, the shape of latents, the scheduler's abilities) is checked by the pipeline.
    """

    prompt: Any
    prompt_embeds: Tensor | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    timesteps: list[int] | None
    sigmas: list[float] | None
    guidance_scale: float
    guidance_rescale: float
    num_images_per_prompt: int | None
    eta: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    output_type: str
    callback_on_step_end: Callable[..., Any] | None
    callback_on_step_end_tensor_inputs: list[str] | None
    denoising_end: float | None = None
    clip_skip: int | None = None
    cross_attention_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
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
        names = ("guidance_scale", "guidance_rescale", "clip_skip", "cross_attention_kwargs", "denoising_end")
        return {name: getattr(self, name) for name in names}

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
