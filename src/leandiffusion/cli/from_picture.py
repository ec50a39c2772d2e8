"""`generate --image` and `--mask`: files read and checked before a model is opened, and what a pipeline is given."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import ConfigError
from .inputs import digests, pictures_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .generate_options import GenerateOptions

DEFAULT_RESIZE = "fit"


def check_picture_options(options: GenerateOptions) -> None:
    """typer.BadParameter for what belongs to pictures where there is none, and for numbers out of range."""
    needs = {"--image": ("mask", "strength", "resize"), "--mask": ("padding_mask_crop",)}
    for flag, names in needs.items():
        if getattr(options, flag.strip("-")) is None:
            for name in names:
                if getattr(options, name) is not None:
                    raise typer.BadParameter(
                        f"it belongs to {flag}, and there is none.", param_hint=f"--{name.replace('_', '-')}"
                    )
    if options.strength is not None and not 0 < options.strength <= 1:
        raise typer.BadParameter(
            f"{options.strength:g} is not a strength: use a number above 0 and up to 1, where 1 draws all anew.",
            param_hint="--strength",
        )
    if options.padding_mask_crop is not None and options.resize is not None:
        raise typer.BadParameter(
            "with --padding-mask-crop the picture keeps its size, and only what is around the mask is drawn.",
            param_hint="--resize",
        )
    if options.resize is not None:
        from ..pictures.reading import RESIZE

        if options.resize not in RESIZE:
            raise typer.BadParameter(f"{options.resize!r} is none of {', '.join(RESIZE)}.", param_hint="--resize")


@dataclass(frozen=True)
class Given:
    """What is drawn with besides a prompt: a picture, its mask, pictures that ControlNets see, as far as there are any;
    `sha256` of these files and of LoRAs, as `inputs.digests` names them."""

    image: Image | None
    mask: Image | None
    controls: tuple[Image, ...]
    sha256: dict[str, str]

    @classmethod
    def read(cls, options: GenerateOptions) -> Given:
        """What the options name. typer.BadParameter for what cannot be read, and for a mask of another size."""
        pictures = {name: _read(name, path) for name, path in pictures_of(options).items()}
        image, mask = pictures.get("image"), pictures.get("mask")
        if image is not None and mask is not None and mask.size != image.size:
            raise typer.BadParameter(
                f"it is {mask.width}x{mask.height} and the picture {image.width}x{image.height}: make it as large.",
                param_hint="--mask",
            )
        controls = tuple(pictures[f"control_image {path}"] for path in options.control_image or ())
        return cls(image, mask, controls, digests(options))

    def arguments(self, pipe: Any, options: GenerateOptions) -> dict[str, Any]:
        """What the pipeline's call is given: the size to draw, pictures at that size, which is then the model's own
        unless one is asked for, and how much is drawn anew."""
        first = self.image or next(iter(self.controls), None)
        if first is None:
            return {"width": options.width, "height": options.height}
        from ..pictures.reading import fitting, resized

        height, width = pipe.own_size
        width, height = options.width or width, options.height or height
        image, mask, controls = self.image, self.mask, self.controls
        if options.padding_mask_crop is None:
            how, factor = options.resize or DEFAULT_RESIZE, pipe.vae_scale_factor
            if how == "fit":
                (width, height), how = fitting(first.size, width, height, factor), "stretch"
            image, mask, *controls = (  # all of them alike, so that what belongs together stays so
                each and resized(each, width, height, how, factor) for each in (image, mask, *controls)
            )
        seen = list(controls) if len(controls) > 1 else next(iter(controls), None)
        asked = {
            "image": seen if image is None else image, "control_image": None if image is None else seen,
            "mask_image": mask, "strength": options.strength, "width": width, "height": height,
            "padding_mask_crop": options.padding_mask_crop,
        }  # fmt: skip
        known = inspect.signature(type(pipe).__call__).parameters
        return {name: value for name, value in asked.items() if value is not None and name in known}


def _read(name: str, path: str) -> Image:
    from ..pictures.reading import read_mask, read_picture

    try:
        return (read_mask if name == "mask" else read_picture)(path)
    except ConfigError as error:
        flag = name.partition(" ")[0].replace("_", "-")
        raise typer.BadParameter(str(error), param_hint=f"--{flag}") from error
