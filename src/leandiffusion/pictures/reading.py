"""Reading pictures that people draw from: upright, in RGB, and as large as what is drawn."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..core.errors import ConfigError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is read. Pillow knows more, some of which start other programs."""

MOST_PIXELS = 128_000_000
"""Of a picture, beyond which it is refused unread: it would take 0.4 GB in memory."""

RESIZE = ("fit", "fill", "stretch")
"""How a picture gets another size: scaled into it, scaled to cover it and cut, or pulled to it."""

BACKGROUND = (255, 255, 255)
"""What is seen through transparent parts."""


def read_picture(path: str | Path, data: bytes | None = None) -> Image.Image:
    """The picture in a file, RGB and upright. Where its bytes are given as `data`, `path` is but what it is called.

    Turned as its EXIF says; colours of CMYK and of a profile as sRGB; palettes and grey as RGB, of more than 8 bits the
    upper 8; transparent parts over white; of an animation the first frame. ConfigError, naming the file, where it is
    missing, no picture of a known format, cut off, or has more than 128 million pixels.
    """
    with _opened(path, data) as image:
        return _over_white(_in_srgb(ImageOps.exif_transpose(image)))


def read_mask(path: str | Path, data: bytes | None = None) -> Image.Image:
    """The mask in a file, grey (mode L) and upright: white is drawn anew. Of a picture with transparent parts these are
    what is white. ConfigError as `read_picture`."""
    with _opened(path, data) as image:
        upright = ImageOps.exif_transpose(image)
        if _is_transparent(upright):
            return ImageOps.invert(upright.convert("RGBA").getchannel("A"))
        return _over_white(upright).convert("L")


def resized(image: Image.Image, width: int, height: int, how: str = "fit", multiple: int = 8) -> Image.Image:
    """The picture at another size, in pixels: 'fit' as large as fits into width x height, its sides multiples of
    `multiple`; 'fill' of exactly that size, the middle of what covers it; 'stretch' of that size, whatever its shape.

    ConfigError for another `how`.
    """
    if how not in RESIZE:
        raise ConfigError(f"a picture is resized by {', '.join(RESIZE)}, not {how!r}.")
    size = fitting(image.size, width, height, multiple) if how == "fit" else (width, height)
    if size == image.size:
        return image
    if how == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)  # a multiple's worth of the edges is cut for 'fit'


def fitting(size: tuple[int, int], width: int, height: int, multiple: int = 8) -> tuple[int, int]:
    """The largest size (width, height) of that shape within width x height, its sides multiples of `multiple`."""
    scale = min(width / size[0], height / size[1])
    own_width, own_height = (max(round(side * scale / multiple), 1) * multiple for side in size)
    return own_width, own_height


def sha256(path: str | Path) -> str:
    """Of a file's bytes, in hexadecimal, to know it again."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: str | Path, data: bytes | None) -> Iterator[Image.Image]:
    """The picture, read whole, its size checked before anything is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, at sizes below ours
            image = Image.open(path if data is None else BytesIO(data), formats=FORMATS)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except UnidentifiedImageError:
        raise ConfigError(f"{path} is no picture that can be read: use one of {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise _broken(path, error) from error
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise _too_large(path, image.size)
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise whatever they come across
            raise _broken(path, error) from error
        if image.mode == "F":
            raise ConfigError(f"{path} holds floating-point numbers, whose range is not known: save it with 8 bits.")
        yield image


def _too_large(path: str | Path, size: tuple[int, int] | None = None) -> ConfigError:
    has = "has" if size is None else f"is {size[0]}x{size[1]}, which is"
    return ConfigError(f"{path} {has} more than {MOST_PIXELS // 10**6} million pixels: make it smaller first.")


def _broken(path: str | Path, error: Exception) -> ConfigError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return ConfigError(f"{path} cannot be read: {reason}. Is it whole?")


def _in_srgb(image: Image.Image) -> Image.Image:
    """As its colour profile says, if it has one that is understood."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
    return image


def _is_transparent(image: Image.Image) -> bool:
    if image.has_transparency_data:
        return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
    return False


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # more than 8 bits
        return _upper_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    behind = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
    return Image.alpha_composite(behind, seen).convert("RGB")


def _upper_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8."""
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
