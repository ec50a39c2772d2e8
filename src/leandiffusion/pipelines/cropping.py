"""The part of a picture around a mask: where it is, how it fits another size, and how it is laid back."""

from __future__ import annotations

from PIL import Image, ImageOps

from ..core.errors import ConfigError

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


def crop_region(mask: Image.Image, width: int, height: int, pad: int = 0) -> Box:
    """The box around what is not black in `mask` and `pad` pixels more, made as wide as `width` to `height` asks.

    It stays within the mask, so that at its edges the proportions may be others. ConfigError for a black mask.
    """
    found = mask.convert("L").getbbox()
    if found is None:
        raise ConfigError("mask_image is all black, so there is nothing to draw: make it white where to draw anew.")
    left, top = max(found[0] - pad, 0), max(found[1] - pad, 0)
    right, bottom = min(found[2] + pad, mask.width), min(found[3] + pad, mask.height)
    wanted = width / height
    if (right - left) / (bottom - top) > wanted:
        top, bottom = _stretched(top, bottom, int((right - left) / wanted - (bottom - top)), mask.height)
    else:
        left, right = _stretched(left, right, int((bottom - top) * wanted - (right - left)), mask.width)
    return left, top, right, bottom


def _stretched(low: int, high: int, by: int, end: int) -> tuple[int, int]:
    """The range longer by so many at both ends, and moved to lie within [0, end]."""
    low, high = low - by // 2, high + by - by // 2
    beyond = max(high - end, 0)
    low, high = low - beyond, high - beyond
    before = max(-low, 0)
    return low + before, min(high + before, end)


def fitted(picture: Image.Image, width: int, height: int, resample: int, *, fill: bool) -> Image.Image:
    """The picture at that size with its own proportions, in the middle.

    With `fill` all of it is there, and what is left at two sides is filled with its outermost pixels; else it covers
    all, and two of its sides are cut.
    """
    wide = picture.width / picture.height > width / height
    inner_width = width if wide == fill else picture.width * height // picture.height
    inner_height = height if wide != fill else picture.height * width // picture.width
    inner = picture.resize((inner_width, inner_height), resample=resample)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    result = Image.new("RGB", (width, height))
    result.paste(inner, box=(left, top))
    if fill and wide and top > 0:
        for row, place in ((0, 0), (inner_height, top + inner_height)):
            result.paste(inner.resize((width, top), box=(0, row, width, row)), box=(0, place))
    elif fill and not wide and left > 0:
        for column, place in ((0, 0), (inner_width, left + inner_width)):
            result.paste(inner.resize((left, height), box=(column, 0, column, height)), box=(place, 0))
    return result


def laid_over(mask: Image.Image, original: Image.Image, drawn: Image.Image) -> Image.Image:
    """`drawn`, of the original's size, where the mask is white, and the original elsewhere."""
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    result = drawn.convert("RGBA")
    result.alpha_composite(kept.convert("RGBA"))
    return result.convert("RGB")
