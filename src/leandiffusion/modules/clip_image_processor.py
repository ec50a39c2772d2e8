"""CLIPImageProcessor: pictures as CLIP's vision models read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from ..core.config import Configurable, write_json
from ..core.errors import ConfigError
from ..core.output import Batch
from ..core.wording import show

_MOST_PIXELS = 4096  # of a side that pictures are resized to


class CLIPImageProcessor(Configurable):
    """Pictures as CLIP's vision tower wants them: resized, cropped in the centre, normalised.

    The keywords are the keys of preprocessor_config.json. `size` is the shortest edge, as a number or as
    {"shortest_edge": n}, or an exact {"height": h, "width": w}; `crop_size` a number or the latter. `resample` is
    Pillow's number of the filter, 3 being bicubic.
    """

    config_name: ClassVar[str] = "preprocessor_config.json"
    notes: ClassVar[frozenset[str]] = frozenset(
        {"feature_extractor_type", "image_processor_type", "processor_class", "data_format"}
    )

    def __init__(
        self,
        do_resize: bool = True,
        size: int | Mapping[str, int] = 224,
        resample: int = 3,
        do_center_crop: bool = True,
        crop_size: int | Mapping[str, int] = 224,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
        do_convert_rgb: bool = True,
    ) -> None:
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        crop = {"height": crop_size, "width": crop_size} if isinstance(crop_size, int) else dict(crop_size)
        if sorted(size) not in (["shortest_edge"], ["height", "width"]) or sorted(crop) != ["height", "width"]:
            raise ConfigError(
                f"size={show(size)} or crop_size={show(crop)} is unknown: give numbers, or heights and widths."
            )
        if not 0 <= resample <= 5 or max(*size.values(), *crop.values()) > _MOST_PIXELS:
            raise ConfigError(
                f"resample={show(resample)}, size={show(size)}, crop_size={show(crop)}: expected a filter of Pillow's "
                f"from 0 to 5, and sides of up to {_MOST_PIXELS} pixels."
            )
        if len(image_mean) != 3 or len(image_std) != 3 or 0 in image_std:
            raise ConfigError(
                f"image_mean={show(image_mean)}, image_std={show(image_std)}: expected three numbers, one for each of "
                "red, green and blue, and no deviation of 0."
            )
        self._size, self._crop = size, crop

    @classmethod
    def _carry(cls, foreign: dict[str, Any]) -> dict[str, Any]:
        """Some versions of transformers write every option of any processor: those that are off are ignored."""
        asked = {key: value for key, value in foreign.items() if value is not None and value is not False}
        return super()._carry({key: value for key, value in asked.items() if key not in cls.notes})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> Self:
        """Open a local folder or a hub id; `where` are the keywords of `load_config`, such as `subfolder`.

        CheckpointNotFound when there is no preprocessor_config.json.
        """
        return cls.from_config(cls.load_config(pretrained_model_name_or_path, **where))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json as transformers reads it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        notes = {"image_processor_type": type(self).__name__, "size": self._size, "crop_size": self._crop}
        write_json(Path(folder) / self.config_name, {**self.config, **notes})

    def __call__(self, images: Image.Image | list[Image.Image], return_tensors: str | None = "pt") -> Batch:
        """Pillow pictures -> `pixel_values` (B, 3, height, width) float32: a tensor ("pt") or an array ("np")."""
        pictures = images if isinstance(images, list | tuple) else [images]
        pixels = np.stack([self._pixels(picture) for picture in pictures])
        if return_tensors not in ("pt", "np"):
            raise ConfigError(f"return_tensors={return_tensors!r} is unknown: use 'pt' or 'np'.")
        return Batch(pixel_values=torch.from_numpy(pixels) if return_tensors == "pt" else pixels)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        if not isinstance(image, Image.Image):
            raise ConfigError(f"expected a Pillow picture, found {type(image).__name__}: convert it first.")
        config = self.config
        image = image.convert("RGB") if config.do_convert_rgb else image
        if config.do_resize:
            image = image.resize(self._resized(image.width, image.height), Image.Resampling(config.resample))
        if config.do_center_crop:
            width, height = self._crop["width"], self._crop["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.float32) * np.float32(config.rescale_factor if config.do_rescale else 1)
        if config.do_normalize:
            pixels = (pixels - np.float32(config.image_mean)) / np.float32(config.image_std)
        return pixels.transpose(2, 0, 1).astype(np.float32)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if "height" in self._size:
            return self._size["width"], self._size["height"]
        edge, short = self._size["shortest_edge"], min(width, height)
        return edge * width // short, edge * height // short
