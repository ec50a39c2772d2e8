"""docs/techniques.md says what the techniques declare."""

from __future__ import annotations

from tools.price_list import PAGE, page

from leandiffusion.techniques import techniques


def test_the_page_is_what_the_declarations_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs` and look at what changed"


def test_it_names_every_technique() -> None:
    text = page()
    assert all(f"**Name**: `{name}`" in text for name in techniques)
