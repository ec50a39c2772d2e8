"""Decoded pictures in the form the caller asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.errors import ConfigError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(output_type: str) -> None:
    """ConfigError unless `output_type` is known."""
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"output_type={output_type!r} is unknown: use {', '.join(map(repr, OUTPUT_TYPES))}.")


def to_output(pictures: Tensor, output_type: str) -> Any:
    """Pictures (B, 3, H, W) in [0, 1] -> 'np' an array (B, H, W, 3), 'pil' a list of Pillow pictures, others as is."""
    if output_type in ("pt", "latent"):
        return pictures
    array = pictures.detach().cpu().permute(0, 2, 3, 1).float().numpy()
    return array if output_type == "np" else numpy_to_pil(array)


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """An array (B, H, W, C) or (H, W, C) in [0, 1] -> Pillow pictures, grey for one channel."""
    batch = images[None] if images.ndim == 3 else images
    pixels = (batch * 255).round().astype(np.uint8)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]
