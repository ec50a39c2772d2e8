"""The shipped demonstration model and its world: coloured shapes on plain backgrounds.

`shapes` says what the six shapes are, `scenes` draws scenes and captions at random, `render` paints them, and `verify`
reads colour, shape, size and relation back from pixels. These need numpy only; the model lies in `model_folder()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"prompt": "a large orange cross on a black background", "seed": 1, "steps": 30, "guidance_scale": 2.5}
)
"""The model's own settings: what it draws when nothing is asked, and what suits it where nothing is said."""


def model_folder() -> Path:
    """The packaged model, an ordinary pipeline folder."""
    return Path(str(resources.files(__name__).joinpath("model")))


def notice(prompt: str) -> str | None:
    """What to tell somebody whose prompt has words that the model never saw; None when it knows them all."""
    from .scenes import DESCRIPTION, unknown_words

    unknown = unknown_words(prompt)
    if not unknown:
        return None
    return f"the demo model has never seen {', '.join(map(repr, unknown))}. {DESCRIPTION}"
