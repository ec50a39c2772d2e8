"""ControlNets as PATH:SCALE: checked before a model opens, opened, and what a call is given besides pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..demo import packaged_controlnet
from .lora import path_and_scale
from .wrong import OptionError

if TYPE_CHECKING:
    from .options import DrawingOptions

FIELD, PICTURE = "controlnet", "control_image"
SETTINGS = ("guess_mode", "control_guidance_start", "control_guidance_end")
"""Arguments of a pipeline's call."""


def check(options: DrawingOptions) -> None:
    """OptionError where ControlNets and their pictures are not as many, where they would count in no step, and for what
    belongs to ControlNets where there is none."""
    nets, pictures = options.controlnet or (), options.control_image or ()
    if len(nets) != len(pictures):
        raise OptionError(
            PICTURE, "there are {nets} {controlnet} and {pictures} {control_image}: give a picture for each.",
            nets=len(nets), pictures=len(pictures),
        )  # fmt: skip
    for name in SETTINGS:
        if getattr(options, name) and not nets:
            raise OptionError(name, "it belongs to {controlnet}, and there is none.")
    start, end = options.control_guidance_start or 0.0, options.control_guidance_end
    if start >= (1.0 if end is None else end):
        raise OptionError(
            "control_guidance_start",
            "ControlNets would count in no step: {control_guidance_start} has to come before {control_guidance_end}.",
        )
    for text in nets:
        path_and_scale(text, FIELD)


def open_nets(options: DrawingOptions, dtype: Any, device: str) -> dict[str, Any]:
    """The component, none where none is asked for. Weights are read when they are first used."""
    if not options.controlnet:
        return {}
    from ..modules.multicontrolnet import open_controlnets

    paths = [packaged_controlnet(path_and_scale(text, FIELD)[0]) for text in options.controlnet]
    return {"controlnet": open_controlnets(paths, dtype=dtype, device=device)}


def arguments(options: DrawingOptions) -> dict[str, Any]:
    """Scales and shares, as a pipeline's call takes them."""
    scales = [path_and_scale(text, FIELD)[1] for text in options.controlnet or ()]
    asked = {name: getattr(options, name) for name in SETTINGS}
    asked["controlnet_conditioning_scale"] = (scales if len(scales) > 1 else scales[0]) if scales else None
    return {name: value for name, value in asked.items() if value is not None}
