from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from leandiffusion.pictures import terminal


def console(width: int = 80, height: int = 24, **settings) -> Console:
    settings = {"force_terminal": True, "color_system": "truecolor", "no_color": False, **settings}
    return Console(file=io.StringIO(), width=width, height=height, _environ={}, **settings)


def shown(image: Image.Image, on: Console) -> str:
    terminal.show(image, on)
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_two_pixels_share_a_cell_in_their_own_colours():
    image = Image.new("RGB", (1, 2), (1, 2, 3))
    image.putpixel((0, 1), (250, 251, 252))
    assert shown(image, console()) == "\x1b[38;2;1;2;3;48;2;250;251;252m▀\x1b[0m\n"


def test_a_picture_fits_the_screen():
    lines = shown(Image.new("RGB", (512, 512), "red"), console(width=40, height=22)).splitlines()
    assert len(lines) == 20  # 22 rows less two for what is said around it
    assert {line.count(terminal.HALF_BLOCK) for line in lines} == {40}


@given(st.tuples(st.integers(8, 4096), st.integers(8, 4096)), st.integers(1, 300), st.integers(1, 100))
def test_a_fitted_size_is_inside_and_never_larger(size, columns, rows):
    width, height = terminal.fit(size, columns, rows)
    assert 1 <= width <= min(columns, size[0])
    assert 2 <= height <= max(2, min(2 * rows, size[1]))
    assert height % 2 == 0


def test_where_no_picture_can_be_shown_the_reason_is_said():
    assert terminal.why_not(console()) is None
    assert "not a terminal" in str(terminal.why_not(console(force_terminal=False)))
    assert "no colours" in str(terminal.why_not(console(color_system=None)))
    assert "no colours" in str(terminal.why_not(console(no_color=True)))
    ascii_only = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), force_terminal=True, color_system="truecolor")
    assert "ascii" in str(terminal.why_not(ascii_only))
