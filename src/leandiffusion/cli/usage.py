"""Options of a picture under the names that the command line has for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ..drawing.wrong import OptionError

_NAMES = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "guidance_scale": "--guidance",
    "embeddings": "--embedding",
    "width": "--size",
    "height": "--size",
    "control_guidance_start": "--control-start",
    "control_guidance_end": "--control-end",
}


def option_named(field: str) -> str:
    """'padding_mask_crop' -> '--padding-mask-crop'."""
    return _NAMES.get(field, f"--{field.replace('_', '-')}")


@contextmanager
def as_usage(named: bool = True) -> Iterator[None]:
    """Options that cannot be followed are wrong usage of the command: typer.BadParameter, code 2.

    `named` says which option it is; a parser leaves that to typer, which knows.
    """
    try:
        yield
    except OptionError as error:
        hint = option_named(error.field) if named else None
        raise typer.BadParameter(error.told(option_named), param_hint=hint) from error
