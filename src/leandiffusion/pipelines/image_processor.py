"""Pictures between Pillow, NumPy and tensors, under the names of diffusers' VaeImageProcessor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..core.config import Config
from ..core.errors import ConfigError
from .cropping import Box, crop_region, fitted, laid_over
from .images import check_output_type, numpy_to_pil, to_output

FORMS = Image.Image, np.ndarray, Tensor
MODES = ("default", "fill", "crop")


class VaeImageProcessor:
    """`pipe.image_processor`: what a VAE encodes out of pictures, and pictures out of what it decodes.

    `vae_scale_factor`: pixels per latent, of which sides are made multiples. `do_resize`, `do_normalize`,
    `do_binarize` (to 0 and 1), `do_convert_rgb`, `do_convert_grayscale` (Pillow pictures): whether `preprocess` does
    these. Tensors are (B, C, H, W), arrays (B, H, W, C).
    """

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: int | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if do_convert_rgb and do_convert_grayscale:
            raise ConfigError("do_convert_rgb and do_convert_grayscale exclude each other: pass one of them.")
        if not hasattr(Image.Resampling, str(resample).upper()):
            names = ", ".join(repr(each.name.lower()) for each in Image.Resampling)
            raise ConfigError(f"resample={resample!r}: use {names}.")
        self.config = Config(
            {
                "do_resize": do_resize, "vae_scale_factor": vae_scale_factor, "resample": resample,
                "vae_latent_channels": vae_latent_channels, "reducing_gap": reducing_gap, "do_normalize": do_normalize,
                "do_binarize": do_binarize, "do_convert_rgb": do_convert_rgb,
                "do_convert_grayscale": do_convert_grayscale,
            }
        )  # fmt: skip

    numpy_to_pil = staticmethod(numpy_to_pil)

    @staticmethod
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        """A Pillow picture in RGB."""
        return image.convert("RGB")

    @staticmethod
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        """A Pillow picture in grey."""
        return image.convert("L")

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """A Pillow picture, blurred: a mask's soft edge."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def binarize(image: Any) -> Any:
        """0 below 0.5, else 1; in place."""
        image[image < 0.5] = 0
        image[image >= 0.5] = 1
        return image

    @staticmethod
    def get_crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> Box:
        """The box (left, top, right, bottom) around what is not black, and `pad` pixels, in the proportions of the
        size. ConfigError for a black mask."""
        return crop_region(mask_image, width, height, pad)

    def apply_overlay(
        self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """`image` where `mask` is white, and `init_image` elsewhere. With `crop_coords` it was drawn of that box."""
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            base = Image.new("RGB", init_image.size)
            base.paste(self.resize(image, bottom - top, right - left, resize_mode="crop"), (left, top))
            image = base
        return laid_over(mask, init_image, image)

    @staticmethod
    def pil_to_numpy(images: Image.Image | list[Image.Image]) -> np.ndarray:
        """Pillow pictures of one size -> an array in [0, 1]."""
        pictures = images if isinstance(images, list) else [images]
        return np.stack([np.asarray(each, dtype=np.float32) / 255.0 for each in pictures])

    @staticmethod
    def numpy_to_pt(images: np.ndarray) -> Tensor:
        """An array (B, H, W, C), or (B, H, W) of one channel -> a tensor."""
        batch = images[..., None] if images.ndim == 3 else images
        return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> np.ndarray:
        """A tensor -> an array, float32."""
        return to_output(images, "np")

    @staticmethod
    def normalize(images: Any) -> Any:
        """[0, 1] -> [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Tensor) -> Tensor:
        """[-1, 1] -> [0, 1], clamped."""
        return (images * 0.5 + 0.5).clamp(0, 1)

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """Height and width, the picture's own unless given, at the next lower multiples of the scale factor."""
        if isinstance(image, Image.Image):
            own = image.height, image.width
        else:
            own = tuple(image.shape[2:4]) if isinstance(image, Tensor) else tuple(image.shape[1:3])
        factor = self.config.vae_scale_factor
        wanted = own[0] if height is None else height, own[1] if width is None else width
        return wanted[0] // factor * factor, wanted[1] // factor * factor

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """The picture at that size: Pillow ones resampled as configured, arrays and tensors by nearest neighbours.

        `resize_mode` 'default' stretches it. 'fill' and 'crop', for Pillow pictures, keep its proportions: all of it is
        there and the rest filled with its edges, or it covers all and is cut.
        """
        is_pillow = isinstance(image, Image.Image)
        if resize_mode not in MODES or (resize_mode != "default" and not is_pillow):
            raise ConfigError(
                f"resize_mode={resize_mode!r} for a {type(image).__name__}: use 'default', or for Pillow pictures "
                "'fill' or 'crop'."
            )
        if is_pillow:
            resample = Image.Resampling[self.config.resample.upper()]
            if resize_mode != "default":
                return fitted(image, width, height, resample, fill=resize_mode == "fill")
            return image.resize((width, height), resample=resample, reducing_gap=self.config.reducing_gap)
        if isinstance(image, np.ndarray):
            return self.pt_to_numpy(self.resize(self.numpy_to_pt(image), height, width))
        return torch.nn.functional.interpolate(image, size=(height, width))

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: Box | None = None,
    ) -> Tensor:
        """Pictures in [0, 1], or Pillow's, one or a list of them -> (B, C, H, W) in [-1, 1] for the VAE to encode.

        `crops_coords`, a box in pixels, is cut out of Pillow pictures first; `resize_mode` as `resize` takes it.
        Tensors with as many channels as latents have are latents already, and come back as they are. ConfigError for
        anything else than pictures.
        """
        pictures = list(image) if isinstance(image, list | tuple) else [image]
        kind = next((form for form in FORMS if pictures and all(isinstance(each, form) for each in pictures)), None)
        if kind is None:
            found = type(pictures[0]).__name__ if pictures else "nothing"
            raise ConfigError(f"found {found}: pass a Pillow picture, an array (B, H, W, C), a tensor (B, C, H, W).")
        if kind is Image.Image:
            batch = self._from_pillow(pictures, height, width, resize_mode, crops_coords)
        else:
            batch = self._joined(image, pictures)
            if kind is Tensor and batch.shape[1] == self.config.vae_latent_channels:
                return batch
            if self.config.do_resize:
                batch = self.resize(batch, *self.get_default_height_width(batch, height, width))
        batch = self.normalize(batch) if self.config.do_normalize and batch.min() >= 0 else batch
        return self.binarize(batch.clone()) if self.config.do_binarize else batch

    def _from_pillow(
        self, pictures: list[Any], height: int | None, width: int | None, resize_mode: str, box: Box | None
    ) -> Tensor:
        """Pillow pictures -> (B, C, H, W) in [0, 1]."""
        if box is not None:
            pictures = [each.crop(box) for each in pictures]
        if self.config.do_resize:
            height, width = self.get_default_height_width(pictures[0], height, width)
            pictures = [self.resize(each, height, width, resize_mode) for each in pictures]
        if self.config.do_convert_rgb:
            pictures = [self.convert_to_rgb(each) for each in pictures]
        elif self.config.do_convert_grayscale:
            pictures = [self.convert_to_grayscale(each) for each in pictures]
        return self.numpy_to_pt(self.pil_to_numpy(pictures))

    def _joined(self, image: Any, pictures: list[Any]) -> Tensor:
        """Arrays or tensors -> one tensor (B, C, H, W). Where all is grey, one of (H, W) or (B, H, W) has a channel."""
        own, grey = pictures[0], self.config.do_convert_grayscale
        if grey and image is own and own.ndim == 3 and (isinstance(own, Tensor) or own.shape[-1] != 1):
            pictures = [own[:, None] if isinstance(own, Tensor) else own[..., None]]
        whole = pictures[0].ndim == 4
        if isinstance(own, np.ndarray):
            return self.numpy_to_pt(np.concatenate(pictures) if whole else np.stack(pictures))
        batch = torch.cat(pictures) if whole else torch.stack(pictures)
        return batch[:, None] if grey and batch.ndim == 3 else batch

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: list[bool] | None = None) -> Any:
        """What a VAE decodes, (B, C, H, W) in [-1, 1] -> 'pil', 'np', 'pt' in [0, 1], or 'latent', as it is.

        `do_denormalize`: whether each picture is brought to [0, 1] first, which is all of them unless given.
        """
        if not isinstance(image, Tensor):
            raise ConfigError(f"found a {type(image).__name__}: pass a tensor (B, C, H, W).")
        check_output_type(output_type)
        if output_type == "latent":
            return image
        flags = [self.config.do_normalize] * len(image) if do_denormalize is None else do_denormalize
        if len(flags) != len(image):
            raise ConfigError(f"do_denormalize has {len(flags)} entries for {len(image)} pictures: pass one for each.")
        unit = [self.denormalize(each) if flag else each for each, flag in zip(image, flags, strict=True)]
        return to_output(torch.stack(unit), output_type)
