"""`--controlnet PATH:SCALE`: checked before a model opens, opened, and what a call is given besides pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .lora import path_and_scale

if TYPE_CHECKING:
    from .generate_options import GenerateOptions

FLAG, PICTURE = "--controlnet", "--control-image"
SETTINGS = {
    "guess_mode": "--guess-mode", "control_guidance_start": "--control-start", "control_guidance_end": "--control-end",
}  # fmt: skip
"""Arguments of a pipeline's call, and the options that say them."""


def check(options: GenerateOptions) -> None:
    """typer.BadParameter where ControlNets and their pictures are not as many, for shares out of range, and for what
    belongs to ControlNets where there is none."""
    nets, pictures = options.controlnet or (), options.control_image or ()
    if len(nets) != len(pictures):
        raise typer.BadParameter(
            f"there are {len(nets)} {FLAG} and {len(pictures)} {PICTURE}: give a picture for each.", param_hint=PICTURE
        )
    for name, flag in SETTINGS.items():
        value = getattr(options, name)
        if value and not nets:
            raise typer.BadParameter(f"it belongs to {FLAG}, and there is none.", param_hint=flag)
        if value is not None and not 0 <= value <= 1:
            raise typer.BadParameter(f"{value:g} is not a share of the steps: use 0 to 1.", param_hint=flag)
    start, end = options.control_guidance_start or 0.0, options.control_guidance_end
    if start >= (1.0 if end is None else end):
        raise typer.BadParameter(
            "ControlNets would count in no step: --control-start has to come before --control-end."
        )
    for text in nets:
        path_and_scale(text, FLAG)


def open_nets(options: GenerateOptions, dtype: Any, device: str) -> dict[str, Any]:
    """The component, none where none is asked for. Weights are read when they are first used."""
    if not options.controlnet:
        return {}
    from ..modules.controlnet import ControlNetModel

    nets = [
        ControlNetModel.from_pretrained(path_and_scale(text, FLAG)[0], dtype=dtype, device=device)
        for text in options.controlnet
    ]
    return {"controlnet": nets if len(nets) > 1 else nets[0]}


def arguments(options: GenerateOptions) -> dict[str, Any]:
    """Scales and shares, as a pipeline's call takes them."""
    scales = [path_and_scale(text, FLAG)[1] for text in options.controlnet or ()]
    asked = {name: getattr(options, name) for name in SETTINGS}
    asked["controlnet_conditioning_scale"] = (scales if len(scales) > 1 else scales[0]) if scales else None
    return {name: value for name, value in asked.items() if value is not None}
