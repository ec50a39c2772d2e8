"""The files that a picture is drawn with: by which names its record has their hashes, and which are others by now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import LeanError
from .lora import path_and_scale
from .report import say

if TYPE_CHECKING:
    from ..pictures.record import PictureRecord
    from .generate_options import GenerateOptions

PICTURES = ("image", "mask")
SEVERAL = {"control_image": "control image", "lora": "LoRA"}
"""What there may be several of, whose names in a record have the path too, and how it is called."""


def pictures_of(options: GenerateOptions) -> dict[str, str]:
    """Paths of the pictures that the options name, by 'image', 'mask' and 'control_image PATH'."""
    named = {name: path for name in PICTURES if (path := getattr(options, name)) is not None}
    return named | {f"control_image {path}": path for path in options.control_image or ()}


def digests(options: GenerateOptions) -> dict[str, str]:
    """SHA-256 of the files, by the names of `pictures_of` and 'lora PATH'. Raises what `find_lora` does and OSError."""
    from ..pictures.reading import sha256

    return {name: sha256(path) for name, path in _files_of(options).items()}


def say_what_changed(record: PictureRecord, options: GenerateOptions) -> None:
    """A note of files that are no longer those that the recorded picture was drawn with."""
    if not record.inputs:
        return
    from ..pictures.reading import sha256

    try:
        files = _files_of(options)
    except (LeanError, OSError):  # the check of the options says what is wrong with them
        return
    for name, path in files.items():
        kind, _, told = name.partition(" ")
        same = name in record.inputs and (kind in SEVERAL or path == getattr(record.recipe, kind))
        if same and Path(path).is_file() and sha256(path) != record.inputs[name]:
            what = f"the {SEVERAL.get(kind, kind)} that the picture was drawn with"
            say(f"Note: {told or path} is not {what} any more, so this one will differ.")


def _files_of(options: GenerateOptions) -> dict[str, str | Path]:
    from ..lora.find import find_lora

    loras = [path for path, _ in map(path_and_scale, options.lora or ())]
    return {**pictures_of(options), **{f"lora {path}": find_lora(path) for path in loras}}
