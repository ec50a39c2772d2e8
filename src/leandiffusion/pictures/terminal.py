"""Pictures in a terminal: two pixels a character cell, the upper half block in one colour on the other."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

HALF_BLOCK = "▀"


def why_not(console: Console) -> str | None:
    """Why this console can show no picture, in words for the user; None when it can."""
    if not console.is_terminal:
        return "the output is not a terminal"
    if console.color_system is None or console.no_color:
        return "this terminal shows no colours"
    try:
        HALF_BLOCK.encode(console.encoding)
    except UnicodeEncodeError:
        return f"this terminal's encoding, {console.encoding}, has no half blocks"
    return None


def show(image: Image.Image, console: Console) -> None:
    """Draw `image` as wide as fits the console, at most one cell per pixel, keeping its proportions."""
    width, height = fit(image.size, console.width, max(console.height - 2, 1))
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    console.print(Segments(_segments(small)), end="")


def fit(size: tuple[int, int], columns: int, rows: int) -> tuple[int, int]:
    """(width, height) in pixels, height even, of a picture of `size` shrunk into cells of one pixel by two."""
    width, height = size
    scale = min(1.0, columns / width, 2 * rows / height)
    return max(1, int(width * scale)), max(2, 2 * int(height * scale / 2))


def _segments(image: Image.Image) -> Iterator[Segment]:
    width, height = image.size
    pixels = image.tobytes()

    def colour(x: int, y: int) -> Color:
        start = 3 * (y * width + x)
        return Color.from_rgb(*pixels[start : start + 3])

    for y in range(0, height, 2):
        for x in range(width):
            yield Segment(HALF_BLOCK, Style(color=colour(x, y), bgcolor=colour(x, y + 1)))
        yield Segment.line()
