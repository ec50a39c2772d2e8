"""`generate --like`: options taken from a picture's record, and notes of what will not be as it was."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import typer

from ..core.errors import ConfigError, LeanError
from ..drawing.given import adapters_of, pictures_of
from ..drawing.options import DrawingOptions
from ..pictures.record import PictureRecord, read_record
from .report import say

SEVERAL = {
    "control_image": "control image", "lora": "LoRA", "ip_adapter": "IP-Adapter",
    "ip_image": "picture for the IP-Adapter",
}  # fmt: skip
"""Files of which there may be several, whose names in a record have the path too, and how they are called."""


def filled_like(options: DrawingOptions, like: Path, enabled: Collection[str] = ()) -> DrawingOptions:
    """These options, and what they leave open from the picture's record.

    `enabled` are the names of techniques that are asked for: a note says which the picture was drawn with besides that
    change a picture. typer.BadParameter for what is no picture with a record.
    """
    record = _read(like)
    _say_what_differs(record, enabled)
    options = options.like(record.recipe)
    _say_what_changed(record, options)
    return options


def _read(like: Path) -> PictureRecord:
    try:
        return read_record(like)
    except (ConfigError, OSError) as error:
        reason = f"{like}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise typer.BadParameter(reason, param_hint="--like") from error


def _say_what_differs(record: PictureRecord, enabled: Collection[str]) -> None:
    from ..measure.environment import package_version

    then, now = record.versions.get("torch"), package_version("torch")
    if then and now and then != now:
        say(f"Note: that picture was drawn with torch {then}; here is {now}, so pixels may differ slightly.")
    if left_out := {name: text for name, text in record.techniques.items() if name not in enabled}:
        from ..techniques import techniques
        from ..techniques.base import Exactness

        for name, text in left_out.items():
            if name in techniques and techniques.get(name).exactness == Exactness.APPROXIMATE:
                say(f"Note: that picture was drawn with {text}, which changes it: see --enable to draw it so again.")


def _say_what_changed(record: PictureRecord, options: DrawingOptions) -> None:
    """A note of files that are no longer those that the recorded picture was drawn with."""
    if not record.inputs:
        return
    from ..pictures.reading import sha256

    try:
        files: dict[str, str | Path] = {**pictures_of(options), **adapters_of(options)}
    except (LeanError, OSError):  # the check of the options says what is wrong with them
        return
    for name, path in files.items():
        kind, _, told = name.partition(" ")
        same = name in record.inputs and (kind in SEVERAL or path == getattr(record.recipe, kind))
        if same and Path(path).is_file() and sha256(path) != record.inputs[name]:
            what = f"the {SEVERAL.get(kind, kind)} that the picture was drawn with"
            say(f"Note: {told or path} is not {what} any more, so this one will differ.")
