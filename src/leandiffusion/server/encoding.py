"""Pictures as they travel."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..drawing.opening import Drawn

BEST = 95
"""Of Pillow's quality for JPEG and WebP; beyond it files only grow."""


def encoded(image: Any, output_format: str = "png", compression: int | None = None, pnginfo: Any = None) -> str:
    """A Pillow image as base64 of a PNG, JPEG or WebP file; `compression` is the quality of the latter two, to 100."""
    file = BytesIO()
    if output_format == "png":
        image.save(file, "PNG", pnginfo=pnginfo)
    else:
        image.save(file, output_format.upper(), quality=BEST if compression is None else min(max(compression, 1), BEST))
    return base64.b64encode(file.getvalue()).decode()


def drawn_as(drawn: Drawn, output_format: str = "png", compression: int | None = None) -> str:
    """A picture as `encoded`, in PNG with its record."""
    return encoded(drawn.image, output_format, compression, drawn.record.png_info())
