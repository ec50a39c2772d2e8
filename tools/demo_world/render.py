"""Scenes -> pictures: flat colours, analytic antialiasing, only each shape's bounding box is computed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from leandiffusion.core.errors import ConfigError

from .layout import PICTURE
from .scenes import PALETTE, Placed, Scene
from .shapes import SHAPES

_PALETTE = {name: np.array(rgb, np.float32) for name, rgb in PALETTE.items()}


def render(scene: Scene, side: int = PICTURE) -> npt.NDArray[np.uint8]:
    """Paint `scene` as RGB of shape (side, side, 3), values 0..255. ConfigError for a side below 16 pixels."""
    if side < 16:
        raise ConfigError(f"side={side} is too small to show a shape: use 16 pixels or more ({PICTURE} is usual).")
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = np.array(PALETTE[scene.background], np.uint8)
    for placed in scene.placed:
        _paint(picture, placed, side / PICTURE)
    return picture


def _paint(picture: npt.NDArray[np.uint8], placed: Placed, scale: float) -> None:
    """Blend one shape over its bounding box: under + coverage * (colour - under)."""
    shape = SHAPES[placed.thing.shape]
    x, y, r = (scale * v for v in (placed.x, placed.y, placed.r))
    left, right = _pixels(x - shape.side * r, x + shape.side * r, picture.shape[1])
    top, bottom = _pixels(y - shape.up * r, y + shape.down * r, picture.shape[0])
    columns = np.arange(left + 0.5 - x, right - x, dtype=np.float32)[None, :]
    rows = np.arange(top + 0.5 - y, bottom - y, dtype=np.float32)[:, None]
    coverage = shape.coverage(columns, rows, r)
    colour = _PALETTE[placed.thing.colour]
    box = picture[top:bottom, left:right]
    for channel in range(3):  # one plane at a time: contiguous arithmetic is faster than a last axis of three
        under = box[:, :, channel]
        blended = coverage * (colour[channel] - under)
        blended += under
        blended += 0.5  # the cast to uint8 truncates
        box[:, :, channel] = blended


def _pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    """The range of pixels that [low, high] touches, with one to spare, inside 0..limit."""
    return max(int(low) - 1, 0), min(int(high) + 2, limit)
