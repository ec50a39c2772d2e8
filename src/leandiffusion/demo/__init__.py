"""The packaged model: an ordinary pipeline folder, its own settings, and the words it knows.

What it was trained and judged with, scenes of coloured shapes, is no part of the package: `tools/demo_world`.
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


def loras() -> dict[str, Path]:
    """The packaged model's LoRAs by name."""
    folder = Path(str(resources.files(__name__).joinpath("loras")))
    return {file.stem: file for file in sorted(folder.glob("*.safetensors"))}


def controlnets() -> dict[str, Path]:
    """Folders of the packaged model's ControlNets by name: 'silhouette' sees white shapes on black."""
    folder = Path(str(resources.files(__name__).joinpath("controlnets")))
    return {each.name: each for each in sorted(folder.iterdir()) if each.is_dir()}


def packaged_controlnet(path_or_id: str) -> str:
    """'silhouette' -> its folder, unless something of that name lies here; all else as it is."""
    found = controlnets().get(path_or_id)
    return path_or_id if found is None or Path(path_or_id).exists() else str(found)


def notice(prompt: str) -> str | None:
    """What to tell somebody whose prompt has words that the model never saw; None when it knows them all."""
    from .words import DESCRIPTION, unknown_words

    unknown = unknown_words(prompt)
    if not unknown:
        return None
    return f"the demo model has never seen {', '.join(map(repr, unknown))}. {DESCRIPTION}"
