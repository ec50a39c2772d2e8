"""Calls that are given a picture, or a picture and a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ..core.errors import ConfigError
from ..run import inputs
from ..run.schedule import Part
from .request import Request, RequestXL


@dataclass(frozen=True, kw_only=True)
class PictureRequest(Request):
    """A call on a picture. `part` is the share of the schedule that it runs."""

    image: Any
    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs.check_number("strength", self.strength, 0, 1)
        if self.image is None:
            raise ConfigError("image is missing: pass a Pillow picture, an array (B, H, W, 3), a tensor (B, 3, H, W).")
        start, end = self.denoising_start, self.denoising_end
        if start is not None:
            inputs.check_number("denoising_start", start, 0, 1)
            if not 0 < start < (1 if end is None else end):
                raise ConfigError(
                    f"denoising_start={start}: pass a number above 0 and below "
                    f"{'1' if end is None else f'denoising_end={end}'}, or leave it out for strength to count."
                )

    @property
    def part(self) -> Part:
        """Which part of the schedule is run."""
        own = self.timesteps is not None or self.sigmas is not None
        return Part(self.strength, None if own else self.num_inference_steps, self.denoising_start)


@dataclass(frozen=True, kw_only=True)
class MaskRequest(PictureRequest):
    """A call on a picture and a mask."""

    mask_image: Any
    masked_image_latents: Tensor | None
    padding_mask_crop: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_image is None:
            raise ConfigError("mask_image is missing: pass a picture of the image's size, white where to draw anew.")
        if self.denoising_start is not None:
            inputs.refuse({"latents": self.latents}, "denoising_start goes on from image: pass one of them")
        if self.padding_mask_crop is not None:
            check_crop(self.padding_mask_crop, self.image, self.mask_image, self.output_type)


def check_crop(padding: Any, image: Any, mask_image: Any, output_type: str) -> None:
    """ConfigError unless what is around the mask can be drawn alone and laid back."""
    inputs.check_number("padding_mask_crop", padding, 0, 100_000)
    for name, given in (("image", image), ("mask_image", mask_image)):
        if not isinstance(given, Image.Image):
            raise ConfigError(f"padding_mask_crop needs {name} as one Pillow picture, found {type(given).__name__}.")
    if image.size != mask_image.size:
        raise ConfigError(
            f"image is {_size(image)} pixels and mask_image {_size(mask_image)}: resize one to the other."
        )
    if output_type != "pil":
        raise ConfigError(
            f"output_type={output_type!r}: with padding_mask_crop what is drawn is laid over the picture, which needs "
            "output_type='pil'."
        )


def _size(picture: Image.Image) -> str:
    return f"{picture.width}x{picture.height}"


@dataclass(frozen=True, kw_only=True)
class AestheticScores:
    """What a refiner was told of its training pictures in place of a target size: how pretty they are, 0 to 10."""

    aesthetic_score: float
    negative_aesthetic_score: float

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the request beside this
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            inputs.check_number(name, getattr(self, name), -1000, 1000)


@dataclass(frozen=True, kw_only=True)
class PictureRequestXL(AestheticScores, PictureRequest, RequestXL):
    """A call on a picture where there are two text encoders."""


@dataclass(frozen=True, kw_only=True)
class MaskRequestXL(AestheticScores, MaskRequest, RequestXL):
    """A call on a picture and a mask where there are two text encoders."""
