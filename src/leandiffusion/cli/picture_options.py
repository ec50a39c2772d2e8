"""The options of one picture, as commands that draw have them. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from .arguments import (
    ControlGuidanceEnd,
    ControlGuidanceStart,
    ControlImage,
    ControlNet,
    Device,
    Dtype,
    Embedding,
    GuessMode,
    GuidanceScale,
    IPAdapter,
    IPImage,
    Lora,
    Mask,
    Model,
    Negative,
    PaddingMaskCrop,
    PagLayers,
    PagScale,
    Picture,
    PromptSyntax,
    Resize,
    Scheduler,
    Seed,
    Size,
    Steps,
    Strength,
    Vae,
)


def with_picture_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of a picture, but for its prompt, in the place of its argument `options`, which gets
    them as `DrawingOptions`."""
    own = inspect.signature(_options, eval_str=True)
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += own.parameters.values() if parameter.name == "options" else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:
        options = _options(**{name: given.pop(name) for name in own.parameters})
        command(**given, options=options)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(
    model: Model = None,
    vae: Vae = None,
    lora: Lora = [],  # noqa: B006 - typer's way to say: none
    negative: Negative = None,
    image: Picture = None,
    mask: Mask = None,
    strength: Strength = None,
    resize: Resize = None,
    padding_mask_crop: PaddingMaskCrop = None,
    controlnet: ControlNet = [],  # noqa: B006
    control_image: ControlImage = [],  # noqa: B006
    guess_mode: GuessMode = False,
    control_guidance_start: ControlGuidanceStart = None,
    control_guidance_end: ControlGuidanceEnd = None,
    ip_adapter: IPAdapter = [],  # noqa: B006
    ip_image: IPImage = [],  # noqa: B006
    prompt_syntax: PromptSyntax = None,
    embedding: Embedding = [],  # noqa: B006
    steps: Steps = None,
    guidance: GuidanceScale = None,
    pag_scale: PagScale = None,
    pag_layers: PagLayers = [],  # noqa: B006
    scheduler: Scheduler = None,
    size: Size = None,
    seed: Seed = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Any:
    from ..drawing.options import DrawingOptions

    width, height = size or (None, None)
    return DrawingOptions(
        model=model, vae=vae, lora=tuple(lora) or None, negative_prompt=negative, image=image, mask=mask,
        strength=strength, resize=resize, padding_mask_crop=padding_mask_crop, controlnet=tuple(controlnet) or None,
        control_image=tuple(control_image) or None, guess_mode=guess_mode or None,
        control_guidance_start=control_guidance_start, control_guidance_end=control_guidance_end,
        prompt_syntax=prompt_syntax, embeddings=tuple(embedding) or None, steps=steps, guidance_scale=guidance,
        ip_adapter=tuple(ip_adapter) or None, ip_image=tuple(ip_image) or None, pag_scale=pag_scale,
        pag_layers=tuple(pag_layers) or None, scheduler=scheduler,
        width=width, height=height, seed=seed, dtype=dtype, device=device,
    )  # fmt: skip
