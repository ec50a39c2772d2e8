"""`generate --image` and `--mask`: files read and checked before a model is opened, and what a pipeline is given."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import ConfigError

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
    """A picture to draw from, with its mask or without; `sha256` of the files, by 'image' and 'mask'."""

    image: Image
    mask: Image | None
    sha256: dict[str, str]

    @classmethod
    def read(cls, options: GenerateOptions) -> Given | None:
        """What the options name; None where they name no picture. typer.BadParameter for what cannot be read, and for a
        mask of another size."""
        if options.image is None:
            return None
        from ..pictures.reading import read_mask, read_picture, sha256

        read = {"image": read_picture, "mask": read_mask}
        paths = {name: path for name in read if (path := getattr(options, name)) is not None}
        pictures = {}
        for name, path in paths.items():
            try:
                pictures[name] = read[name](path)
            except ConfigError as error:
                raise typer.BadParameter(str(error), param_hint=f"--{name}") from error
        image, mask = pictures["image"], pictures.get("mask")
        if mask is not None and mask.size != image.size:
            raise typer.BadParameter(
                f"it is {mask.width}x{mask.height} and the picture {image.width}x{image.height}: make it as large.",
                param_hint="--mask",
            )
        return cls(image, mask, {name: sha256(path) for name, path in paths.items()})

    def arguments(self, pipe: Any, options: GenerateOptions) -> dict[str, Any]:
        """What the pipeline's call is given: picture and mask at the size to draw, which is the model's own unless one
        is asked for, and how much is drawn anew."""
        height, width = pipe.own_size
        width, height = options.width or width, options.height or height
        image, mask = self.image, self.mask
        if options.padding_mask_crop is None:
            image, mask = (self._resized(each, width, height, pipe, options.resize) for each in (image, mask))
            width, height = image.size
        asked = {
            "image": image, "mask_image": mask, "strength": options.strength, "width": width, "height": height,
            "padding_mask_crop": options.padding_mask_crop,
        }  # fmt: skip
        known = inspect.signature(type(pipe).__call__).parameters
        return {name: value for name, value in asked.items() if value is not None and name in known}

    def _resized(self, image: Any, width: int, height: int, pipe: Any, how: str | None) -> Any:
        from ..pictures.reading import resized

        if image is None:
            return None
        return resized(image, width, height, how or DEFAULT_RESIZE, pipe.vae_scale_factor)
