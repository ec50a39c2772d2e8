"""Bytes and seconds as people write them."""

from __future__ import annotations

import re

from .errors import ConfigError

_BYTE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTE_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(text: str | int) -> int:
    """'2GiB', '3.2 GB', '512MB' or a plain number of bytes -> bytes. ConfigError for anything else or below zero."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if not match or (match[2].lower() or "b") not in _BYTE_UNITS:
        raise ConfigError(f"{text!r} is not a size: write a number and a unit, such as '2GiB', '3.2GB' or '512MB'.")
    return int(float(match[1]) * _BYTE_UNITS[match[2].lower() or "b"])


def format_bytes(count: float) -> str:
    """Bytes -> '3.20 GiB'; binary units, three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """Seconds -> '850 ms', '3.21 s', '2 min 05 s'."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
