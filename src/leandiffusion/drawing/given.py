"""What is drawn with besides a prompt: pictures, read and checked before a model is opened, and hashes of files."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import ConfigError
from .lora import path_and_scale
from .wrong import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .options import DrawingOptions

DEFAULT_RESIZE = "fit"
PICTURES = ("image", "mask")


@dataclass(frozen=True)
class Given:
    """A picture, its mask, pictures that ControlNets see and those that IP-Adapters do (`seen`), as far as there are;
    `sha256` of these files, of LoRAs and IP-Adapters, by 'image', 'mask', 'control_image PATH' and so on."""

    image: Image | None = None
    mask: Image | None = None
    controls: tuple[Image, ...] = ()
    seen: tuple[Image, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, options: DrawingOptions, uploads: Mapping[str, bytes] | None = None) -> Self:
        """The pictures that the options name, from their files; or, where there are `uploads`, of these alone.

        `uploads` are files by the names that the options call them: then no picture is read from disk.
        OptionError for what cannot be read, for a mask of another size, and for a black one to crop around; OSError for
        LoRAs.
        """
        named = pictures_of(options)
        pictures = {name: _read(name, path, uploads) for name, path in named.items()}
        image, mask = pictures.get("image"), pictures.get("mask")
        if image is not None and mask is not None and mask.size != image.size:
            raise OptionError(
                "mask",
                f"it is {mask.width}x{mask.height} and the picture {image.width}x{image.height}: make it as large.",
            )
        if options.padding_mask_crop is not None and mask is not None and mask.convert("L").getbbox() is None:
            raise OptionError("mask", "it is all black, so there is nothing to draw: make it white where to draw anew.")
        controls = tuple(pictures[f"control_image {path}"] for path in options.control_image or ())
        seen = tuple(pictures[f"ip_image {path_and_scale(text)[0]}"] for text in options.ip_image or ())
        return cls(image, mask, controls, seen, _digests(options, uploads))

    def arguments(self, pipe: Any, options: DrawingOptions) -> dict[str, Any]:
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


def pictures_of(options: DrawingOptions) -> dict[str, str]:
    """Paths of the pictures that the options name, by 'image', 'mask', 'control_image PATH' and 'ip_image PATH'."""
    named = {name: path for name in PICTURES if (path := getattr(options, name)) is not None}
    named |= {f"control_image {path}": path for path in options.control_image or ()}
    return named | {f"ip_image {path}": path for path, _ in map(path_and_scale, options.ip_image or ())}


def adapters_of(options: DrawingOptions) -> dict[str, Path]:
    """Files of the LoRAs and IP-Adapters that the options name, by 'lora PATH' and 'ip_adapter PATH'. Raises what
    `find_lora` does."""
    from ..lora.find import find_lora

    loras = [path for path, _ in map(path_and_scale, options.lora or ())]
    files = {f"lora {path}": find_lora(path) for path in loras}
    return files | {f"ip_adapter {path}": Path(path).expanduser() for path in options.ip_adapter or ()}


def _digests(options: DrawingOptions, uploads: Mapping[str, bytes] | None) -> dict[str, str]:
    from ..pictures.reading import sha256

    files: dict[str, str | Path] = dict(adapters_of(options))
    if uploads is None:
        return {name: sha256(path) for name, path in {**pictures_of(options), **files}.items()}
    pictures = {name: hashlib.sha256(uploads[path]).hexdigest() for name, path in pictures_of(options).items()}
    return pictures | {name: sha256(path) for name, path in files.items()}


def _read(name: str, path: str, uploads: Mapping[str, bytes] | None) -> Image:
    from ..pictures.reading import read_mask, read_picture

    option = name.partition(" ")[0]
    if uploads is not None and path not in uploads:
        raise OptionError(option, "{path} was not uploaded.", path=path)
    try:
        return (read_mask if name == "mask" else read_picture)(path, None if uploads is None else uploads[path])
    except ConfigError as error:
        raise OptionError(option, "{reason}", reason=error) from error
