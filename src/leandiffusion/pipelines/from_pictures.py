"""Pictures and masks that a call is given, checked and made tensors, and the tasks that draw from them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import ConfigError
from ..run.tasks.image_to_image import ImageToImage
from ..run.tasks.inpainting import Blending, Inpainting, SeeingTheMask
from .cropping import Box, crop_region
from .image_processor import VaeImageProcessor
from .picture_requests import MaskRequest, PictureRequest

OPAQUE = ("RGB", "L", "P", "1", "I", "I;16", "F")  # modes of Pillow that become RGB without a loss that is seen


class FromPictures:
    """Mixin of the pipelines that draw on pictures."""

    begins_with_pictures = True
    image_processor: VaeImageProcessor
    vae_scale_factor: int

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks to tensors of 0 and 1."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def _image_to_image(self, request: PictureRequest) -> tuple[PictureRequest, ImageToImage]:
        """The request, now of the picture's size, and its task. ConfigError for what is no picture."""
        picture = self._picture(request, request.height, request.width)
        factor = self.vae_scale_factor if self._is_latent(picture) else 1
        height, width = (side * factor for side in picture.shape[-2:])
        task = ImageToImage(
            picture=picture, part=request.part, generator=request.generator, latents=request.latents
        )  # fmt: skip
        return replace(request, height=height, width=width), task

    def _inpainting(self: Any, request: MaskRequest) -> Inpainting:
        """The request's task: whether the UNet sees the mask depends on how many channels it takes."""
        height, width = self._pixels(request)
        box = self._box(request)
        picture = self._picture(request, height, width, box)
        mask = self._mask(request, height, width, box)
        latent, taken = self._latent_channels(), self._unet_channels()
        sees = None not in (latent, taken) and taken == 2 * latent + 1
        masked = request.masked_image_latents
        check_rows("mask_image", mask, request.batch)
        if len(mask) != len(picture) and 1 not in (len(mask), len(picture)):
            raise ConfigError(f"mask_image has {len(mask)} masks for {len(picture)} pictures: pass one, or as many.")
        shape = (latent or 4, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if masked is not None:
            _check_latents("masked_image_latents", masked, shape, request.batch)
        elif sees and self._is_latent(picture):
            raise ConfigError(
                "image holds latents, which cannot be masked, and this UNet sees the masked picture: pass the picture, "
                "or masked_image_latents too."
            )
        return (SeeingTheMask if sees else Blending)(
            picture=picture, mask=mask, part=request.part, generator=request.generator, latents=request.latents,
            masked_latents=masked,
        )  # fmt: skip

    def _box(self: Any, request: MaskRequest) -> Box | None:
        """What is drawn of the picture, where only the part around the mask is."""
        if request.padding_mask_crop is None:
            return None
        height, width = self._pixels(request)
        return crop_region(request.mask_image, width, height, request.padding_mask_crop)

    def _lay_back(self, request: MaskRequest, images: Any) -> Any:
        """What was drawn of the part around the mask, in its place in the picture."""
        box = self._box(request)
        if box is None:
            return images
        overlay = self.image_processor.apply_overlay
        return [overlay(request.mask_image, request.image, drawn, box) for drawn in images]

    # -- what is given, as tensors -----------------------------------------------------------------------------------

    def _picture(
        self, request: PictureRequest, height: int | None = None, width: int | None = None, box: Box | None = None
    ) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1], at their own size unless one is given, or latents (n, C, h, w)."""
        given = _opaque("image", request.image)
        picture = preprocess("image", self.image_processor, given, height, width, box)
        if self._is_latent(picture):
            if height is not None and width is not None:
                factor = self.vae_scale_factor
                shape = (picture.shape[1], height // factor, width // factor)
                _check_latents("image", picture, shape, request.batch)
        elif picture.shape[1] != 3:
            raise ConfigError(f"image has {picture.shape[1]} channels: pass red, green and blue, or latents.")
        _check_numbers("image", picture, whole=not self._is_latent(picture))
        check_rows("image", picture, request.batch)
        return picture

    def _mask(self, request: MaskRequest, height: int, width: int, box: Box | None) -> Tensor:
        """Masks (m, 1, H, W) of 0 and 1. ConfigError for those of other proportions than the picture's."""
        mask, sizes = request.mask_image, [_size_of(each) for each in (request.image, request.mask_image)]
        if None not in sizes:
            (h, w), (mask_h, mask_w) = sizes  # type: ignore[misc]
            if abs(mask_h * w - mask_w * h) > max(h, w):  # by more than a pixel
                raise ConfigError(
                    f"mask_image is {mask_w}x{mask_h} and image {w}x{h}, whose proportions are others: pass a mask of "
                    "the picture's size."
                )
        found = preprocess("mask_image", self.mask_processor, mask, height, width, box)
        if found.shape[1] != 1:
            raise ConfigError(f"mask_image has {found.shape[1]} channels: pass one, of numbers from 0 to 1.")
        _check_numbers("mask_image", found, whole=False)
        return found.float()

    def _is_latent(self: Any, picture: Tensor) -> bool:
        return picture.shape[1] == (self._latent_channels() or 4)


def preprocess(
    name: str, processor: VaeImageProcessor, given: Any, height: int | None, width: int | None, box: Box | None
) -> Tensor:
    """The processor's tensor, float32 where it was an array. ConfigError, with the argument's name, if it has none."""
    first: Any = given[0] if isinstance(given, list | tuple) and given else given
    size, least = _size_of(given), processor.config.vae_scale_factor
    if size is not None and min(size) < least:
        raise ConfigError(f"{name} is {size[1]}x{size[0]} pixels: it needs {least} at least.")
    integers = isinstance(first, np.ndarray) and not np.issubdtype(first.dtype, np.floating)
    if integers or (isinstance(first, Tensor) and not first.is_floating_point()):
        way = f"{name} * 1.0" if "bool" in str(first.dtype) else f"{name} / 255"
        raise ConfigError(f"{name} holds {first.dtype}: pass floating-point numbers from 0 to 1, such as {way}.")
    try:
        return processor.preprocess(given, height, width, "default" if box is None else "fill", box).detach().float()
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{name} cannot be read as pictures of one size ({error}): pass a Pillow picture, an array (B, H, W, C), a "
            "tensor (B, C, H, W), or a list of one of them."
        ) from None


def _opaque(name: str, given: Any) -> Any:
    """Pillow's pictures in RGB. ConfigError for those with transparency, and for print colours."""
    pictures = list(given) if isinstance(given, list | tuple) else [given]
    wrong = [each.mode for each in pictures if isinstance(each, Image.Image) and each.mode not in OPAQUE]
    if wrong:
        raise ConfigError(
            f"{name} is a picture of mode {wrong[0]}: lay it over a background if it is transparent, and pass "
            f"{name}.convert('RGB')."
        )
    rgb = [each.convert("RGB") if isinstance(each, Image.Image) else each for each in pictures]
    return rgb if isinstance(given, list | tuple) else rgb[0]


def _size_of(given: Any) -> tuple[int, int] | None:
    """Height and width of pictures in pixels; None for latents, and for what is none of the forms."""
    first = given[0] if isinstance(given, list | tuple) and given else given
    if isinstance(first, Image.Image):
        return first.height, first.width
    if isinstance(first, Tensor) and first.ndim >= 2:
        return None if first.ndim >= 3 and first.shape[-3] == 4 else (first.shape[-2], first.shape[-1])
    if isinstance(first, np.ndarray) and first.ndim >= 2:
        with_channels = first.ndim == 4 or (first.ndim == 3 and first.shape[-1] in (1, 3))
        return first.shape[-3:-1] if with_channels else first.shape[-2:]
    return None


def _check_numbers(name: str, picture: Tensor, *, whole: bool) -> None:
    if not torch.isfinite(picture).all():
        raise ConfigError(f"{name} holds NaN or infinity: pass finite numbers.")
    if whole and picture.abs().max() > 3:  # 2 in what was meant to be in [0, 1]
        raise ConfigError(f"{name} holds numbers far beyond 1: pass pictures in [0, 1], such as {name} / 255.")


def check_rows(name: str, rows: Tensor, batch: int) -> None:
    """ConfigError unless there is one of the pictures or masks for each of the batch, or one for every so many."""
    if batch % len(rows):
        raise ConfigError(
            f"{name} has {len(rows)} entries for {batch} pictures to draw (prompts times num_images_per_prompt): pass "
            f"one, or as many as prompts, such as prompt=[prompt] * {len(rows)}."
        )


def _check_latents(name: str, rows: Any, shape: tuple[int, ...], batch: int) -> None:
    if not isinstance(rows, Tensor) or tuple(rows.shape[1:]) != shape:
        found = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ConfigError(f"{name} must be latents (B, {', '.join(map(str, shape))}) for this size, found {found}.")
    check_rows(name, rows, batch)
