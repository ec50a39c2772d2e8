"""Pictures as people have them: turned, transparent, printed, tiny, huge, broken."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from leandiffusion.core.errors import ConfigError
from leandiffusion.pictures.reading import MOST_PIXELS, fitting, read_mask, read_picture, resized, sha256

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(mode: str = "RGB", left: object = RED, right: object = BLUE) -> Image.Image:
    """16x8, of two colours."""
    image = Image.new(mode, (16, 8), left)  # type: ignore[arg-type]
    image.paste(right, (8, 0, 16, 8))  # type: ignore[arg-type]
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def close(one: tuple[int, ...] | float | None, other: tuple[int, ...]) -> bool:
    assert isinstance(one, tuple)
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 12


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.tiff", "a.ppm", "a.webp"])
def test_formats(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    image = read_picture(saved(halves(), tmp_path / name, **options))
    assert (image.mode, image.size) == ("RGB", (16, 8))
    assert close(image.getpixel((1, 1)), RED)
    assert close(image.getpixel((14, 6)), BLUE)


@pytest.mark.parametrize(("orientation", "size", "corner"), [(1, (16, 8), RED), (3, (16, 8), BLUE), (6, (8, 16), RED)])
def test_turned_as_exif_says(tmp_path: Path, orientation: int, size: tuple[int, int], corner: tuple[int, ...]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_picture(saved(halves(), tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0))
    assert image.size == size
    assert close(image.getpixel((1, 1)), corner)


def test_transparent_parts_are_white_in_a_picture_and_drawn_anew_by_a_mask(tmp_path: Path) -> None:
    path = saved(halves("RGBA", (*RED, 255), (*BLUE, 0)), tmp_path / "a.png")
    assert read_picture(path).getpixel((14, 6)) == WHITE
    mask = read_mask(path)
    assert (mask.mode, mask.getpixel((1, 1)), mask.getpixel((14, 6))) == ("L", 0, 255)


def test_a_mask_of_two_colours(tmp_path: Path) -> None:
    for mode, black, white in (
        ("1", 0, 1),
        ("L", 0, 255),
        ("RGB", (0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 255), (*WHITE, 255)),
    ):
        mask = read_mask(saved(halves(mode, black, white), tmp_path / f"{mode}.png"))
        assert (mask.mode, mask.getpixel((1, 1)), mask.getpixel((14, 6))) == ("L", 0, 255)


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    palette = halves().quantize(2)
    index = palette.getpixel((14, 6))
    image = read_picture(saved(palette, tmp_path / "a.png", transparency=index))
    assert image.getpixel((1, 1)) == RED
    assert image.getpixel((14, 6)) == WHITE


def test_print_colours_and_profiles(tmp_path: Path) -> None:
    image = read_picture(saved(halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), tmp_path / "a.jpg", quality=100))
    assert close(image.getpixel((1, 1)), RED)
    assert close(image.getpixel((14, 6)), BLUE)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(halves(), tmp_path / "b.png", icc_profile=profile)
    assert close(read_picture(path).getpixel((1, 1)), RED)
    path = saved(halves(), tmp_path / "c.png", icc_profile=b"no profile at all")
    assert read_picture(path).getpixel((1, 1)) == RED


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    numbers = np.array([[0, 256, 65535], [32768, 255, 65280]], dtype=np.uint16)
    image = read_picture(saved(Image.fromarray(numbers), tmp_path / "a.png"))
    assert np.asarray(image)[..., 0].tolist() == [[0, 1, 255], [128, 0, 255]]


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    path = saved(halves(), tmp_path / "a.gif", save_all=True, append_images=[halves(left=BLUE)])
    assert close(read_picture(path).getpixel((1, 1)), RED)


def header(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and ends."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    written = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_what_is_refused(tmp_path: Path) -> None:
    whole = saved(Image.effect_noise((64, 64), 50).convert("RGB"), tmp_path / "whole.png").read_bytes()
    jpeg = saved(Image.effect_noise((64, 64), 50), tmp_path / "whole.jpg").read_bytes()
    floats = saved(Image.new("F", (4, 4), 0.5), tmp_path / "floats.tiff").read_bytes()
    cases = {
        "cut.png": (whole[:2000], "cannot be read"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cannot be read"),
        "text.png": (b"not a picture", "no picture that can be read"),
        "empty.png": (b"", "no picture that can be read"),
        "bomb.png": (header(20_000, 20_000), "million pixels"),
        "large.png": (header(16_000, MOST_PIXELS // 16_000 + 1), "million pixels"),
        "floats.tif": (floats, "floating-point"),
        "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "no picture that can be read"),
    }
    for name, (content, told) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (read_picture, read_mask):
            with pytest.raises(ConfigError, match=told) as caught:
                read(path)
            assert name in str(caught.value)
    with pytest.raises(ConfigError, match="no such file"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_picture(tmp_path)


@pytest.mark.parametrize(
    ("size", "into", "expected"),
    [
        ((4032, 3024), (512, 512), (512, 384)),
        ((3024, 4032), (512, 512), (384, 512)),
        ((300, 200), (512, 512), (512, 344)),
        ((512, 512), (512, 768), (512, 512)),
        ((10_000, 10), (512, 512), (512, 8)),
    ],
)
def test_the_largest_size_of_the_same_shape(
    size: tuple[int, int], into: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fitting(size, *into) == expected


def test_resizing() -> None:
    image = halves().resize((1600, 800), Image.Resampling.NEAREST)
    assert resized(image, 64, 64).size == (64, 32)
    filled = resized(image, 64, 64, "fill")
    assert filled.size == (64, 64)
    assert close(filled.getpixel((2, 2)), RED)
    assert close(filled.getpixel((61, 61)), BLUE)
    stretched = resized(image, 64, 64, "stretch")
    assert stretched.size == (64, 64)
    assert resized(stretched, 64, 64) is stretched
    with pytest.raises(ConfigError, match="resized by fit, fill, stretch"):
        resized(image, 64, 64, "crop")


def test_a_file_is_known_again_by_its_bytes(tmp_path: Path) -> None:
    one, other = saved(halves(), tmp_path / "a.png"), saved(halves(left=BLUE), tmp_path / "b.png")
    assert len(sha256(one)) == 64
    assert sha256(one) != sha256(other)
