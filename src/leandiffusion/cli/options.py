"""Option values as people type them, checked before anything is loaded. Imports no torch."""

from __future__ import annotations

import json
import math
from typing import Any

import typer

from ..core.flag import Flag
from ..drawing import values
from ..drawing.values import DTYPES, check_dtype, check_range
from .usage import as_usage


def parse_size(text: str) -> tuple[int, int]:
    """'512x768' or '512' -> (width, height) in pixels, both multiples of 8."""
    with as_usage(named=False):
        return values.parse_size("size", text)


def parse_memory(text: str) -> str | dict[str, str]:
    """'2GiB' -> itself; 'cuda=6GiB,cpu=8GiB' -> sizes by type of device."""
    from ..core.errors import ConfigError
    from ..core.units import parse_bytes

    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        if not all(parse_bytes(size) for _, _, size in parts):
            raise ConfigError(f"{text!r} leaves nothing to draw with: leave --memory out for what is free.")
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    if "=" not in text:
        return text
    sizes = {name.strip(): size for name, _, size in parts}
    if "" in sizes or len(sizes) < len(parts):
        raise typer.BadParameter(f"{text!r}: write a size, or DEVICE=SIZE for each device, such as cuda=6GiB,cpu=8GiB.")
    return sizes


def parse_guidance(text: str) -> float:
    """The classifier-free guidance scale: 0 to 1000. Up to 1 there is no guidance, and no negative prompt."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    with as_usage(named=False):
        check_range("guidance_scale", value)
    return value


def parse_value(flag: Flag, words: tuple[str, ...], text: str) -> Any:
    """The value of a technique's option: one of `words`, in whatever case, or the whole number from 1 up that `flag`
    allows; where there is neither, what `--enable` would take."""
    if text.lower() in words:
        return text.lower()
    if not words and not flag.number:
        return _value(text)
    if flag.number and text.isdecimal() and int(text) > 0:
        return int(text)
    *most, last = [*words, flag.number] if flag.number else words
    known = f"{', '.join(most)}{',' if len(most) > 1 else ''} or {last}" if most else last
    raise typer.BadParameter(f"{text!r} cannot be the value of {flag.name}: use {known}.")


def parse_enable(text: str) -> tuple[str, dict[str, Any]]:
    """'vae_tiling:rows=128' -> a technique's name and its settings: numbers, true, false, none, or words."""
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (name and key and equals and value):
            raise typer.BadParameter(f"{text!r}: write NAME, or NAME:SETTING=VALUE,…, such as vae_tiling:rows=128.")
        settings[key.strip()] = _value(value.strip())
    return name, settings


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower().replace("none", "null"))
    except ValueError:
        return text


def parse_dtype(text: str) -> str:
    """'bf16' or 'bfloat16' -> 'bfloat16', and so on."""
    with as_usage(named=False):
        check_dtype("dtype", text)
    return DTYPES.get(text.lower(), text.lower())
