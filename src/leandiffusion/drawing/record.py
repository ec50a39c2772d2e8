"""The record of a picture that was drawn."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..core.wording import dtype_name
from ..pictures.record import PictureRecord, Recipe
from .given import Given
from .options import ResolvedOptions


def record_of(
    pipe: Any, options: ResolvedOptions, size: tuple[int, int], seconds: Mapping[str, float], given: Given
) -> PictureRecord:
    """What a picture of `size` (width, height) says of itself, drawn by the pipeline as it is now."""
    import torch

    from .. import __version__

    defaults, plan = inspect.signature(type(pipe).__call__).parameters, pipe.plan
    recipe = Recipe(
        model=options.model,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt or "",
        seed=options.seed,
        steps=defaults["num_inference_steps"].default if options.steps is None else options.steps,
        guidance_scale=defaults["guidance_scale"].default if options.guidance_scale is None else options.guidance_scale,
        scheduler=options.scheduler,
        width=size[0],
        height=size[1],
        dtype=dtype_name(pipe.dtype),
        device=str(pipe.device),
        vae=options.vae,
        lora=options.lora,
        image=options.image,
        mask=options.mask,
        strength=defaults["strength"].default if options.image and options.strength is None else options.strength,
        resize=options.resize,
        padding_mask_crop=options.padding_mask_crop,
        prompt_syntax=options.prompt_syntax,
        embeddings=options.embeddings,
        controlnet=options.controlnet,
        control_image=options.control_image,
        guess_mode=options.guess_mode,
        control_guidance_start=options.control_guidance_start,
        control_guidance_end=options.control_guidance_end,
        ip_adapter=options.ip_adapter,
        ip_image=options.ip_image,
        pag_scale=options.pag_scale,
        pag_layers=options.pag_layers or (),
    )
    return PictureRecord(
        recipe,
        sampler=type(pipe.scheduler).__name__,
        karras=bool(pipe.scheduler.config.get("use_karras_sigmas")),
        seconds={stage: round(taken, 4) for stage, taken in seconds.items()},
        peak_memory=_peaks(),
        techniques={entry.name: str(entry.technique) for entry in pipe.techniques},
        versions={"leandiffusion": __version__, "torch": str(torch.__version__)},
        plan={} if plan is None else {"budget": plan.budget, "settings": str(plan.settings)},
        predicted={} if plan is None else plan.prediction.figures,
        inputs=dict(given.sha256),
    )


def _peaks() -> dict[str, int]:
    from ..device.memory import peak_memory
    from ..measure.memory import peak_rss

    process = peak_rss()
    peaks = {} if process is None else {"process": process}
    return peaks | {peak.device: peak.reserved for peak in peak_memory()}
